"""Writes and changes json files of fabricated runs."""

import json


def write_json(path, value):
    path.write_text(json.dumps(value, allow_nan=False))


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)
