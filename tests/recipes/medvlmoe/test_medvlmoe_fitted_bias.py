"""A fitted selection bias: equal loads whatever the scores, and experts that live where a loss leaves them dead."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit import TopKRouter
from recipes.medvlmoe import train
from recipes.medvlmoe.__main__ import _expert_warnings
from recipes.medvlmoe.build import load_model
from recipes.medvlmoe.config import Config, tiny
from recipes.medvlmoe.fitted_bias import ROWS, WINDOW, RecentDecisions, balanced_bias, fit_bias_
from recipes.medvlmoe.prepare import check_training
from recipes.medvlmoe.validate import dead_experts


def load_of(scores: torch.Tensor, bias: torch.Tensor, top_k: int) -> torch.Tensor:
    chosen = (scores + bias).topk(top_k, dim=-1).indices
    return chosen.flatten().bincount(minlength=scores.shape[1]) / chosen.numel()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 30.0]), st.integers(1, 3))
def test_loads_are_equal_whatever_is_common_to_all_studies(seed: int, common: float, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(400, 8, generator=generator) + common * torch.randn(8, generator=generator)
    load = load_of(scores, balanced_bias(scores, top_k), top_k)
    assert load.sub(1 / 8).abs().max() < 0.01


def test_scores_along_one_direction_use_all_experts() -> None:
    """A linear router of studies that differ along one direction only: without bias two experts on each side win."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(512, 1, generator=generator) * torch.randn(1, 8, generator=generator)
    assert (load_of(logits, torch.zeros(8), 2) > 0).sum() == 4
    scores = logits.softmax(-1)
    assert load_of(scores, balanced_bias(scores, 2), 2).min() > 1 / 16


def test_weights_leave_decisions_out_and_the_start_is_kept_where_it_balances() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(300, 4, generator=generator)
    padded = torch.cat([scores, torch.full((100, 4), 9.0)])
    weights = (torch.arange(400) < 300).float()
    assert load_of(scores, balanced_bias(padded, 2, weights=weights), 2) == pytest.approx([0.25] * 4, abs=0.01)
    bias = balanced_bias(scores, 2)
    assert torch.equal(balanced_bias(padded, 2, weights=weights), bias)
    again = balanced_bias(scores, 2, start=bias, sweeps=1)
    assert again == pytest.approx(bias.tolist(), abs=0.02)
    assert balanced_bias(scores, 4).tolist() == [0] * 4  # every decision takes all
    with pytest.raises(ValueError, match="scores must hold at least one decision, got none"):
        balanced_bias(scores[:0], 2)


def test_the_window_holds_the_last_steps_and_no_more_than_so_many_rows() -> None:
    router = TopKRouter(4, 8, 2, selection_bias=True)
    recent = RecentDecisions()
    assert recent.end_step() is None
    recent.add(router(torch.randn(10, 4)))
    recent.add(router(torch.randn(6, 4), mask=torch.arange(6) < 4))
    rows = recent.end_step()
    assert rows is not None
    assert rows.shape == (16, 9)
    recent.add(router(torch.randn(3 * ROWS - 1, 4)))
    rows = recent.end_step()
    assert rows is not None
    assert 16 + ROWS - 2 <= len(rows) <= 16 + ROWS
    for _ in range(WINDOW):
        recent.add(router(torch.randn(5, 4)))
        rows = recent.end_step()
    assert rows is not None
    assert len(rows) == 5 * WINDOW
    fit_bias_(router, rows, sweeps=8)
    assert load_of(rows[:, :-1], router.selection_bias, 2) == pytest.approx([1 / 8] * 8, abs=0.02)
    recent.clear()
    recent.add(router(torch.randn(5, 4)))
    rows = recent.end_step()
    assert rows is not None
    assert len(rows) == 5


def small(tmp_path, **settings) -> Config:
    config = tiny()
    return replace(
        config,
        out=tmp_path / str(settings),
        data=replace(
            config.data, phantom=replace(config.data.phantom, train_studies=96, val_studies=40, test_studies=4)
        ),
        model=replace(config.model, image_size=64, image_stride=32, dim=32, expert_hidden_dim=32, text_tokens=24),
        train=replace(config.train, epochs=1, accelerator="cpu", **settings),
    )


def test_all_experts_live_after_one_epoch_and_the_record_says_so(tmp_path, capsys) -> None:
    config = small(tmp_path)
    assert config.train.balance == "fitted"
    train.main(config)
    record = json.loads((config.out / "history.jsonl").read_text())
    assert sum(record["load"]) == pytest.approx(1)
    assert record["val_live_experts"] >= 6
    assert record["val_load_entropy"] > 1.8
    printed = capsys.readouterr().out
    assert f"experts {record['val_live_experts']}/8 live" in printed
    model = load_model(config.out)[0]
    assert model.experts.router.selection_bias.abs().max() > 0


def test_dead_experts_of_the_kept_epoch_are_said_in_words() -> None:
    collapsed = [0.02, 0.49, 0.24, 0.07, 0.15, 0.0, 0.03, 0.0]
    state = {
        "best_epoch": 2,
        "history": [{"epoch": 1, "val_load": [1 / 8] * 8}, {"epoch": 2, "val_load": collapsed}],
    }
    assert "4 of 8 experts are dead (0, 5, 6, 7)" in dead_experts(state, 78, 2)
    assert dead_experts(state | {"best_epoch": 1}, 78, 2) is None
    assert dead_experts({"best_epoch": 1, "history": [{"epoch": 1}]}, 78, 2) is None


def test_a_coefficient_without_a_loss_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"balance_weight \(--balance-weight\) is not for balance 'fitted'.*--balance"):
        check_training(small(tmp_path, balance_weight=0.1))
    check_training(small(tmp_path, balance_weight=0.1, balance="switch"))


def test_evaluate_prints_the_warning_of_each_seed_and_nothing_of_healthy_runs() -> None:
    assert _expert_warnings({"experts": {"val_and_test": {"warning": "2 of 8 ..."}}}) == ["warning: 2 of 8 ..."]
    assert _expert_warnings({"experts": {"val_and_test": {"warning": None}}}) == []
    assert _expert_warnings({"experts": None}) == []
    assert _expert_warnings({"runs": ["seed-0", "seed-1"], "expert_warnings": {"seed-1": "1 of 8"}}) == [
        "warning: seed-1: 1 of 8"
    ]
