"""Settings of memory and speed change no gradient; half precision goes with a contrast of the whole step."""

from dataclasses import replace

import pytest
import torch

from recipes.data.phantom import phantom_modalities_source
from recipes.medmoe.build import new_model
from recipes.medmoe.data.batches import PairDataset
from recipes.medmoe.data.loaders import make_loader
from recipes.medmoe.data.sources import train_texts
from recipes.medmoe.pretrain import stage
from recipes.medmoe.pretrain.prepare import kept_in_eval, prepare_model
from tests.recipes.medmoe.conftest import small_config
from tests.recipes.medmoe.test_medmoe_pretrain import history

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source():
    return phantom_modalities_source(train=8, val=4, test=4, size=64)


def config_of(tmp_path, *, encoder="test_convnext", **train):
    config = small_config(tmp_path / "run", **train)
    return replace(config, model=replace(config.model, image_encoder=encoder, expert_norm="group"))


def gradients(config, source, prepare):
    torch.manual_seed(0)
    model = new_model(config, train_texts(source) * 4)
    names = model.state_dict().keys()
    if prepare:
        prepare_model(model, config.train, CPU)
    assert model.state_dict().keys() == names
    model.train()
    calls = []
    for module in model.image_encoder.modules():
        if type(module).__name__ == "ConvNeXtBlock":
            module.register_forward_pre_hook(lambda *_: calls.append(1))
    batch = next(iter(make_loader(PairDataset(source.train, stage.reader_of(model)), config.train, seed=None)))
    loss = stage.PairObjective(config).loss(model, batch, None).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(calls)


def test_activations_that_are_computed_again_give_the_same_gradients(tmp_path, source):
    loss, expected, once = gradients(config_of(tmp_path), source, prepare=False)
    again, actual, twice = gradients(config_of(tmp_path, activation_checkpointing=True), source, prepare=True)
    assert twice == 2 * once > 0
    torch.testing.assert_close(again, loss)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile's own
def test_compiled_blocks_give_the_same_gradients(tmp_path, source, monkeypatch):
    """The graphs are those of torch.compile; the backend that generates C++ takes a minute and is left out."""
    original, compiled = torch.compile, []

    def quick(forward):
        compiled.append(forward)
        return original(forward, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quick)
    loss, expected, _ = gradients(config_of(tmp_path), source, prepare=False)
    again, actual, _ = gradients(config_of(tmp_path, compile=True), source, prepare=True)
    assert {type(forward.__self__).__name__ for forward in compiled} == {"ConvNeXtBlock", "BertLayer"}
    torch.testing.assert_close(again, loss)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_batch_norms_that_would_count_twice_are_refused_and_frozen_ones_stay(tmp_path, source):
    config = config_of(tmp_path, encoder="test_resnet", activation_checkpointing=True)
    model = new_model(config, train_texts(source) * 4)
    with pytest.raises(ValueError, match=r"runs layers twice, .* use --batch-norm frozen"):
        prepare_model(model, config.train, CPU)
    assert kept_in_eval(model, config.train) == []
    settings = replace(config.train, batch_norm="frozen")
    prepare_model(model, settings, CPU)
    norms = kept_in_eval(model, settings)
    assert norms
    assert all(type(norm).__name__.startswith("BatchNorm") for norm in norms)


@pytest.mark.slow
def test_half_precision_goes_with_a_contrast_of_the_whole_step(tmp_path):
    """The local loss is a sum of many rounded products: the loss is near that of fp32, not equal."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        config = config_of(
            tmp_path / precision, precision=precision, grad_cache=True, batch_size=8, accumulate=2, epochs=1
        )
        stage.main(config)
        losses[precision] = history(config.out)[0]["train_loss"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=2e-2)
    assert losses["bf16-mixed"] != losses["32-true"]
