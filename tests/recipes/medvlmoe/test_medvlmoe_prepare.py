"""Memory and speed settings change no result; what is frozen stays; settings that do not fit are refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from recipes.medvlmoe import train
from recipes.medvlmoe.__main__ import parse_train
from recipes.medvlmoe.build import load_model, new_model
from recipes.medvlmoe.data import collate
from recipes.medvlmoe.model import MedVLMoE
from recipes.medvlmoe.objective import DiagnosisObjective
from recipes.medvlmoe.prepare import compiled_parts, kept_in_eval, prepare_model, sharded_units
from tests.recipes.medvlmoe.conftest import small_config

CPU = torch.device("cpu")
TEXTS = ["fever and cough for some days", "no fever and no cough"] * 2


def config_of(tmp_path, *, model=(), **settings):
    config = small_config(tmp_path / "run", **settings)
    changes = {"image_encoder": "test_vit", "image_stride": None, "dropout": 0.0} | dict(model)
    return replace(config, model=replace(config.model, **changes))


def model_of(config) -> MedVLMoE:
    torch.manual_seed(0)
    return new_model(config, TEXTS, ("A", "B"), "multi-label")


def gradients(model, config):
    """Gradients of a step in training mode; BioGPT's dropout draws the same in each call."""
    rng = torch.Generator().manual_seed(1)
    tokens = [model.text_encoder.tokenizer(text)["input_ids"] for text in TEXTS]
    images = torch.randn(4, 3, 64, 64, generator=rng)
    items = [(images[i], tokens[i], torch.tensor([1.0, i % 2]).numpy(), i) for i in range(4)]
    batch = collate(items, 64)
    model.train()
    for module in kept_in_eval(model, config.train):
        module.eval()
    torch.manual_seed(2)
    loss = DiagnosisObjective(model, config.train).loss(model, batch, torch.ones(2)).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_checkpointed_activations_and_compiled_blocks_give_the_same_gradients(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    config = config_of(tmp_path)
    plain = model_of(config)
    loss, expected = gradients(plain, config)
    prepared = model_of(config)
    settings = replace(config.train, activation_checkpointing=True, compile=True)
    prepare_model(prepared, settings, CPU)
    assert prepared.state_dict().keys() == plain.state_dict().keys()
    computed = []
    prepared.image_encoder.model.blocks[0].attn.register_forward_pre_hook(lambda *_: computed.append("image"))
    prepared.text_encoder.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: computed.append("text"))
    again, actual = gradients(prepared, config)
    assert sorted(computed) == ["image"] * 2 + ["text"] * 2  # forward, and again in backward
    assert len(compiled) == len(compiled_parts(prepared))
    torch.testing.assert_close(again, loss)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile's own
