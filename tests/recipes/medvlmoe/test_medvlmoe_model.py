"""The model: what each option changes, and what must not matter."""

from dataclasses import replace
from typing import get_args

import pytest
import torch

from moekit import FFN, SparseMoE
from recipes.medvlmoe.balance import BalanceLosses, balance_loss
from recipes.medvlmoe.config import ModelConfig, TrainConfig, Variant, tiny
from recipes.medvlmoe.data import Batch
from recipes.medvlmoe.inference import predict_batches
from recipes.medvlmoe.model import MedVLMoE, has_experts
from recipes.medvlmoe.positions import sine_positions
from recipes.shared.encoders.image import load_image_encoder
from recipes.shared.encoders.text import load_text_encoder

TEXTS = ["fever and cough for three days", "chronic smoker with weight loss", "fever after surgery and chest pain"]
SIZE = 64
BATCH = 3


def build(text=True, task="multi-label", balance="switch", **options):
    config = replace(
        tiny().model,
        image_encoder="test_efficientnet",
        image_size=SIZE,
        dim=32,
        num_heads=2,
        num_experts=4,
        expert_hidden_dim=16,
        text_tokens=12,
        **options,
    )
    torch.manual_seed(0)
    image = load_image_encoder(config.image_encoder, SIZE, weights="random", output_stride=config.image_stride)
    encoder = load_text_encoder("tiny", texts=TEXTS * 2) if text else None
    return MedVLMoE(config, image, encoder, 5, task, balance).eval()


def inputs(model):
    torch.manual_seed(1)
    images = torch.randn(BATCH, 3, SIZE, SIZE)
    if model.text_encoder is None:
        return images, torch.zeros(BATCH, 1, dtype=torch.int64), torch.zeros(BATCH, 1, dtype=torch.bool)
    tokens = [model.text_encoder.tokenizer(text)["input_ids"] for text in TEXTS]
    longest = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in tokens])
    return images, ids, mask


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "no-moe"},
        {"variant": "single-ffn"},
        {"variant": "no-fusion"},
        {"variant": "no-text"},
        {"variant": "vision-only"},
        {"route_on": "token"},
        {"cross_attention": "summary"},
        {"tie_projections": True},
        {"residual": False},
        {"residual_init": "zero"},
        {"residual_init": "zero", "variant": "no-moe"},
        {"image_positions": "sine"},
        {"gate": False},
        {"text_pooling": "last"},
        {"text_pooling": "first"},
        {"balance": "cv2"},
        {"balance": "bias"},
        {"router": "dynamic", "balance": "dynamic"},
    ],
    ids=str,
)
def test_every_option_trains_all_its_parameters(options):
    model = build(**options).train()
    output = model(*inputs(model))
    assert output.logits.shape == (BATCH, 5)
    loss = model.head.loss(output.logits, torch.ones(BATCH, 5))
    if output.stats is not None:
        loss = loss + balance_loss(options.get("balance", "switch"), output.stats, output.stats.tokens_per_expert)
    loss.backward()
    # Null streams learn only from studies without text or image; a noisy router's scale only through cv2's load.
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    allowed = {"null_text"} if model.text_encoder is not None else {"image_norm.weight", "image_norm.bias"}
    allowed.add("null_image")
    unexpected = {n for n in silent if n not in allowed and "text_encoder" not in n and "image_encoder" not in n}
    unexpected -= _silent_by_design(model, options)
    assert not unexpected


def _silent_by_design(model, options):
    """Parameters that a setting leaves without gradient, each for its reason."""
    silent = set()
    names = dict(model.named_parameters())
    one_key = options.get("variant") == "no-text" or options.get("cross_attention") == "summary"
    if one_key:  # a softmax over one key is 1: queries and keys do not matter (the printed form)
        silent |= {n for n in names if "fusion" in n and ("query" in n or "key" in n)}
    silent |= {n for n in names if n.endswith("key.bias")}  # a softmax does not see what all keys share
    silent |= {n for n in names if n.startswith("experts.experts")}  # experts that no study chose
    if options.get("text_pooling") in ("last", "first"):
        silent |= {n for n in names if n == "text_position"}
    if options.get("residual_init") == "zero":  # in the first step only the zeros themselves learn
        last = ("left_output", "right_output", "down_proj", "down_bias")
        branches = {
            n for n in names if n.startswith(("fusion.", "experts.", "expert_norm.", "image_norm.", "text_norm."))
        }
        silent |= {n for n in branches if not any(word in n for word in last)}
    return silent


