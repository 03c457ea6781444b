"""The global and the local loss over ranks: two processes on CPU against one with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from moekit import all_gather_with_gradient, global_contrastive_loss, local_contrastive_loss

RANKS, BATCH, WIDTH = 2, 3, 4
TEXTS = (0, 1, 2, 1, 0, 1)  # equal texts on different ranks
CASES = {"different": None, "equal": TEXTS}


def make_towers() -> tuple[torch.nn.Linear, torch.nn.Linear, Tensor]:
    """Two encoders and a learned scale."""
    torch.manual_seed(0)
    image, text = (torch.nn.Linear(WIDTH, 5, dtype=torch.float64) for _ in range(2))
    return image, text, torch.tensor(2.0, dtype=torch.float64, requires_grad=True)


def make_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(RANKS * BATCH, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))


def step(rows: slice, texts: tuple[int, ...] | None, gather: bool, group: dist.ProcessGroup | None = None) -> dict:
    """Loss of some rows, and the gradients of all parameters."""
    image_tower, text_tower, scale = make_towers()
    image, text = (x[rows] for x in make_data())
    ids = None if texts is None else torch.tensor(texts)[rows]
    loss = global_contrastive_loss(
        image_tower(image), text_tower(text), logit_scale=scale, text_ids=ids, gather=gather, group=group
    )
    parameters = [*image_tower.parameters(), *text_tower.parameters(), scale]
    return {"loss": loss.detach(), "gradients": torch.autograd.grad(loss, parameters)}


def local_step(rows: slice, form: str, gather: bool) -> dict:
    """Local loss of some rows; the second half has longer texts, one of them without words, and masked regions."""
    region_tower, word_tower, scale = make_towers()
    generator = torch.Generator().manual_seed(2)
    regions, words = (
        torch.randn(RANKS * BATCH, places, WIDTH, generator=generator, dtype=torch.float64) for places in (5, 4)
    )
    word_mask = torch.arange(4) < torch.tensor([2, 3, 1, 4, 0, 2])[:, None]
    region_mask = torch.arange(5) < torch.tensor([5, 3, 5, 2, 5, 4])[:, None]
    longest = int(word_mask[rows].sum(1).max())
    options: dict = {"temperatures": (scale, 5.0, 10.0), "word_softmax": form == "equal"}
    if form == "equal":
        options |= {"text_ids": torch.tensor(TEXTS)[rows], "region_mask": region_mask[rows]}
    mask = word_mask[rows, :longest]
    contrast = local_contrastive_loss(
        region_tower(regions[rows]), word_tower(words[rows, :longest]), mask, gather=gather, **options
    )
    parameters = [*region_tower.parameters(), *word_tower.parameters(), scale]
    gradients = torch.autograd.grad(contrast.loss, parameters)
    return {"loss": contrast.loss.detach(), "gradients": gradients, "scores": contrast.scores.detach()}


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    rows = slice(rank * BATCH, (rank + 1) * BATCH)
    result: dict = {name: step(rows, texts, gather=True) for name, texts in CASES.items()}
    result |= {f"local {name}": local_step(rows, name, gather=True) for name in CASES}
    result["alone"] = step(rows, TEXTS, gather=False)
    alone = [dist.new_group([member]) for member in range(RANKS)][rank]  # a rank of the whole is not one of the group
    result["group"] = step(rows, TEXTS, gather=True, group=alone)
    x = torch.full((1, 2), float(rank + 1), requires_grad=True)
    gathered = all_gather_with_gradient(x)
    (gathered * torch.tensor([[10.0], [100.0]]) * (rank + 1)).sum().backward()
    result["gathered"], result["gradient"] = gathered.detach(), x.grad
    result["strided"] = all_gather_with_gradient(torch.arange(6).view(3, 2).T + 10 * rank)
    try:
        all_gather_with_gradient(torch.ones(2 + rank, 2))
    except ValueError as error:
        result["uneven"] = str(error)
    try:
        all_gather_with_gradient(torch.tensor(1.0))
    except ValueError as error:
        result["scalar"] = str(error)
    torch.save(result, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, args=(str(folder),), nprocs=RANKS, join=True)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", list(CASES))
def test_losses_and_gradients_averaged_over_ranks_are_those_of_the_whole_batch(ranks: list[dict], case: str) -> None:
    expected = step(slice(None), CASES[case], gather=False)
    torch.testing.assert_close(torch.stack([result[case]["loss"] for result in ranks]).mean(), expected["loss"])
    averaged = [torch.stack(parts).mean(0) for parts in zip(*(r[case]["gradients"] for r in ranks), strict=True)]
    torch.testing.assert_close(averaged, list(expected["gradients"]))


@pytest.mark.parametrize("case", list(CASES))
def test_the_local_loss_too_is_that_of_the_whole_batch(ranks: list[dict], case: str) -> None:
    expected, results = local_step(slice(None), case, gather=True), [result[f"local {case}"] for result in ranks]
    torch.testing.assert_close(torch.stack([result["loss"] for result in results]).mean(), expected["loss"])
    averaged = [torch.stack(parts).mean(0) for parts in zip(*(r["gradients"] for r in results), strict=True)]
    torch.testing.assert_close(averaged, list(expected["gradients"]))
    torch.testing.assert_close(torch.cat([result["scores"] for result in results]), expected["scores"])


def test_without_gathering_and_in_a_group_of_one_a_rank_compares_its_own_pairs(ranks: list[dict]) -> None:
    for rank, result in enumerate(ranks):
        expected = step(slice(rank * BATCH, (rank + 1) * BATCH), TEXTS, gather=False)
        for how in ("alone", "group"):
            torch.testing.assert_close(result[how]["loss"], expected["loss"])
            torch.testing.assert_close(result[how]["gradients"], expected["gradients"])


def test_rows_come_in_the_order_of_ranks_and_gradients_of_all_ranks_add_up(ranks: list[dict]) -> None:
    for rank, result in enumerate(ranks):
        torch.testing.assert_close(result["gathered"], torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
        torch.testing.assert_close(result["gradient"], torch.full((1, 2), (10.0, 100.0)[rank] * (1 + 2)))
        assert result["strided"].tolist() == [[0, 2, 4], [1, 3, 5], [10, 12, 14], [11, 13, 15]]


def test_uneven_batches_are_refused_on_every_rank(ranks: list[dict]) -> None:
    for result in ranks:
        assert result["uneven"].startswith("x must have as many rows on every rank, got [2, 3] over ranks.")
        assert result["scalar"] == "x must have rows to concatenate, got a tensor without dimensions."


def test_without_a_process_group_nothing_is_gathered() -> None:
    x = torch.randn(3, 2)
    assert all_gather_with_gradient(x) is x
    torch.testing.assert_close(step(slice(None), TEXTS, gather=True), step(slice(None), TEXTS, gather=False))
