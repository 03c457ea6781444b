"""What the tests of the benchmarks share."""

import pytest

from benchmarks.records import Record
from benchmarks.shapes import PRESETS


@pytest.fixture
def case():
    """Makes a record of invented figures: 1 ms and 10 TFLOP/s unless changed."""

    def make(name: str = "moekit-torch", median_ms: float | None = 1.0, **changes: object) -> Record:
        values: dict[str, object] = {
            "preset": "mixtral",
            "skew": "uniform",
            "dtype": "bf16",
            "direction": "forward+backward",
            "role": "experts",
            "environment": {"device": "invented", "threads": 1},
            "tflops": 10.0,
            "gbps": 100.0,
        } | changes
        values.setdefault("shape", tuple(PRESETS[str(values["preset"])]))
        if median_ms is not None:
            values = {"p20_ms": 0.99 * median_ms, "p80_ms": 1.01 * median_ms, "repeats": 9} | values
        return Record("case", name, median_ms=median_ms, **values)

    return make
