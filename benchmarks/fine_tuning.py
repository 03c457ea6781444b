"""``python -m benchmarks fine-tuning``: ways to fine-tune the experts of a layer, and experts in int8.

Trained by a step forward and backward: all weights, none (the gradient of the tokens alone), adapters of
``moekit.lora``, the same beside experts in int8, and adapters of peft on the stacked weights. Run forward: experts in
their dtype and in int8, for several numbers of tokens. Times are taken in turn; the peak of memory is that of one step,
in which gradients are made anew.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.memory import allocated_peak, peaks
from benchmarks.options import add_device, add_dtype, add_out, add_processor_time, add_seconds
from benchmarks.records import Record, write
from benchmarks.shapes import DTYPES
from benchmarks.timing import Clock, Step, time_in_turn
from moekit import SparseMoE
from moekit.lora import add_lora_
from moekit.quantization import quantize_experts_

FEW_TOKENS = (1, 16)
"""Numbers of tokens of the runs forward, before that of the options."""


class Sizes(NamedTuple):
    """T, D, F, E, K and the rank of the adapters."""

    tokens: int = 256
    dim: int = 512
    hidden: int = 1024
    experts: int = 32
    top_k: int = 4
    rank: int = 8

    def __str__(self) -> str:
        return f"T={self.tokens} D={self.dim} F={self.hidden} E={self.experts} K={self.top_k} r={self.rank}"


class Block(nn.Module):
    """A model of one layer."""

    def __init__(self, moe: SparseMoE) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, x: Tensor) -> Tensor:
        """Returns the output of the layer."""
        return self.moe(x).output


def _trained(block: Block, sizes: Sizes) -> nn.Module:
    return block


def _frozen(block: Block, sizes: Sizes) -> nn.Module:
    return block.requires_grad_(False)


def _grouped(block: Block, sizes: Sizes) -> nn.Module:
    add_lora_(block, rank=sizes.rank)
    return block


def _on_int8(block: Block, sizes: Sizes) -> nn.Module:
    quantize_experts_(block)
    return _grouped(block, sizes)


def _peft(block: Block, sizes: Sizes) -> nn.Module:
    import peft

    names = ["moe.experts.up_proj", "moe.experts.down_proj"]
    config = peft.LoraConfig(r=sizes.rank, target_modules=[], target_parameters=names)
    return peft.get_peft_model(block, config)


WAYS: dict[str, tuple[str, Callable[[Block, Sizes], nn.Module]]] = {
    "full": ("all weights are trained", _trained),
    "frozen": ("none; the gradient of the tokens alone", _frozen),
    "moekit.lora": ("grouped adapters", _grouped),
    "moekit.lora, int8": ("grouped adapters beside experts in int8", _on_int8),
    "peft": ("adapters of peft on the stacked weights", _peft),
}


def build(way: str, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Returns a layer that is fine-tuned in one of the ways; the weights are the same in all."""
    torch.manual_seed(0)
    options = {"device": device, "dtype": dtype}
    block = Block(SparseMoE.ffn(sizes.dim, sizes.hidden, sizes.experts, sizes.top_k, **options))
    for parameter in block.moe.experts.parameters():  # so that outputs are not small beside their errors
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return WAYS[way][1](block, sizes)


def rows(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Draws tokens, which get a gradient."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sizes.tokens, sizes.dim, generator=generator).to(device, dtype).requires_grad_()


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Returns a loss; gradients that were there before are dropped first."""
    model.zero_grad()
    x.grad = None
    return model(x).float().square().mean()


def peak_of(model: nn.Module, x: Tensor) -> int:
    """Returns the peak memory of a step above weights and tokens, in bytes; on CPU what torch allocates."""
    if x.device.type == "cuda":
        return peaks(lambda: loss_of(model, x), lambda loss: loss.backward(), x.device).step
    return allocated_peak(lambda: loss_of(model, x).backward())


def train_records(options: argparse.Namespace) -> list[Record]:
    """Returns a record of each way to train."""
    sizes, device, dtype = _setting(options)
    steps: dict[str, Step] = {}
    records: list[Record] = []
    for way, (remark, _) in WAYS.items():
        model, x = build(way, sizes, device, dtype), rows(sizes, device, dtype)
        steps[way] = Step(lambda _, model=model, x=x: loss_of(model, x).backward())
        numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
        base = Record("case", way, preset=str(sizes), dtype=options.dtype, direction="forward+backward")
        base = dataclasses.replace(base, remark=f"{remark}; {numbers:,} numbers are trained")
        records.append(dataclasses.replace(base, peak_step_bytes=peak_of(model, x)))
    times = time_in_turn(steps, device, seconds=options.seconds * len(steps), clock=_clock(options))
    return [record.timed(times[record.name]) for record in records]


def run_records(options: argparse.Namespace) -> list[Record]:
    """Returns records of experts in their dtype and in int8, forward."""
    sizes, device, dtype = _setting(options)
    plain, quantised = (build("frozen", sizes, device, dtype) for _ in range(2))
    quantize_experts_(quantised)
    layers = {"float": plain, "int8": quantised}
    weights = {
        name: sum(tensor.nbytes for tensor in layer.get_submodule("moe.experts").state_dict().values())
        for name, layer in layers.items()
    }
    records: list[Record] = []
    for tokens in (*FEW_TOKENS, sizes.tokens):
        x = rows(sizes._replace(tokens=tokens), device, dtype).detach()
        with torch.no_grad():
            exact, output = plain(x).double(), quantised(x).double()
            steps = {name: Step(lambda _, layer=layer, x=x: layer(x)) for name, layer in layers.items()}
            seconds = options.seconds * len(steps)
            times = time_in_turn(steps, device, seconds=seconds, most=2000, clock=_clock(options))
        error = float((output - exact).norm() / exact.norm())
        for name in layers:
            base = Record("case", name, preset=str(sizes._replace(tokens=tokens)), dtype=options.dtype)
            base = dataclasses.replace(base, direction="forward", errors={"output": 0.0 if name == "float" else error})
            base = dataclasses.replace(base, remark=f"weights of {weights[name] / 2**20:.1f} MiB")
            records.append(base.timed(times[name]))
    return records


def _setting(options: argparse.Namespace) -> tuple[Sizes, torch.device, torch.dtype]:
    sizes = Sizes(*(getattr(options, name) for name in Sizes._fields))
    return sizes, torch.device(options.device), DTYPES[options.dtype]


def _clock(options: argparse.Namespace) -> Clock:
    return time.process_time if options.processor_time else time.perf_counter


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    for name, default in Sizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default)
    add_device(parser)
    add_dtype(parser, "fp32")
    add_seconds(parser, 5.0)
    add_processor_time(parser)
    add_out(parser, "file of records, written anew")


def line(record: Record) -> str:
    """Returns a record as a row of a table."""
    times = f"{record.median_ms:.1f} ({record.p20_ms:.1f} to {record.p80_ms:.1f})"
    peak = "" if record.peak_step_bytes is None else f"peak {record.peak_step_bytes / 2**20:.0f} MiB, "
    error = "".join(f"error {error:.1e}, " for error in record.errors.values())
    return f"| {record.direction} | {record.preset} | {record.name} | {times} ms | {peak}{error}{record.remark} |"


def main(options: argparse.Namespace) -> int:
    """Measures, prints, writes."""
    about = environment(torch.device(options.device))
    records = [
        dataclasses.replace(each, environment=about) for each in (*train_records(options), *run_records(options))
    ]
    for record in records:
        print(line(record))
    if options.out is not None:
        write(options.out, records)
    return 0
