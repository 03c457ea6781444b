"""Divided models read and write checkpoints of transformers, each rank its own experts and rows."""

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from moekit.distributed import ExpertPlacement, expert_parallel_
from moekit.interop import load_transformers_, save_transformers
from moekit.interop.hub.chunks import Chunk, Reader
from tests.moekit.distributed.ranks import Ranks, division
from tests.moekit.test_interop_files import Block, tensors_in, with_layers, without_weights
from tests.moekit.transformers_families import MARKS, model_of

pytestmark = [*MARKS, pytest.mark.slow, pytest.mark.usefixtures("quiet_transformers")]


def read_and_written(theirs: str, mine: str, kind: type, data: int, experts: int, sharded: bool) -> list[int]:
    """Loads a checkpoint and saves it again; the bytes that this rank read and wrote, and the gathers it made."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    divided = division(data, experts)
    config = transformers.AutoConfig.from_pretrained(theirs)
    like = without_weights(kind(config))
    torch.manual_seed(torch.distributed.get_rank())
    model = expert_parallel_(with_layers(kind(config)), divided.mesh["ep"])
    if sharded:
        whole = divided.mesh["dp", "ep"]._flatten("all_ranks")
        for each in [each for each in model.modules() if isinstance(each, Block)]:
            fully_shard(each.moe.experts, mesh=divided.mesh["dp"])
            fully_shard(each, mesh=whole)
        fully_shard(model, mesh=whole)
    counts, read, write, gather = [0, 0, 0], Reader.read, os.pwrite, DTensor.full_tensor

    def reading(reader: Reader, chunk: Chunk) -> torch.Tensor:
        tensor = read(reader, chunk)
        counts[0] += tensor.nbytes
        return tensor

    def writing(descriptor: int, content: Any, at: int) -> int:
        counts[1] += len(content)
        return write(descriptor, content, at)

    def gathering(*arguments: Any, **options: Any) -> torch.Tensor:
        counts[2] += 1
        return gather(*arguments, **options)

    Reader.read, os.pwrite, DTensor.full_tensor = reading, writing, gathering
    try:
        load_transformers_(model, like, theirs)
        save_transformers(model, like, mine, max_shard_size=30000)
    finally:
        Reader.read, os.pwrite, DTensor.full_tensor = read, write, gather
    return counts


@pytest.mark.parametrize(
    ("family", "data", "experts", "sharded"),
    [("mixtral", 1, 4, False), ("gpt_oss", 2, 2, True), ("qwen2_moe", 2, 2, True), ("dbrx", 2, 2, False)],
)
def test_each_rank_reads_and_writes_its_part(ranks: Ranks, tmp_path: Path, family, data, experts, sharded) -> None:
    model: Any = model_of(family, tie_word_embeddings=family != "dbrx")
    model.save_pretrained(tmp_path / "theirs", max_shard_size=30000)
    folders = str(tmp_path / "theirs"), str(tmp_path / "mine")
    counts = ranks.run(read_and_written, *folders, type(model), data, experts, sharded)
    theirs, mine = tensors_in(tmp_path / "theirs"), tensors_in(tmp_path / "mine")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
    assert (tmp_path / "mine" / "config.json").read_text() == (tmp_path / "theirs" / "config.json").read_text()
    loaded = type(model).from_pretrained(tmp_path / "mine").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded[name], tensor), name

    total = sum(each.nbytes for each in theirs.values())
    of_experts = sum(each.nbytes for name, each in theirs.items() if "experts." in name and "shared" not in name)
    whole = total if sharded else total - of_experts  # of what FSDP divides, each rank has a part too
    for read, written, gathered in counts:
        held = total / 4 if sharded else whole + of_experts / experts
        assert read <= held * 1.05
        assert written <= total / 4 * 1.3
        assert gathered == 0
    assert sum(written for _, written, _ in counts) == total


def placed(theirs: str, mine: str, kind: type) -> None:
    config = transformers.AutoConfig.from_pretrained(theirs)
    placement = ExpertPlacement(((0, 1), (2, 0), (3, 1), (1, 2)))
    model = expert_parallel_(with_layers(kind(config)), division(1, 4).mesh["ep"], placement=placement)
    like = without_weights(kind(config))
    load_transformers_(model, like, theirs)
    save_transformers(model, like, mine)


def test_placed_experts(ranks: Ranks, tmp_path: Path) -> None:
    """In files they are in their own order, each once."""
    model: Any = model_of("mixtral")
    model.save_pretrained(tmp_path / "theirs")
    ranks.run(placed, str(tmp_path / "theirs"), str(tmp_path / "mine"), type(model))
    theirs, mine = tensors_in(tmp_path / "theirs"), tensors_in(tmp_path / "mine")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name