@pytest.mark.parametrize("variant", ["full", "no-moe", "single-ffn", "no-fusion"])
def test_zero_residual_branches_start_as_the_streams_side_by_side(variant):
    model = build(variant=variant, residual_init="zero")
    images, ids, mask = inputs(model)
    image, image_mask = model._image(images, None)
    text, text_mask = model._text(ids, mask, image)
    pooled = torch.cat([image[:, 1:].mean(1), (text * text_mask[..., None]).sum(1) / text_mask.sum(1, keepdim=True)], 1)
    assert image_mask[:, 1:].all()
    assert torch.allclose(model(images, ids, mask).logits, model.head(model.head_norm(0.5 * pooled)), atol=1e-5)
    assert not torch.allclose(
        build(variant=variant)(images, ids, mask).logits, model(images, ids, mask).logits, atol=1e-3
    )


def test_zero_residual_branches_need_residual_connections():
    with pytest.raises(ValueError, match=r"residual_init \(--residual-init\) 'zero' needs residual connections: leave"):
        build(residual=False, residual_init="zero")


def test_a_word_can_look_at_a_place_from_the_start_with_sine_positions():
    grid, dim = (4, 6), 64
    code = sine_positions(grid, dim)
    assert code.shape == (1, 24, dim)
    assert code.square().mean().sqrt() == pytest.approx(0.7, abs=0.02)
    products = code[0] @ code[0].T
    off = products - torch.diag(products.diagonal())
    assert (off.amax(1) < 0.8 * products.diagonal()).all()  # each place is nearest to itself, by a margin
    model = build(image_positions="sine")
    assert torch.equal(model.image_position, sine_positions(model.image_encoder.grid, 32))
    assert build().image_position.std() < 0.03
    assert sine_positions((2, 2), 7)[..., 4:].count_nonzero() == 0


def test_padding_of_the_text_does_not_matter():
    model = build()
    images, ids, mask = inputs(model)
    before = model(images, ids, mask)
    ids = torch.nn.functional.pad(ids, (0, 3), value=7)
    mask = torch.nn.functional.pad(mask, (0, 3), value=False)
    after = model(images, ids, mask)
    assert torch.allclose(before.logits, after.logits, atol=1e-5)


def test_a_study_without_text_takes_the_null_text_and_changes_no_other_study():
    model = build()
    images, ids, mask = inputs(model)
    before = model(images, ids, mask).logits
    mask[1] = False
    after = model(images, ids, mask).logits
    assert torch.allclose(before[[0, 2]], after[[0, 2]], atol=1e-5)
    assert not torch.allclose(before[1], after[1], atol=1e-3)
    ids[1] = 9
    assert torch.allclose(after, model(images, ids, mask).logits, atol=1e-6)
    model.zero_grad()
    model(images, ids, mask).logits.sum().backward()
    assert model.null_text.grad.abs().max() > 0


def test_image_and_text_both_matter():
    model = build()
    images, ids, mask = inputs(model)
    output = model(images, ids, mask).logits
    assert not torch.allclose(output, model(images.flip(0), ids, mask).logits, atol=1e-3)
    assert not torch.allclose(output, model(images, ids.roll(1, 0), mask.roll(1, 0)).logits, atol=1e-3)


def test_vision_only_ignores_the_text():
    model = build(variant="vision-only")
    images, ids, mask = inputs(build())
    assert torch.equal(model(images, ids, mask).logits, model(images, ids * 0, ~mask).logits)


def test_attention_is_a_distribution_over_patches():
    model = build()
    output = model(*inputs(model), need_attention=True)
    patches = model.image_encoder(inputs(model)[0]).patches.shape[1]
    assert output.attention.shape == (BATCH, patches)
    assert torch.allclose(output.attention.sum(-1), torch.ones(BATCH), atol=1e-5)
    quiet = model(*inputs(model))
    assert quiet.attention is None
    assert torch.allclose(quiet.logits, output.logits, atol=1e-5)


def test_study_routing_makes_one_decision_per_study_and_token_routing_one_per_real_token():
    model = build()
    images, ids, mask = inputs(model)
    assert model(images, ids, mask).stats.num_tokens == BATCH
    tokens = build(route_on="token")
    patches = tokens.image_encoder(images).patches.shape[1]
    output = tokens(images, ids, mask)
    assert output.stats.num_tokens == BATCH * patches + mask.sum()
    assert output.routed.sum() == output.stats.num_tokens


