"""What the experts of a model do: recorded, in words, tables and pictures.

``with record_routing(model) as record:`` around training or evaluation, then ``print(record)`` or
``record.write_page("routing.html")``. ``python -m moekit.inspect`` shows a record or a checkpoint.
"""

from moekit.inspect.collector import StatsCollector
from moekit.inspect.findings import Finding, Thresholds
from moekit.inspect.layer_record import LayerRecord
from moekit.inspect.record import RoutingRecord
from moekit.inspect.recorder import record_routing
from moekit.inspect.summary import LayerSummary

__all__ = [
    "Finding",
    "LayerRecord",
    "LayerSummary",
    "RoutingRecord",
    "StatsCollector",
    "Thresholds",
    "record_routing",
]
