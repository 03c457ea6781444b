"""The model: what routing changes, what it does not, and what is trained."""

from dataclasses import replace

import pytest
import torch

from recipes.medmoe.build import new_model
from recipes.medmoe.config import paper, release, tiny
from recipes.medmoe.data.batches import Batch, text_id
from recipes.medmoe.data.tokens import tokenize
from recipes.medmoe.label_router import label_routing
from recipes.medmoe.model import MedMoE
from recipes.medmoe.pretrain import stage
from recipes.medmoe.pretrain.objective import pair_losses, step_loss
from recipes.medmoe.pretrain.tally import means_of
from tests.recipes.medmoe.conftest import small_config

TEXTS = ["a kidney stone on the left", "normal brain", "normal brain", "a liver mass", "a lung nodule"]


def model_of(tmp_path, **changes):
    config = small_config(tmp_path)
    config = replace(config, model=replace(config.model, **changes))
    torch.manual_seed(0)
    return new_model(config, TEXTS * 2), config


def batch_of(model) -> Batch:
    torch.manual_seed(1)
    tokens = tokenize(TEXTS, model.text_encoder.tokenizer, 16)
    ids = torch.tensor([text_id(text) for text in TEXTS])
    return Batch(
        torch.randn(5, 3, 64, 64), tokens, torch.tensor([1, 2, 2, -100, 0]), ids, torch.arange(5), torch.tensor(0)
    )


def losses_of(model, config, **train):
    batch = batch_of(model)
    image, text, local = model(batch.images, batch.tokens, batch.labels)
    return pair_losses(batch, image, text, local, config.model, replace(config.train, **train))


def test_the_embedding_does_not_depend_on_the_expert_and_the_regions_do(tmp_path):
    model, _ = model_of(tmp_path)
    model.eval()
    images = batch_of(model).images
    seen = model.encode_images(images)
    torch.testing.assert_close(seen.embedding.norm(dim=1), torch.ones(5))
    first, second = (model.local(seen, label_routing(torch.full((5,), k), 6)).regions for k in (0, 1))
    assert (first - second).abs().max() > 1e-3
    mixed = model.local(seen, label_routing(torch.tensor([0, 1, 0, 1, 0]), 6), need_weights=True)
    torch.testing.assert_close(mixed.regions[::2], first[::2])
    torch.testing.assert_close(mixed.regions[1::2], second[1::2])
    torch.testing.assert_close(mixed.scale_weights.sum(1), torch.ones_like(mixed.scale_weights[:, 0]))


@pytest.mark.parametrize("route_on", ["image", "text", "label"])
def test_the_router_sees_what_it_is_told_to(tmp_path, route_on):
    model, _ = model_of(tmp_path, route_on=route_on)
    model.eval()
    batch = batch_of(model)
    inputs = {
        "image": model.encode_images(batch.images),
        "text": model.encode_texts(batch.tokens),
        "labels": batch.labels.clamp(min=0),
    }
    key = "labels" if route_on == "label" else route_on
    routing = model.route(**{key: inputs[key]})
    torch.testing.assert_close(routing.probs.sum(1), torch.ones(5))
    if route_on == "label":
        assert routing.expert_ids[:, 0].tolist() == [1, 2, 2, 0, 0]
    else:
        expected = model.moe.router(model.router_norm(inputs[key].pooled))
        assert torch.equal(routing.logits, expected.logits)
    others = {name: value for name, value in inputs.items() if name != key}
    with pytest.raises(ValueError, match=f"routes on the {route_on}, which was not given"):
        model.route(**others)


@pytest.mark.parametrize("route_on", ["image", "text", "label"])
def test_a_training_step_plans_once(tmp_path, monkeypatch, route_on):
    """The layer plans from the one routing of the batch; losses and figures use what it counted."""
    from moekit import layer_parts

    calls = []
    plan_dispatch = layer_parts.plan_dispatch
    monkeypatch.setattr(
        layer_parts, "plan_dispatch", lambda *args, **options: calls.append(1) or plan_dispatch(*args, **options)
    )
    config = small_config(tmp_path, route_on=route_on, balance_weight=0.1, epochs=1)
    torch.manual_seed(0)
    model = new_model(config, TEXTS * 2)
    batch = batch_of(model)
    batch = batch._replace(labels=batch.labels.clamp(min=0))
    loss, sums = stage.PairObjective(config).loss(model, batch, torch.ones(2))
    loss.backward()
    assert len(calls) == 1
    assert means_of({name: value.detach() for name, value in sums.items()}, config.train)["loss"] == pytest.approx(
        loss.item(), rel=1e-5
    )
    image, text = model.encode_images(batch.images), model.encode_texts(batch.tokens)
    routing = model.route(image=image, text=text, labels=batch.labels)
    assert model.local(image, routing, need_weights=True).scale_weights is not None
    assert len(calls) == 2


