"""A small Mixture-of-Experts language model, pretrained on any number of processes.

Experts are divided among ``--experts-over`` ranks (:func:`moekit.distributed.expert_parallel_`), all else among all
ranks by FSDP2. Experts are balanced without a loss: biases of the router move with the counts of all ranks. Checkpoints
fit any other number of ranks; a run that was killed goes on from its last one, with the same batches (for
``--max-restarts`` of torchrun see docs/scale.md)::

    python examples/lm_pretrain.py
    torchrun --nproc-per-node 4 examples/lm_pretrain.py --experts-over 2 --checkpoints runs/lm

Text is what ``--text`` names, byte by byte; by default Python's own language reference, as it ships in ``pydoc_data``.
"""

import argparse
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from pydoc_data import topics

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from moekit import FFNExperts, RouterStats, SparseMoE, TopKRouter, all_reduce_stats, bias_update_rate
from moekit.distributed import Checkpoints, clip_grad_norm_, expert_parallel_

BYTES = 256


class Block(nn.Module):
    """Causal attention, then a sparse layer, each behind a norm and added to its input."""

    def __init__(self, dim: int, heads: int, hidden_dim: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2))
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        router = TopKRouter(dim, experts, top_k, scoring="sigmoid", selection_bias=True)
        self.moe = SparseMoE(router, FFNExperts(dim, hidden_dim, experts, init_scale=1.0))

    def forward(self, x: Tensor) -> tuple[Tensor, RouterStats]:
        """Takes ``(B, S, D)``; returns the same and the statistics of the router."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y, stats = self.moe(self.norms[1](x))
        return x + y, stats


class LanguageModel(nn.Module):
    """Predicts the next byte."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(BYTES, options.dim), nn.Embedding(options.length, options.dim)
        self.blocks = nn.ModuleList(
            Block(options.dim, options.heads, options.hidden_dim, options.experts, options.top_k)
            for _ in range(options.layers)
        )
        self.norm, self.head = nn.RMSNorm(options.dim), nn.Linear(options.dim, BYTES, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[RouterStats]]:
        """Takes ids ``(B, S)``; returns logits ``(B, S, 256)`` and statistics of each block."""
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        stats = []
        for block in self.blocks:
            x, own = block(x)
            stats.append(own)
        return self.head(self.norm(x)), stats


def read_text(path: Path | None) -> Tensor:
    """Returns the bytes of a file, or of Python's language reference."""
    data = "\n".join(topics.topics.values()).encode() if path is None else path.read_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def batch(text: Tensor, step: int, rank: int, ranks: int, options: argparse.Namespace) -> Tensor:
    """Returns this rank's rows ``(B / ranks, S + 1)`` of the batch of a step, which the step alone decides."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
    starts = torch.randint(len(text) - options.length - 1, (options.batch,), generator=generator)[rank::ranks]
    return torch.stack([text[start : start + options.length + 1] for start in starts.tolist()]).long()


def divide(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Experts among the ranks of ``ep``, and everything by FSDP2 among those that would hold the same."""
    expert_parallel_(model, mesh["ep"])
    everyone = mesh["dp", "ep"]._flatten("everyone")
    for block in model.blocks:
        fully_shard(block.moe.experts, mesh=mesh["dp"])
        fully_shard(block, mesh=everyone)
    fully_shard(model, mesh=everyone)


def train(options: argparse.Namespace, report: Callable[[str], None]) -> dict[str, list[float]]:
    """Trains; returns each step's loss, largest load of an expert in multiples of an even one, and seconds."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if ranks % options.experts_over or options.batch % ranks:
        raise SystemExit(f"--experts-over must divide the {ranks} ranks, and these --batch {options.batch}.")
    torch.manual_seed(options.seed)
    mesh = init_device_mesh(device, (ranks // options.experts_over, options.experts_over), mesh_dim_names=("dp", "ep"))
    model = LanguageModel(options).to(device)
    divide(model, mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.1, foreach=False)
    checkpoints = Checkpoints(options.checkpoints) if options.checkpoints else None
    first = (checkpoints.load(model, optimizer) or 0) if checkpoints else 0
    history = {"loss": [], "largest load": [], "seconds": []}
    text, started = read_text(options.text), time.perf_counter()
    for step in range(first, options.steps):
        began = time.perf_counter()
        ids = batch(text, step, rank, ranks, options).to(device)
        logits, stats = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model, 1.0)
        optimizer.param_groups[0]["lr"] = options.learning_rate * min(1.0, (step + 1) / options.warmup)
        optimizer.step()
        summed = all_reduce_stats([each.detach() for each in stats])
        counts = [each.tokens_per_expert for each in summed]
        for block, count in zip(model.blocks, counts, strict=True):
            block.moe.router.update_bias_(count, rate=bias_update_rate(step, start=options.bias_rate))
        total = loss.detach().clone()
        dist.all_reduce(total)
        history["loss"].append(total.item() / ranks)
        history["largest load"].append(max((count.max() / count.float().mean()).item() for count in counts))
        history["seconds"].append(time.perf_counter() - began)
        if (step + 1) % options.report_every == 0 or step + 1 == options.steps:
            rate = (step + 1 - first) * options.batch * options.length / (time.perf_counter() - started)
            report(
                f"step {step + 1:5d}  loss {history['loss'][-1]:.3f}  largest load of an expert "
                f"{history['largest load'][-1]:.2f} times an even one  {rate:,.0f} tokens/s"
            )
        if checkpoints and (step + 1) % options.save_every == 0:
            checkpoints.save(step + 1, model, optimizer, asynchronous=options.asynchronous)
    if checkpoints:
        checkpoints.wait()
    return history


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file to learn from")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16, help="sequences of all ranks together in a step")
    parser.add_argument("--length", type=int, default=128, help="bytes of a sequence")
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--hidden-dim", type=int, default=128, help="of an expert")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--experts-over", type=int, default=1, help="ranks that divide the experts among them")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=20, help="steps in which the learning rate rises")
    parser.add_argument("--bias-rate", type=float, default=1e-2, help="of the bias of an expert, in the first step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", type=Path, help="folder to save to, and to go on from")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    parser.add_argument("--asynchronous", action="store_true", help="write checkpoints in a thread")
    parser.add_argument("--report-every", type=int, default=20, help="steps")
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a rank that stalls is an error")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    """Runs under torchrun, or alone."""
    options = parse(arguments)
    backend, timeout = "nccl" if torch.cuda.is_available() else "gloo", timedelta(seconds=options.timeout)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        return train(options, print if dist.get_rank() == 0 else lambda line: None)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
