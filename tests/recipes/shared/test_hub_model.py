"""Models of the recipes come back from folders, and from the Hub, without their training."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from recipes.medmoe.model import MedMoE
from recipes.medvlmoe.model import MedVLMoE
from tests.recipes.medmoe.test_medmoe_model import batch_of, model_of
from tests.recipes.medvlmoe.test_medvlmoe_model import build, inputs


def _trained(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights that no constructor gives."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 50)
    return model.eval()


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    "options",
    [
        {"balance": "bias", "task": "ordinal-regression"},
        {"variant": "vision-only"},
        {"text": False, "balance": "cv2", "route_on": "token"},
    ],
)
def test_medvlmoe_comes_back(options, tmp_path, capsys):
    model = _trained(build(**options))
    model.save_pretrained(tmp_path)
    loaded = MedVLMoE.from_pretrained(tmp_path)
    assert (loaded.config, loaded.task, loaded.balance) == (model.config, model.task, model.balance)
    assert not loaded.training
    with torch.no_grad():
        expected, output = model(*inputs(model)), loaded(*inputs(loaded))
    assert torch.equal(output.logits, expected.logits)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    assert json.loads((tmp_path / "config.json").read_text())["image_encoder"] == "test_efficientnet"


@pytest.mark.parametrize("options", [{}, {"route_on": "label", "expert_norm": "group"}])
def test_medmoe_comes_back(options, tmp_path, capsys):
    model = _trained(model_of(tmp_path, **options)[0])
    model.save_pretrained(tmp_path / "hub")
    loaded = MedMoE.from_pretrained(tmp_path / "hub")
    assert loaded.config == model.config
    batch = batch_of(model)
    batch = batch._replace(labels=batch.labels.clamp(min=0)) if options else batch
    with torch.no_grad():
        expected = model(batch.images, batch.tokens, batch.labels)
        output = loaded(batch.images, batch_of(loaded).tokens, batch.labels)
    assert torch.equal(output[0].embedding, expected[0].embedding)
    assert torch.equal(output[1].words, expected[1].words)
    assert torch.equal(output[2].regions, expected[2].regions)


def test_a_repository_is_downloaded(tmp_path, monkeypatch):
    model = build(variant="vision-only", text=False)
    model.save_pretrained(tmp_path)
    asked = {}

    def snapshot(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr("moekit.interop.hub.folder.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
    loaded = MedVLMoE.from_pretrained("me/model", revision="v1")
    assert (asked["repo_id"], asked["revision"]) == ("me/model", "v1")
    assert repr(loaded) == repr(model)


def test_settings_come_from_the_folder_alone(tmp_path):
    model = build(variant="vision-only", text=False)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes no settings of a MedVLMoE, got task: the folder holds"):
        MedVLMoE.from_pretrained(tmp_path, task="multi-class")
    with pytest.raises(ValueError, match="takes no settings of a MedVLMoE, got config"):
        MedVLMoE.from_pretrained(tmp_path, config=replace(model.config, dim=7))
    assert MedVLMoE.from_pretrained(tmp_path, config=model.config).config == model.config


def test_folders_that_are_not_whole(tmp_path):
    build(variant="vision-only", text=False).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SafetensorError):
        MedVLMoE.from_pretrained(tmp_path)
    (tmp_path / "architecture.json").unlink()
    with pytest.raises(ValueError, match=r"architecture.json does not exist"):
        MedVLMoE.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "hf-hub:someone/else"},
            "without files, got 'hf-hub:someone/else': give the folder",
        ),
        ({"options": {"checkpoint_path": "text/weights.bin"}}, r"got 'test_efficientnet' with \['checkpoint_path'\]"),
    ],
)
def test_an_architecture_that_names_files_is_refused(changes, message, tmp_path):
    build(variant="vision-only", text=False).save_pretrained(tmp_path)
    file = tmp_path / "architecture.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"image": about["image"] | changes}))
    with pytest.raises(ValueError, match=message):
        MedVLMoE.from_pretrained(tmp_path)


def test_code_in_the_folder_is_not_run(tmp_path):
    build().save_pretrained(tmp_path)
    file = tmp_path / "text" / "config.json"
    own = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}, "model_type": "own"}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (tmp_path / "text" / "own.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="contains custom code"):
        MedVLMoE.from_pretrained(tmp_path)