@pytest.mark.parametrize("route_on", ["image", "text", "label"])
def test_weights_of_runs_made_before_the_sparse_layer_load(tmp_path, route_on):
    """Router and experts were parts of the model itself then."""
    old, _ = model_of(tmp_path, route_on=route_on)
    state = {name.removeprefix("moe."): value for name, value in old.state_dict().items()}
    assert any(name.startswith("experts.experts.0.") for name in state)
    torch.manual_seed(7)
    new = MedMoE(old.config, old.image_encoder, old.text_encoder)
    assert not torch.equal(new.region_projection.weight, old.region_projection.weight)
    new.load_state_dict(state)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_the_router_is_taught_by_the_known_modalities_of_the_whole_step(tmp_path):
    """Two micro-batches, of which one knows a single modality, against both in one."""
    model, config = model_of(tmp_path)
    model.eval()  # batch norms would see other batches
    settings = replace(config.train, global_weight=0.0, local_weight=0.0, router_weight=2.0)
    whole = batch_of(model)
    whole = whole._replace(labels=torch.tensor([1, -100, -100, 2, 0]))

    def gradient(rows, of_known):
        batch = Batch(
            whole.images[rows],
            whole.tokens.rows(rows),
            whole.labels[rows],
            whole.text_ids[rows],
            whole.index[rows],
            whole.skipped,
        )
        model.zero_grad()
        losses = pair_losses(batch, *model(batch.images, batch.tokens, batch.labels), config.model, settings)
        step_loss(losses, settings, torch.tensor(len(rows) / 5), torch.tensor(of_known)).backward()
        return model.moe.router.gate.layers[0].weight.grad.clone()

    parts = gradient([0, 1, 2], 1 / 3) + gradient([3, 4], 2 / 3)
    torch.testing.assert_close(parts, gradient(list(range(5)), 1.0))


def test_routing_on_unknown_labels_is_refused():
    with pytest.raises(ValueError, match="needs the modality of every image, but some are not known"):
        label_routing(torch.tensor([0, -100]), 6)


def test_a_frozen_text_encoder_gets_no_gradient_and_no_dropout(tmp_path):
    model, config = model_of(tmp_path, text_frozen=True)
    model.train()
    assert not model.text_encoder.training
    assert model.image_encoder.training
    losses_of(model, config).total.backward()
    assert all(p.grad is None for p in model.text_encoder.parameters())
    assert model.word_projection.weight.grad.abs().sum() > 0
    assert model.text_projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gradient", ["none", "scale", "straight_through"])
def test_what_teaches_the_router(tmp_path, gradient):
    """Supervision always; the contrast only where the gradient is let through."""
    model, config = model_of(tmp_path, router_gradient=gradient)
    losses_of(model, config, router_weight=0.0).total.backward()
    taught = model.moe.router.gate.layers[0].weight.grad.abs().sum() > 0
    assert taught == (gradient != "none")
    model.zero_grad()
    losses_of(model, config).router_loss.backward()
    assert model.moe.router.gate.layers[0].weight.grad.abs().sum() > 0


def test_the_total_is_the_weighted_sum(tmp_path):
    model, config = model_of(tmp_path)
    model.eval()
    losses = losses_of(model, config, global_weight=0.3, local_weight=0.7, router_weight=2.0, balance_weight=0.1)
    expected = 0.3 * losses.global_loss + 0.7 * losses.local_loss + 2 * losses.router_loss + 0.1 * losses.balance_loss
    torch.testing.assert_close(losses.total, expected)
    assert losses.balance_loss > 0


def test_the_printed_forms_are_other_losses(tmp_path):
    model, config = model_of(tmp_path)
    model.eval()
    ours = losses_of(model, config)
    printed = losses_of(model, config, global_directions="image-to-text", local_form="report", word_aggregation="sum")
    assert printed.global_loss < ours.global_loss  # one direction of two
    assert abs(printed.local_loss - ours.local_loss) > 1e-3


def test_unlabelled_pairs_do_not_teach_the_router(tmp_path):
    model, config = model_of(tmp_path)
    batch = batch_of(model)
    unknown = batch._replace(labels=torch.full((5,), -100))
    image, text, local = model(unknown.images, unknown.tokens, unknown.labels)
    losses = pair_losses(unknown, image, text, local, config.model, config.train)
    assert losses.router_loss == 0
    losses.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_too_few_experts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_experts must be at least the number of modalities, 6, got 2"):
        model_of(tmp_path, num_experts=2)


def test_the_presets_are_what_they_say():
    printed, released, small = paper(), release(), tiny()
    assert (printed.model.route_on, printed.train.local_form, printed.train.word_aggregation) == (
        "text",
        "report",
        "sum",
    )
    assert printed.train.batch_size * printed.train.devices == 256
    assert printed.train.accumulate == 10
    assert printed.model.image_encoder == "swin_tiny_patch4_window7_224"
    train, model = released.train, released.model
    assert (train.global_weight, train.local_weight, train.router_weight) == (0.5, 0.5, 2.0)
    assert (model.num_experts, model.temperatures, model.text_tokens) == (6, (4.0, 5.0, 10.0), 25)
    assert (train.optimizer, train.lr, train.clip_norm, model.text_frozen) == ("adam", 5e-5, 0.25, True)
    assert (model.route_on, model.text_encoder) == ("image", "emilyalsentzer/Bio_ClinicalBERT")
    assert (small.model.text_encoder, small.train.accumulate) == ("tiny-bert", 1)