def test_compiled_blocks_compute_the_same(tmp_path, monkeypatch):
    """The graphs are those of torch.compile; the backend that generates C++ takes a minute and is left out."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: original(forward, backend="aot_eager"))
    config = config_of(tmp_path, model={"text_encoder": "tiny"})
    plain, compiled = model_of(config), model_of(config)
    prepare_model(compiled, replace(config.train, compile=True), CPU)
    for model in (plain, compiled):
        model.text_encoder.model.requires_grad_(True)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in model.text_encoder.model.layers:
            layer.dropout = layer.activation_dropout = 0.0
            layer.self_attn.dropout = 0.0
        model.text_encoder.model.dropout = 0.0
    loss, expected = gradients(plain, config)
    again, actual = gradients(compiled, config)
    torch.testing.assert_close(again, loss)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_every_weight_belongs_to_a_unit_that_is_called_whole(tmp_path):
    """A unit inside a unit would be gathered twice; a unit whose forward is not called would stay sharded."""
    config = config_of(tmp_path)
    model = model_of(config)
    units = sharded_units(model)
    inside = [id(module) for unit in units for module in unit.modules()]
    assert len(inside) == len(set(inside))
    calls = []
    for unit in units:
        unit.register_forward_hook(lambda module, *_: calls.append(module))
    gradients(model, config)
    assert {id(unit) for unit in calls} == {id(unit) for unit in units}
    held = sum(p.numel() for unit in units for p in unit.parameters())
    assert held > 0.5 * sum(p.numel() for p in model.parameters())


def test_frozen_encoders_and_adapters(tmp_path):
    config = config_of(tmp_path, model={"image_tuning": "lora", "text_tuning": "frozen", "lora_rank": 2})
    model, plain = model_of(config), model_of(config_of(tmp_path))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "_encoder." in name}
    assert trained
    assert all(".lora_" in name and name.startswith("image_encoder.") for name in trained)
    weights = model.state_dict()
    rank = {value.shape[0] for name, value in weights.items() if "lora_A" in name}
    assert rank == {2}
    # Adapters start at 0: the encoder computes what it did.
    images = torch.randn(2, 3, 64, 64)
    plain.image_encoder.load_state_dict(
        {
            name.removeprefix("image_encoder.").replace(".base_layer", ""): value
            for name, value in weights.items()
            if name.startswith("image_encoder.") and ".lora_" not in name
        }
    )
    torch.testing.assert_close(model.image_encoder(images).patches, plain.image_encoder(images).patches)
    assert kept_in_eval(model, config.train) == [model.text_encoder]
    _, grads = gradients(model, config)
    assert not any(name.startswith("text_encoder.") for name in grads)


@pytest.mark.slow
def test_a_run_with_adapters_is_evaluated_and_resumed_from_its_folder(tmp_path):
    config = config_of(tmp_path, model={"image_tuning": "lora", "text_tuning": "lora"}, epochs=2)
    train.main(config)
    model, *_ = load_model(config.out)
    assert sum(p.abs().sum() for name, p in model.named_parameters() if "lora_B" in name) > 0
    with pytest.raises(ValueError, match=r"image_tuning \('lora', now 'full'\)"):
        train.main(replace(config, resume=True, model=replace(config.model, image_tuning="full")))


def test_adapters_need_linear_layers(tmp_path):
    config = config_of(tmp_path, model={"image_encoder": "test_efficientnet", "image_tuning": "lora"})
    with pytest.raises(ValueError, match="--image-tuning lora needs an encoder with linear layers, but EfficientNet"):
        model_of(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--batch-norm sync", r"batch_norm 'sync' \(--batch-norm\) needs a GPU: on the CPU use --batch-norm frozen"),
        (
            "--activation-checkpointing",
            r"activation_checkpointing \(--activation-checkpointing\) runs layers twice, .* use --batch-norm frozen",
        ),
    ],
)
def test_batch_norms_that_would_count_wrongly_are_refused(tmp_path, options, message):
    settings = parse_train(["--preset", "tiny", *options.split()]).train
    model = model_of(config_of(tmp_path, model={"image_encoder": "test_efficientnet"}))
    with pytest.raises(ValueError, match=message):
        prepare_model(model, settings, CPU)
    prepare_model(model_of(config_of(tmp_path)), replace(settings, activation_checkpointing=False), CPU)


def test_frozen_batch_norms_keep_their_statistics_in_training(tmp_path):
    config = config_of(tmp_path, model={"image_encoder": "test_efficientnet"}, batch_norm="frozen")
    model = model_of(config)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    gradients(model, config)
    assert before
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_synchronised_batch_norms_keep_their_names(tmp_path):
    model = model_of(config_of(tmp_path, model={"image_encoder": "test_efficientnet"}))
    names = model.state_dict().keys()
    prepare_model(model, replace(config_of(tmp_path).train, batch_norm="sync"), torch.device("cuda"))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert model.state_dict().keys() == names


def test_encoders_that_cannot_compute_activations_again_are_named(tmp_path, monkeypatch):
    model = model_of(config_of(tmp_path))
    monkeypatch.setattr(type(model.text_encoder.model), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"--activation-checkpointing\) is not known to text encoder BioGptModel"):
        model.text_encoder.checkpoint_activations()
    monkeypatch.delattr(type(model.image_encoder.model), "set_grad_checkpointing")
    with pytest.raises(ValueError, match=r"--activation-checkpointing\) is not known to image encoder 'test_vit'"):
        model.image_encoder.checkpoint_activations()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--strategy fsdp2", r"'fsdp2' \(--strategy\) is not for a contrast of images and texts"),
        (
            "--text-tuning lora",
            r"lora \(--text-tuning\) is not for a run that begins with",
        ),
    ],
)
def test_what_a_contrast_cannot_have_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train.main(parse_train(["--preset", "convirt", "--out", str(tmp_path / "run"), *options.split()]))
