"""Steps on several processes: what is started, and what the page shows of it."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as cli
from benchmarks.scale.steps import FOLDER, divisions_of, page, rows

ROOT = Path(__file__).parents[2]


def record(processes: int, over: int, *seconds: float, device: str = "cpu") -> dict:
    about = {"device": "a machine", "command": "c", "commit": "a", "date": "d", "versions": {"torch": "2.14"}}
    common = {"device": device, "processors": 2, "load": [0.5, 2.25], "batch": 16, "length": 128, "environment": about}
    times = {"seconds": seconds, "processor": [processes * each for each in seconds]}
    return {"processes": processes, "experts_over": over, **times, **common}


def test_experts_are_divided_in_every_way_that_fits() -> None:
    assert divisions_of([1, 2, 4, 6]) == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4), (6, 1), (6, 2)]


def test_the_page_compares_with_the_first_row() -> None:
    records = [record(1, 1, 0.1), record(4, 2, 0.1, 0.2, 0.3, 0.4, 0.5)]
    assert rows(records)[2:] == [
        "| 1 | 1 | 2048 | 100 (100 to 100) | 100 | 1.00 |",
        "| 4 | 2 | 512 | 300 (120 to 480) | 1200 | 12.00 |",
    ]
    text = page(records)
    assert "a machine,\n2 processors" in text
    assert "what dividing costs, not what it gains" in text
    assert "load of the machine over a minute 0.5 to 2.2" in text
    assert "what it gains" not in page([record(1, 1, 0.1, device="cuda")])


def test_the_docs_show_the_records() -> None:
    records = [json.loads(line) for line in (FOLDER / "records.jsonl").read_text().splitlines()]
    assert (FOLDER / "README.md").read_text() == page(records)
    assert "\n".join(rows(records)) in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.slow
def test_steps_are_measured(tmp_path: Path) -> None:
    options = ["--process-count", "1", "--steps", "2", "--warm-up", "1", "--starts", "2", "--batch", "2"]
    assert cli.main(["scale-steps", *options, "--length", "8", "--out", str(tmp_path)]) == 0
    (written,) = (json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines())
    assert (written["processes"], written["experts_over"], len(written["seconds"])) == (1, 1, 4)
    assert len(written["processor"]) == 2  # the last step of a start has no end
    assert all(seconds > 0 for seconds in written["seconds"] + written["processor"])


@pytest.mark.parametrize(
    ("option", "message"),
    [("--steps 1", "--steps must be at least 2, got 1"), ("--starts 0", "--starts"), ("--warm-up -1", "--warm-up must"),
     ("--batch 6", "--batch must be a multiple of every --process-count, got 6")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option, message
) -> None:
    assert cli.main(["scale-steps", *option.split(), "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
