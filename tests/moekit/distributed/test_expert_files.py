"""Divided models as safetensors files: those of the whole model, and no rank reads or writes more than its share."""

import itertools
import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from moekit import FFN, FFNExperts, ModuleExperts, SparseMoE, TopKRouter, ZeroComputationExperts, ZeroExpert
from moekit.distributed import expert_parallel_
from moekit.interop.hub import from_pretrained, save_pretrained
from moekit.interop.hub.chunks import Chunk, Place, Reader, write_chunk
from tests.moekit.distributed.ranks import Ranks, division

pytestmark = pytest.mark.slow

DIM = 6


class Model(nn.Module):
    """Layers with experts of three kinds, of two dtypes, and a weight of two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(DIM, DIM, bias=False)
        stacked = FFNExperts(DIM, 40, 7, bias=True, activation="gelu")
        zero = ZeroComputationExperts(FFNExperts(DIM, 40, 4, dtype=torch.float64), num_zero=1)
        modules = ModuleExperts([nn.Linear(DIM, DIM, bias=i != 2) if i != 1 else ZeroExpert() for i in range(7)])
        self.first = SparseMoE(TopKRouter(DIM, 7, 2, selection_bias=True), stacked, shared=FFN(DIM, 5, gated=True))
        self.second = SparseMoE(TopKRouter(DIM, 5, 2, dtype=torch.float64), zero, capacity_factor=1.5)
        self.third = SparseMoE(TopKRouter(DIM, 7, 2), modules)
        self.head = nn.Linear(DIM, DIM, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.first(x).output
        x = x + self.second(x.double()).output.float()
        return self.head(x + self.third(x).output)


def randomized() -> Model:
    model = Model()
    for tensor in model.state_dict().values():
        nn.init.normal_(tensor, std=0.5)
    return model


def divide(model: nn.Module, data: int, experts: int, how: str = "") -> nn.Module:
    divided = division(data, experts)
    expert_parallel_(model, divided.mesh["ep"])
    if "checkpointed" in how:
        model.first = checkpoint_wrapper(model.first)
    if "sharded" in how:
        warnings.simplefilter("ignore")  # torch's own, of views that hooks of FSDP return
        whole = divided.mesh["dp", "ep"]._flatten("all_ranks")
        for layer in (model.first, model.second):
            fully_shard(layer.experts, mesh=divided.mesh["dp"])
            fully_shard(layer, mesh=whole)
        ignored = set(model.third.parameters())  # modules of a list, each on its own rank
        fully_shard(model, mesh=whole, ignored_params=ignored)
    return model


def written(folder: str, data: int, experts: int, how: str, size: int) -> tuple[int, list[str]] | None:
    """Saves, and counts the bytes that this rank writes and the tensors that it gathers."""
    divided = division(data, experts)
    if divided is None:
        return None
    model = divide(randomized(), data, experts, how)
    sent, gathered = [0], []
    plain, whole = os.pwrite, DTensor.full_tensor

    def counting(descriptor: int, content: Any, at: int) -> int:
        sent[0] += len(content)
        return plain(descriptor, content, at)

    def recording(tensor: DTensor, **options: Any) -> Tensor:
        gathered.append(str(tensor.shape))
        return whole(tensor, **options)

    os.pwrite, DTensor.full_tensor = counting, recording
    try:
        save_pretrained(model, folder, max_shard_size=size, process_group=divided.group)
    finally:
        os.pwrite, DTensor.full_tensor = plain, whole
    return sent[0], gathered


WAYS = [(1, 2, ""), (1, 4, "checkpointed"), (2, 2, ""), (2, 2, "sharded"), (2, 2, "sharded and checkpointed")]


@pytest.mark.parametrize("size", [10**9, 3000])
@pytest.mark.parametrize(("data", "experts", "how"), WAYS)
def test_files_are_those_of_the_whole_model(ranks: Ranks, tmp_path: Path, data, experts, how, size) -> None:
    save_pretrained(randomized(), tmp_path / "whole", max_shard_size=size)
    (tmp_path / "divided").mkdir()
    (tmp_path / "divided" / "model-00001-of-00077.safetensors").touch()  # of an earlier saving
    results = ranks.run(written, str(tmp_path / "divided"), data, experts, how, size)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "divided").iterdir()) == names
    total = 0
    for name in names:
        mine, theirs = tmp_path / "divided" / name, tmp_path / "whole" / name
        if name.endswith(".json"):
            assert json.loads(mine.read_text()) == json.loads(theirs.read_text())
            continue
        tensors, expected = load_file(mine), load_file(theirs)
        assert tensors.keys() == expected.keys()
        for key, tensor in expected.items():
            assert tensors[key].dtype == tensor.dtype
            assert torch.equal(tensors[key], tensor), key
            total += tensor.nbytes
    bytes_of_rank = [result[0] for result in results if result is not None]
    assert sum(bytes_of_rank) == total
    # Each writes about its share: the rows of one expert are the most by which they can differ.
    assert max(bytes_of_rank) < total / len(bytes_of_rank) + 2 * 4 * 40 * DIM
    assert not any(result[1] for result in results if result is not None)


def loaded(folder: str, data: int, experts: int, how: str) -> tuple[dict[str, Tensor], Tensor, int, list[Any]]:
    """Weights and output of a divided model that reads a folder, and the bytes that its rank holds and reads."""
    warnings.simplefilter("ignore")
    logging.disable()  # torch's own, of gathering in two steps
    model = Model()
    model.first.capacity_factor = 9.0  # that of the folder comes in its place
    read, plain = [0], Reader.read

    def counting(reader: Reader, chunk: Chunk) -> Tensor:
        tensor = plain(reader, chunk)
        read[0] += tensor.nbytes
        return tensor

    Reader.read = counting
    try:
        model = from_pretrained(folder, model=model, divide=lambda each: divide(each, data, experts, how))
    finally:
        Reader.read = plain
    facts = [model.head.weight is model.embed.weight, model.training, model.second.capacity_factor]
    x = torch.randn(9, DIM, generator=torch.Generator().manual_seed(dist.get_rank()))
    with torch.no_grad():
        output = model(x)
    state = model.state_dict()
    weights = {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in state.items()}
    logging.disable(logging.NOTSET)
    return weights, output, read[0], facts


@pytest.mark.parametrize(
    ("data", "experts", "how", "share"), [(1, 4, "checkpointed", 0.4), (2, 2, "sharded", 0.4), (2, 2, "", 0.65)]
)
def test_a_divided_model_reads_its_rows(ranks: Ranks, tmp_path: Path, data, experts, how, share) -> None:
    save_pretrained(randomized(), tmp_path, max_shard_size=3000)
    whole = from_pretrained(tmp_path, model=Model())
    state, seen = whole.state_dict(), set()
    total = sum(each.nbytes for each in state.values())
    for rank, (weights, output, read, facts) in enumerate(ranks.run(loaded, str(tmp_path), data, experts, how)):
        for name, tensor in weights.items():
            assert torch.equal(tensor, state[name]), name
        seen |= weights.keys()
        x = torch.randn(9, DIM, generator=torch.Generator().manual_seed(rank))
        with torch.no_grad():
            expected = whole(x)
        assert (output - expected).norm() < 1e-5 * expected.norm()
        assert facts == [True, False, 1.5]
        assert read < total * share
    assert seen == state.keys()


def from_nothing(folder: str) -> str:
    mesh = division(1, 4).mesh["ep"]
    layer = from_pretrained(folder, divide=lambda each: expert_parallel_(each, mesh))
    return repr(layer.experts.up_proj.to_local().tolist())


def test_a_layer_is_built_of_its_description(ranks: Ranks, tmp_path: Path) -> None:
    layer = SparseMoE.ffn(DIM, 3, num_experts=8, top_k=2)
    save_pretrained(layer, tmp_path)
    for rank, weight in enumerate(ranks.run(from_nothing, str(tmp_path))):
        assert weight == repr(layer.experts.up_proj[2 * rank : 2 * rank + 2].tolist())


def errors(folder: str) -> list[str]:
    """What is raised where the group is too small, a file cannot be written, and a wrapper cannot be rebuilt."""
    model = divide(randomized(), 1, 4)
    alone = [dist.new_group([rank]) for rank in range(4)][dist.get_rank()]
    messages, plain = [], os.pwrite

    def failing(*arguments: Any) -> int:
        raise PermissionError("no")

    with pytest.raises(ValueError, match="hold every value") as raised:
        save_pretrained(model, folder, process_group=alone)
    messages.append(str(raised.value))
    if dist.get_rank() == 2:
        os.pwrite = failing
    try:
        with pytest.raises(OSError, match=r"no$") as raised:
            save_pretrained(model, folder)
    finally:
        os.pwrite = plain
    messages.append(str(raised.value))
    model.first.shared = nn.Sequential(nn.Linear(DIM, DIM))
    model.first.shared.forward = lambda x: x
    with pytest.raises(ValueError, match="a forward of its own"):
        save_pretrained(model, folder)
    return messages


def test_errors(ranks: Ranks, tmp_path: Path) -> None:
    for rank, (group, write) in enumerate(ranks.run(errors, str(tmp_path))):
        assert "pass the group of all ranks that the model is divided among" in group
        assert write == ("no" if rank == 2 else "rank 2 could not write its part: PermissionError: no")
    assert not (tmp_path / "moekit.json").exists()


@given(shape=st.lists(st.integers(1, 4), max_size=4), data=st.data())
def test_blocks_are_written_at_their_place(shape: list[int], data: st.DataObject) -> None:
    """Of a tensor that is cut in any dimensions."""
    cuts = [data.draw(st.integers(0, size)) for size in shape]
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn]))
    tensor = torch.randint(-2, 3, shape).to(dtype)
    with tempfile.NamedTemporaryFile() as file:
        place = Place("", 8, tensor)
        for ends in itertools.product(*(((0, cut), (cut, size)) for cut, size in zip(cuts, shape, strict=True))):
            chunk = Chunk("x", tuple(a for a, _ in ends), tuple(b - a for a, b in ends))
            block = tensor[tuple(slice(a, b) for a, b in ends)] if ends else tensor
            write_chunk(file.fileno(), place, chunk, block)
        file.seek(8)
        content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    assert torch.equal(content, tensor.contiguous().view(-1).view(torch.uint8))
