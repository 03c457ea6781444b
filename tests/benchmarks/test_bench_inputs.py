"""Large tables and the input pipeline, on a small scale."""

import pytest

from benchmarks import __main__ as cli
from benchmarks.inputs import command
from benchmarks.inputs.images import KINDS, image_rates
from benchmarks.inputs.tables import SETS, TableCost, measure

ROWS = 20_000


@pytest.mark.parametrize("name", SETS)
def test_a_table_is_read_whole_within_its_share_of_the_time(tmp_path, name):
    """A twentieth of 400,000 rows, with room for a busy machine: dictionaries for each row took five times as long."""
    write, _ = SETS[name]
    write(tmp_path, ROWS)
    cost = measure(name, tmp_path)
    assert cost.rows in (ROWS, ROWS + 200)
    assert cost.processor < 2 * command.MOST_SECONDS * ROWS / 400_000
    assert cost.megabytes < 200


def test_every_kind_of_file_and_cache_is_loaded(tmp_path):
    rates = list(image_rates(tmp_path, 2, (0,)))
    assert {rate.kind for rate in rates} == set(KINDS)
    assert len(rates) == len(KINDS) + 2
    assert all(rate.per_second > 0 and rate.per_processor_second > 0 for rate in rates)
    assert {rate.source for rate in rates} == {"files", "cache on disk", "cache in memory"}


@pytest.mark.parametrize(("processor", "megabytes", "status"), [(1.0, 100.0, 0), (4.0, 100.0, 1), (1.0, 700.0, 1)])
def test_a_slow_or_large_table_is_an_error(tmp_path, monkeypatch, capsys, processor, megabytes, status):
    cost = TableCost("chexpert", 400_200, 50.0, 5.0, processor, megabytes)
    monkeypatch.setattr(command, "table_costs", lambda folder, rows: [cost])
    options, module = cli.parse(["inputs", "--images", "0", "--out", str(tmp_path / "page.md")])
    assert module.main(options) == status
    output = capsys.readouterr().out
    assert f"| chexpert | 400,200 | 50.0 | 5.00 | {processor:.2f} | {megabytes:.0f} |" in output
    assert ("over 3 s or 600 MB: TableCost" in output) == bool(status)