def test_the_papers_single_ffn_has_an_experts_size():
    dense, sparse = build(variant="single-ffn").experts, build().experts
    assert isinstance(dense, FFN)
    assert isinstance(sparse, SparseMoE)
    one_expert = sum(p[0].numel() for p in sparse.experts.parameters())
    assert sum(p.numel() for p in dense.parameters()) == one_expert


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("route_on", ["study", "token"])
def test_the_ffn_without_experts_multiplies_as_often_as_the_experts_of_a_decision(top_k, route_on):
    options = {"top_k": top_k, "route_on": route_on}
    dense, sparse = build(variant="no-moe", **options).experts, build(**options).experts
    per_expert = sum(p[0].numel() for p in sparse.experts.parameters() if p.ndim == 3)
    assert sum(p.numel() for p in dense.parameters() if p.ndim == 2) == top_k * per_expert


def test_what_the_variants_keep():
    parts = ("experts", "fusion", "text_encoder", "gate")
    kept = {
        name: tuple(part for part in parts if getattr(build(variant=name), part, None) is not None)
        for name in get_args(Variant)
    }
    assert kept == {
        "full": parts,
        "no-moe": parts,
        "single-ffn": parts,
        "no-fusion": ("experts", "text_encoder", "gate"),
        "no-text": ("experts", "fusion", "gate"),
        "vision-only": (),
    }
    assert [name for name in kept if has_experts(build(variant=name).config)] == ["full", "no-fusion", "no-text"]


def test_the_printed_balancing_loss_is_zero_whatever_the_router_does():
    stats = build()(*inputs(build())).stats
    assert balance_loss("printed", stats, stats.tokens_per_expert).item() == pytest.approx(0, abs=1e-6)
    assert balance_loss("switch", stats, stats.tokens_per_expert).item() > 0.5


def test_balancing_takes_its_shares_from_all_micro_batches_of_the_step():
    model = build()
    stats = model(*inputs(model)).stats
    losses = BalanceLosses(TrainConfig())
    losses(stats)
    value, _ = losses(stats)
    assert torch.equal(losses.counts, 2 * stats.tokens_per_expert)
    assert torch.allclose(value, balance_loss("switch", stats, stats.tokens_per_expert))
    assert losses.step_done().sum() == 4 * BATCH
    assert losses.counts is None


@pytest.mark.parametrize("task", ["multi-class", "ordinal-regression", "binary-class"])
def test_single_label_tasks_give_probabilities_that_sum_to_one(task):
    model = build(task=task, text=False)
    output = model(*inputs(model))
    assert torch.allclose(model.head.probs(output.logits).sum(-1), torch.ones(BATCH), atol=1e-5)


def test_defaults_are_the_papers_widths():
    config = ModelConfig()
    assert (config.dim, config.num_experts, config.top_k, config.expert_hidden_dim) == (512, 8, 2, 4 * 2 * 512)


def test_predicting_no_study_is_an_error():
    with pytest.raises(ValueError, match="batches must hold at least one study, got none"):
        predict_batches(build(), [], device=torch.device("cpu"))


def test_a_dynamic_router_uses_as_many_experts_as_reach_the_mass():
    model = build(router="dynamic", top_k=4, mass=0.6)
    images, ids, mask = inputs(model)
    output = model(images, ids, mask)
    kept = output.routing.kept
    assert (output.routing.gates.sum(-1) >= 0.6).all()
    assert output.stats.tokens_per_expert.sum() == kept.sum()
    assert balance_loss("dynamic", output.stats, output.stats.tokens_per_expert) > 0
    batch = Batch(images, ids, mask, torch.ones(BATCH, 5), torch.arange(BATCH))
    usage = predict_batches(model, [batch], device=torch.device("cpu")).usage
    assert ((usage > 0).sum(1) == kept.sum(1).numpy()).all()
    lone = build(router="dynamic", top_k=4, mass=0.01)(images, ids, mask)
    assert lone.stats.tokens_per_expert.sum() == BATCH


@pytest.mark.parametrize(
    ("router", "balance"), [("dynamic", "cv2"), ("dynamic", "bias"), ("dynamic", "fitted"), ("top-k", "dynamic")]
)
def test_ways_to_balance_that_a_router_lacks_are_refused(router, balance):
    with pytest.raises(ValueError, match=rf"balance \(--balance\) '{balance}' does not go with router \(--router\)"):
        build(router=router, balance=balance)
