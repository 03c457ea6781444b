"""Writes and changes json files of fabricated runs."""

import json


def write_json(path, value):
    path.write_text(json.dumps(value, allow_nan=False))


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def number_epochs_from_zero(run):
    """Makes of the files of a run those that an earlier version wrote."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    shifted = [{**record, "epoch": record["epoch"] - 1} for record in lines]
    (run / "history.jsonl").write_text("\n".join(map(json.dumps, shifted)))
    metrics = json.loads((run / "metrics.json").read_text())
    training = metrics["training"]
    del training["first_epoch"]
    training["best_epoch"] -= 1
    write_json(run / "metrics.json", metrics)
