"""The search for tiles, with an invented timer."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import tune
from benchmarks.shapes import PRESETS
from benchmarks.tile_search import (
    RejectedError,
    Trial,
    as_json,
    best,
    candidates,
    distance,
    impossible,
    search,
    with_entry,
)
from moekit_kernels.configs import KINDS, GemmConfig, committed, gemm_config, load, override
from moekit_kernels.runtime import Launch
from moekit_kernels.targets import GFX942, SM_80, SM_90, TARGETS

CURRENT = GemmConfig(128, 128, 64, 8, 8, 3, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_hold_possible_tiles_for_every_target(kind):
    """And the arithmetic leaves some of them everywhere."""
    for target in (SM_80, SM_90, GFX942):
        possible = [config for config in candidates(kind, 0) if impossible(config, kind, 2, target) is None]
        assert len(possible) > 5
        assert len(set(possible)) == len(possible)


def test_unknown_kinds_are_named():
    """The message lists those that exist."""
    with pytest.raises(ValueError, match=r"kind must be one of forward, .*, got 'backward'"):
        candidates("backward", 0)


def test_what_does_not_fit_or_would_spill_is_not_tried():
    """128 x 128 x 64 in bf16 takes 32 KiB a stage; three do not fit 64 KiB; 256 x 256 spills with 8 warps."""
    assert impossible(CURRENT, "forward", 2, SM_90) is None
    assert impossible(CURRENT, "forward", 2, GFX942) is None
    reason = impossible(CURRENT._replace(num_stages=4), "forward", 2, GFX942)
    assert reason == "needs 98304 bytes of shared memory, gfx942 has 65536"
    spilling = CURRENT._replace(block_m=256, block_n=256, block_k=32)
    assert impossible(spilling, "forward", 2, SM_90) == "would spill: 256 accumulators a thread"
    assert impossible(CURRENT._replace(block_n=256), "glu", 2, SM_90) is not None
    two = CURRENT._replace(per_processor=2, num_stages=5)
    assert "shared memory" in (impossible(two, "forward", 2, SM_90) or "")


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_committed_tiles_pass_the_same_arithmetic(name):
    """One program of each fits; how many run on a processor at once is not checked here."""
    for kind, dtypes in committed()[name].items():
        for dtype, entries in dtypes.items():
            for _, config in entries:
                alone = GemmConfig(*config)._replace(per_processor=1)
                assert impossible(alone, kind, 2 if dtype == "16-bit" else 4, TARGETS[name]) is None


def test_the_search_finds_the_fastest_and_skips_the_rejected():
    """A timer for which BLOCK_N = 256 is the fastest, on two workloads of different length; some tiles are refused."""
    tried: list[GemmConfig] = []

    def timer(config: GemmConfig) -> list[float]:
        tried.append(config)
        if config.num_warps == 4:
            raise RejectedError("spills 8 bytes")
        cost = 1 + distance(config, CURRENT._replace(block_n=256))
        return [cost, 10 * cost]

    trials = search(candidates("forward", 96), CURRENT, timer, seconds=1e9)
    assert tried[0] == CURRENT
    assert len(tried) == len(set(tried)) == len(trials)
    assert best(trials).config == CURRENT._replace(block_n=256)
    assert best(trials).score == pytest.approx(0.5)
    assert {trial.reason for trial in trials if trial.score is None} == {"spills 8 bytes"}
    assert all(trial.config.num_warps == 4 for trial in trials if trial.score is None)


def test_the_search_ends_when_its_time_is_over_with_the_neighbours_first():
    """A clock that advances a second per look."""
    seconds = iter(range(1000))
    trials = search(candidates("forward", 96), CURRENT, lambda _: [1.0], 5.0, clock=lambda: float(next(seconds)))
    assert 2 <= len(trials) <= 6
    assert all(distance(trial.config, CURRENT) <= 1 for trial in trials)


def test_noise_does_not_replace_a_committed_tile():
    """One percent is not worth a change; three are."""
    other = CURRENT._replace(group_m=4)
    assert best([Trial(CURRENT, 1.0), Trial(other, 0.99)]).config == CURRENT
    assert best([Trial(CURRENT, 1.0), Trial(other, 0.97)]).config == other
    with pytest.raises(ValueError, match="trials must hold at least the committed configuration"):
        best([])


def test_the_table_is_read_back_by_the_kernels(tmp_path):
    """What is written is what ``gemm_config`` gives under ``override``."""
    table = {"sm_90": committed()["sm_90"]}
    least = table["sm_90"]["forward"]["16-bit"][0][0]
    changed = with_entry(table, "sm_90", "forward", "16-bit", least, CURRENT)
    assert table["sm_90"]["forward"]["16-bit"][0][1] != list(CURRENT)
    path = tmp_path / "configs.json"
    path.write_text(as_json(changed))
    assert json.loads(path.read_text()) == changed
    with override(load(path)):
        assert gemm_config("forward", SM_90, torch.bfloat16, least) == CURRENT
    assert with_entry({}, "new", "glu", "16-bit", 0, CURRENT) == {"new": {"glu": {"16-bit": [[0, list(CURRENT)]]}}}


def test_workloads_fall_into_one_class_of_rows():
    """By rows an expert; small batches go to a kernel of their own."""
    qwen = PRESETS["qwen3-30b-a3b"]
    assert [tune.in_class(qwen, [0, 96], least, few_rows=False) for least in (0, 96)] == [False, True]
    recipe = PRESETS["medvlmoe-paper"]
    assert tune.in_class(recipe, [0], 0, few_rows=True)
    assert not tune.in_class(recipe, [0], 0, few_rows=False)
    assert set(tune.PASSES) == set(KINDS)


def test_a_search_is_summed_up_in_a_line():
    """How many were tried and rejected."""
    trials = [Trial(CURRENT, 1.0), Trial(CURRENT._replace(group_m=4), 0.5), Trial(CURRENT._replace(group_m=2), None)]
    line = tune.summary("forward", 96, trials, trials[1], possible=9)
    assert line.endswith("0.500 of the committed one's time; 3 tried of 10, 1 rejected")
    assert "stays" in tune.summary("forward", 96, trials, trials[0], possible=9)


@pytest.mark.parametrize(
    ("arguments", "num_stages", "on_trial"),
    [
        ({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_E": 0}, 4, True),
        ({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "BLOCK_E": 128}, 4, True),
        ({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64, "BLOCK_E": 128}, 4, False),
        ({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128}, 4, False),  # no kernel for few rows
        ({"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "BLOCK_E": 0}, 3, False),
        ({}, 4, False),  # no product
    ],
)
def test_narrow_strips_are_on_trial_with_the_tile_they_are_made_of(arguments, num_stages, on_trial):
    """Half as wide and twice as deep, in the kernels for few rows."""
    launch = Launch(None, (1,), arguments, num_warps=4, num_stages=num_stages)
    assert tune.is_on_trial(launch, GemmConfig(16, 64, 64, 1, 4, 4, 2)) == on_trial


@pytest.mark.parametrize(
    ("config", "allow_spills", "rejected"),
    [(CURRENT, False, True), (CURRENT, True, False), (CURRENT._replace(block_m=64), False, False)],
)
def test_a_tile_on_trial_that_spills_is_rejected_unless_allowed(config, allow_spills, rejected):
    """Another kernel of the same pass, with another tile, may spill."""
    pytest.importorskip("triton")

    kernel = {(1,): lambda **arguments: SimpleNamespace(n_spills=24)}  # by its grid, as a kernel of Triton
    launch = Launch(kernel, (1,), {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, 8, 3)
    if rejected:
        with pytest.raises(RejectedError, match="spills 24 bytes"):
            tune.reject_bad_code(launch, config, allow_spills)
    else:
        tune.reject_bad_code(launch, config, allow_spills)
