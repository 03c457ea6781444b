"""``python -m benchmarks scale``: what dividing experts among up to 10,000 GPUs would cost, computed.

Nothing is run. Bytes and messages are those of the exchanges, which tests count on real collectives; seconds follow
from speeds that are assumed, and are shown so that each assumption can be changed.
"""

import argparse

from benchmarks.options import OptionError
from benchmarks.scale.model import EXCHANGES, Layer, Machine, Prediction, predict

GPUS = (8, 64, 512, 4096, 10240)
RANKS = (8, 64)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    layer, machine = Layer(), Machine()
    parser.add_argument("--gpu-count", type=int, nargs="+", default=list(GPUS), help="GPUs that train")
    parser.add_argument("--rank-count", type=int, nargs="+", default=list(RANKS), help="GPUs that divide the experts")
    for name, default in layer._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help="of the layer")
    parser.add_argument("--tflops", type=float, default=machine.flops / 1e12, help="that the experts reach")
    parser.add_argument("--within", type=float, default=machine.within / 1e9, help="GB/s of a GPU within its node")
    parser.add_argument("--between", type=float, default=machine.between / 1e9, help="GB/s of a GPU between nodes")
    parser.add_argument("--latency", type=float, default=machine.latency * 1e6, help="microseconds of a message")
    parser.add_argument("--node", type=int, default=machine.node, help="GPUs of a node")
    parser.add_argument("--overlap", type=float, default=machine.overlap, help="share that other work hides, 0 to 1")


def main(options: argparse.Namespace) -> int:
    """Prints the table."""
    if not 0 <= options.overlap <= 1:
        raise OptionError(f"--overlap must be from 0 to 1, got {options.overlap}.")
    layer = Layer(*(getattr(options, name) for name in Layer._fields))
    machine = Machine(
        options.tflops * 1e12,
        options.within * 1e9,
        options.between * 1e9,
        options.latency * 1e-6,
        options.node,
        options.overlap,
    )
    print(table(layer, machine, options.gpu_count, options.rank_count))
    return 0


def table(layer: Layer, machine: Machine, gpus: list[int], ranks: list[int]) -> str:
    """Returns the predictions as a table in Markdown; combinations that do not divide are left out."""
    lines = [
        f"One layer: T={layer.tokens} tokens a GPU, D={layer.dim}, F={layer.hidden_dim}, E={layer.num_experts}, "
        f"K={layer.top_k}, bfloat16, uniform routing. Assumed: {machine.flops / 1e12:g} TFLOP/s, "
        f"{machine.within / 1e9:g} GB/s within a node of {machine.node}, {machine.between / 1e9:g} GB/s between, "
        f"{machine.latency * 1e6:g} us a message, {machine.overlap:.0%} hidden.",
        "",
        "| GPUs | over | exchange | MB within a node | MB between | messages | compute ms | exchanges ms | data ms | "
        "efficiency |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for count in gpus:
        for over in ranks:
            if over <= count and not count % over and not layer.num_experts % over:
                lines += [_line(predict(layer, machine, count, over, exchange)) for exchange in EXCHANGES]
    return "\n".join(lines)


def _line(p: Prediction) -> str:
    return (
        f"| {p.gpus} | {p.ranks} | {p.exchange} | {p.within / 1e6:.0f} | {p.between / 1e6:.0f} | {p.messages} | "
        f"{p.compute * 1e3:.1f} | {p.exchanged * 1e3:.1f} | {p.data * 1e3:.1f} | {p.efficiency:.2f} |"
    )
