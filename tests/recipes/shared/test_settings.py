"""Settings that a run's folder keeps: read as they were, old ones filled up, strange ones refused."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from recipes.medmoe import config as medmoe
from recipes.medmoe import presets as medmoe_presets
from recipes.medvlmoe import config as medvlmoe
from recipes.medvlmoe import presets as medvlmoe_presets
from recipes.shared.settings import settings_from_json

OLD_RUNS = Path(__file__).parent / "old_runs"
"""``config.json`` of one run of each recipe, as version 0.1 wrote it."""


@dataclass(frozen=True)
class Inner:
    path: Path | None = None
    sizes: tuple[int, ...] = (1,)
    options: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    out: Path = Path("here")
    inner: Inner = field(default_factory=Inner)
    name: str | None = None


def test_paths_tuples_and_nested_settings_come_back_as_they_were():
    values = {"out": "there", "inner": {"path": "a/b", "sizes": [2, 3], "options": {"k": [1]}}, "name": None}
    assert settings_from_json(Outer, values) == Outer(Path("there"), Inner(Path("a/b"), (2, 3), {"k": [1]}))


def test_a_setting_that_an_older_version_did_not_write_takes_its_default():
    assert settings_from_json(Outer, {"inner": {"sizes": [4]}}) == Outer(inner=Inner(sizes=(4,)))


def test_a_setting_that_is_not_known_is_refused_by_its_full_name():
    with pytest.raises(ValueError, match=r"settings: colour not known to this version of the recipe"):
        settings_from_json(Outer, {"colour": 1, "inner": {}})
    with pytest.raises(ValueError, match=r"settings: inner\.size not known"):
        settings_from_json(Outer, {"inner": {"size": 1}})


def test_a_number_in_place_of_settings_is_refused():
    with pytest.raises(ValueError, match=r"inner\. must hold an object of settings, got 3"):
        settings_from_json(Outer, {"inner": 3})


def kept(values, old):
    """The settings that an old version had, of those that this one writes."""
    return {name: kept(values[name], old[name]) if isinstance(old[name], dict) else values[name] for name in old}


@pytest.mark.parametrize("recipe", [medmoe, medvlmoe], ids=["medmoe", "medvlmoe"])
def test_the_settings_of_an_old_run_are_read(recipe):
    name = recipe.__name__.split(".")[1]
    written = json.loads((OLD_RUNS / f"{name}.json").read_text())
    config = recipe.Config.from_json(written)
    again = json.loads(json.dumps(config.to_json(), default=str))
    for part in ("preset", "seeds", "resume", "out"):
        assert again[part] == written[part], part
    for part in ("data", "model", "train"):
        assert kept(again[part], written[part]) == written[part], part
    assert config.model.image_size == 64
    assert isinstance(config.out, Path)


@pytest.mark.parametrize("presets", [medmoe_presets.PRESETS, medvlmoe_presets.PRESETS], ids=["medmoe", "medvlmoe"])
def test_the_settings_of_every_preset_survive_writing_and_reading(presets):
    for name, preset in presets.items():
        config = preset()
        assert config.preset == name
        assert type(config).from_json(json.loads(json.dumps(config.to_json(), default=str))) == config
