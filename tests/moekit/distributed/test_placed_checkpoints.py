"""Checkpoints and files of placed experts are in the order of the experts: any placement or process loads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from moekit import SparseMoE
from moekit.distributed import Checkpoints, expert_parallel_, rebalance_
from moekit.distributed.placed import placed_banks
from moekit.interop.hub import from_pretrained, save_pretrained
from tests.moekit.distributed.cases import replicas_alike
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.distributed.test_expert_checkpoints import load_without_ranks
from tests.moekit.distributed.test_expert_gradients import Model
from tests.moekit.distributed.test_placed_experts import FOUR, PLACEMENTS, Trained

pytestmark = pytest.mark.slow

STEPS = 2
Whole = dict[str, Tensor]


def whole(trained: Trained) -> Whole:
    """Weights and states of the optimizer, of all experts in their order."""
    model, optimizer = get_state_dict(trained.model, trained.optimizer)
    states = {f"{name}:{key}": value for name, own in optimizer["state"].items() for key, value in own.items()}
    return gathered({**model, **states})


def gathered(state: dict[str, Any]) -> Whole:
    whole = {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()}
    return {name: each.detach().clone() for name, each in whole.items()}


def save(folder: str, data: int, experts: int, options: dict[str, bool], move: bool) -> tuple[Whole, list[float]]:
    trained = Trained(data, experts, **options)
    for _ in range(STEPS):
        trained.step()
    if move:
        rebalance_(trained.model, trained.optimizer, PLACEMENTS[experts][1])
    Checkpoints(folder).save(STEPS, trained.model, trained.optimizer)
    return whole(trained), [trained.step() for _ in range(STEPS)]


def load(folder: str, data: int, experts: int, options: dict[str, bool]) -> tuple[Whole, list[float], bool]:
    trained = Trained(data, experts, **options)
    assert Checkpoints(folder).load(trained.model, trained.optimizer, strict=False) == STEPS
    state, alike = whole(trained), trained.replicas_alike() if placed_banks(trained.model) else True
    return state, [trained.step() for _ in range(STEPS)], alike


FOUR_RANKS = (1, 4, {})
MATRIX = {
    "moved before": (FOUR_RANKS, True, FOUR_RANKS),
    "onto two ranks beside two": (FOUR_RANKS, True, (2, 2, {})),
    "onto sharded ones": (FOUR_RANKS, False, (2, 2, {"sharded": True})),
    "from sharded ones": ((2, 2, {"sharded": True}), True, FOUR_RANKS),
    "onto contiguous ones": (FOUR_RANKS, True, (1, 4, {"placed": False})),
    "from contiguous ones": ((2, 2, {"placed": False}), False, FOUR_RANKS),
}


@pytest.mark.parametrize("case", MATRIX)
def test_another_placement_goes_on_as_the_one_that_saved(ranks: Ranks, tmp_path: Path, case: str) -> None:
    saved, move, loaded = MATRIX[case]
    results = ranks.run(save, str(tmp_path), *saved, move)
    stored: Whole = {}
    for state, _ in results:
        stored.update(state)
    for state, losses, alike in ranks.run(load, str(tmp_path), *loaded):
        assert alike
        assert losses == pytest.approx(results[0][1], rel=1e-10)
        for name, value in state.items():
            assert torch.equal(value, stored[name]), name


def test_a_plain_model_loads_it_too(ranks: Ranks, tmp_path: Path) -> None:
    state = ranks.run(save, str(tmp_path), *FOUR_RANKS, True)[0][0]
    names = [name for name, _ in Model().named_parameters()]
    for name, value in zip(names, load_without_ranks(str(tmp_path / f"step-{STEPS:08d}")), strict=True):
        assert name not in state or torch.equal(value, state[name]), name


def save_and_load_by_torch(folder: str) -> bool:
    """Without ``Checkpoints``, with an optimizer that was prepared."""
    one, other = Trained(1, 4), Trained(1, 4)
    for _ in range(STEPS):
        one.step()
    model, optimizer = get_state_dict(one.model, one.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    rebalance_(other.model, other.optimizer, PLACEMENTS[4][1])
    model, optimizer = get_state_dict(other.model, other.optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(other.model, other.optimizer, model_state_dict=model, optim_state_dict=state["optimizer"])
    mine, theirs = whole(one), whole(other)
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_state_dicts_of_torch(ranks: Ranks, tmp_path: Path) -> None:
    assert all(ranks.run(save_and_load_by_torch, str(tmp_path)))


def full_state() -> bool:
    """Tensors of all experts on every rank, written and read by torch."""
    options = StateDictOptions(full_state_dict=True)
    one, other = Trained(1, 4), Trained(1, 4)
    one.step()
    model, optimizer = get_state_dict(one.model, one.optimizer, options=options)
    mine = {name: each.clone() for name, each in model.items()}
    rebalance_(other.model, other.optimizer, PLACEMENTS[4][1])
    own = {name: each for name, each in mine.items() if not name.startswith("second.experts.")}
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_state_dict(other.model, other.optimizer, model_state_dict=own, optim_state_dict=optimizer, options=options)
    theirs, expected = whole(other), whole(one)
    return all(torch.equal(theirs[name], each) for name, each in expected.items() if name.startswith("first."))


def test_full_state_dicts_of_torch(ranks: Ranks) -> None:
    assert all(ranks.run(full_state))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(SparseMoE.ffn(6, 5, 7, 2) for _ in range(2)))


def files(folder: str) -> tuple[dict[str, Tensor], bool]:
    """Writes files of placed experts, and reads them into others from the meta device."""
    mesh = division(1, 4).mesh["ep"]
    save_pretrained(expert_parallel_(layers(), mesh, placement=FOUR), folder)
    other = from_pretrained(
        folder,
        model=layers(),
        divide=lambda model: expert_parallel_(model, mesh, placement={"0": PLACEMENTS[4][1], "1": FOUR}),
    )
    assert [bank.placement for bank in placed_banks(other)] == [PLACEMENTS[4][1], FOUR]
    alike = [replicas_alike(bank, each) for bank in placed_banks(other) for each in bank.parameters()]
    return gathered(other.state_dict()), all(alike)


def test_files_are_those_of_the_whole_model(ranks: Ranks, tmp_path: Path) -> None:
    expected = layers().state_dict()
    for state, alike in ranks.run(files, str(tmp_path)):
        assert alike
        assert state.keys() == expected.keys()
        for name, value in state.items():
            assert torch.equal(value, expected[name]), name
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in expected.items())


def from_meta() -> tuple[bool, tuple[int, ...]]:
    """Weights that are drawn after the division: replicas have the same."""
    with torch.device("meta"):
        model = expert_parallel_(layers(), division(1, 4).mesh["ep"], placement=FOUR)
    shape = tuple(model.state_dict()["0.experts.up_proj"].shape)
    model.to_empty(device="cpu")
    banks = placed_banks(model)
    for bank in banks:
        bank.reset_parameters()
    alike = [replicas_alike(bank, each) for bank in banks for each in bank.parameters()]
    differ = banks[0].up_proj.to_local().std(0).min() > 0  # experts are not copies of each other
    return all(alike) and bool(differ), shape


def test_weights_drawn_on_the_ranks(ranks: Ranks) -> None:
    assert ranks.run(from_meta) == [(True, (7, 10, 6))] * 4


def wrong_rows() -> str:
    model = expert_parallel_(layers(), division(1, 4).mesh["ep"], placement=FOUR)
    state = dict(model.named_parameters())  # of slots
    with pytest.raises(RuntimeError) as raised:
        model.load_state_dict(state)
    return str(raised.value)


def test_rows_of_slots_are_no_state(ranks: Ranks) -> None:
    for message in ranks.run(wrong_rows):
        assert "0.experts.up_proj: tensor must have a row for each of 7 experts, got 12" in message
