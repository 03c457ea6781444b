"""Table 3: what one expert costs, and that only one runs."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from recipes.medmoe.config import tiny
from recipes.medmoe.flops import counting
from recipes.medmoe.flops import stage as flops
from recipes.medmoe.model import MedMoE
from recipes.shared.encoders.pyramid import load_pyramid_encoder


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The rows of the paper preset, and its json."""
    path = tmp_path_factory.mktemp("flops") / "new" / "flops.json"
    rows = flops.main(json=path)
    return {row.name: row for row in rows}, json.loads(path.read_text())


@pytest.fixture
def one_counter(monkeypatch):
    """Leaves out fvcore, which takes most of the time, where it is not what is tested."""
    monkeypatch.setattr(counting, "_fvcore_macs", lambda module, images: 0)


def test_the_image_side_keeps_to_the_budget_with_one_expert_active(paper):
    ours = paper[0]["medmoe (ours)"]
    assert ours.params_total <= 37e6
    assert ours.gmacs <= 7.8
    assert (ours.experts_run, ours.experts_active) == (1, 1)
    assert ours.params_active < ours.params_total
    alone = paper[0]["swin-t alone"]
    assert 27e6 < alone.params_total == alone.params_active < 28e6
    assert 4.4 < alone.gmacs < 4.6


def test_the_counted_cost_is_that_of_the_formulas(paper):
    rows = paper[0]
    ours, alone, everything = rows["medmoe (ours)"], rows["swin-t alone"], rows["medmoe, all experts run"]
    places, width, dim = 28 * 28, 192, 768
    attention = 65_028_096 + 16_795_632  # projections, and heads at each scale's own resolution: CrossScaleAttention
    expert = attention + 3 * 9 * width**2 * places
    beside = 768 * dim + (768 * 256 + 256 * 6) + width * dim * places  # embedding, router, regions
    assert ours.flops - alone.flops == 2 * (expert + beside)
    assert everything.flops - ours.flops == 2 * 5 * expert
    assert everything.params_total == everything.params_active == ours.params_total
    assert everything.experts_run == 6
    assert everything.experts_active == 1
    assert (ours.params_total - ours.params_active) % 5 == 0


def test_both_counters_agree(paper):
    for row in paper[0].values():
        assert row.flops == pytest.approx(2e9 * row.gmacs)
        assert row.fvcore_gmacs == pytest.approx(row.gmacs, rel=0.01)
        assert row.counters_agree


def test_the_json_holds_the_table(paper):
    rows, written = paper
    assert [row["name"] for row in written["rows"]] == list(rows)
    assert written["rows"][1]["gmacs"] == rows["medmoe (ours)"].gmacs
    assert written["image_size"] == 224
    assert written["num_experts"] == 6
    assert written["paper_prints"]["medmoe (ours)"] == "37 M, 7.8 G"


def test_more_experts_cost_no_more_operations_than_their_logits(one_counter, capsys):
    _, one, all_of_one = flops.main(preset="tiny", num_experts=1)
    _, six, all_of_six = flops.main(preset="tiny")
    assert six.flops - one.flops == 2 * 64 * (6 - 1)  # the router's last layer, 64 wide
    assert six.params_total - one.params_total > 5 * 9 * 32 * 32  # a 3x3 convolution 32 wide each, at least
    assert all_of_one.flops == one.flops
    assert all_of_six.flops > six.flops + 5 * 2 * 9 * 32 * 32 * 12 * 12  # which runs over 12 x 12 regions
    printed = capsys.readouterr().out
    assert "test_resnet alone" in printed
    assert "paper prints\n" in printed
    assert "The paper's G" not in printed


def test_a_size_can_be_chosen(one_counter):
    small = flops.main(preset="tiny", image_size=64, expert_dim=16)
    large = flops.main(preset="tiny", expert_dim=16)
    assert large[0].flops / small[0].flops == pytest.approx(96**2 / 64**2, rel=0.01)
    assert large[1].params_total == small[1].params_total


def _ours(route_on):
    config = replace(tiny().model, route_on=route_on)
    encoder = load_pyramid_encoder(config.image_encoder, config.image_size, weights="random")
    side = counting.ImageSide(MedMoE(config, encoder, counting.NoText(config)).eval(), run_all=False)
    return counting._count("medmoe (ours)", side, torch.zeros(1, 3, config.image_size, config.image_size))


@pytest.mark.parametrize(("route_on", "width"), [("image", 96), ("text", 128), ("label", None)])
def test_the_router_that_there_is_counts(one_counter, route_on, width):
    ours, least = _ours(route_on), _ours("label")
    router = 0 if width is None else 64 * width + 6 * 64
    assert ours.flops - least.flops == 2 * router
    assert ours.params_total - least.params_total == (router + 64 + 6 + 2 * width if router else 0)


def test_counters_that_disagree_are_marked(monkeypatch, capsys):
    honest = counting._fvcore_macs
    monkeypatch.setattr(counting, "_fvcore_macs", lambda module, images: int(honest(module, images) * 1.05))
    rows = flops.main(preset="tiny")
    assert not any(row.counters_agree for row in rows)
    assert capsys.readouterr().out.count("the counters differ by 5.0%") == 3


def test_mistakes_are_errors(monkeypatch):
    with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
        flops.main(preset="tiny", num_experts=0)
    with pytest.raises(ValueError, match=r"cannot be used at 2 x 2 pixels .* give another --image-size"):
        flops.main(image_size=2)
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    with pytest.raises(ImportError, match=r"counting operations twice needs fvcore.*pip install \"moekit\[recipes\]\""):
        flops.main(preset="tiny")
