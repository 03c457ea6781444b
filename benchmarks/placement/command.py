"""``python -m benchmarks placement``: how even ranks would be with experts placed by their past loads, simulated.

Nothing is trained. Of loads over time, drawn by Zipf's law or recorded, each placement is made from the windows before
and applied to the next: equal chunks of experts, experts placed, and placed with replicas. What is counted are the
tokens of the most loaded rank, in multiples of the mean, which is what all others wait for.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.options import OptionError, add_out
from benchmarks.placement.loads import Drawn, recorded_loads, zipf_loads
from benchmarks.placement.pictures import draw
from benchmarks.placement.simulate import Outcome, Scheme, simulate


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("--loads", default="zipf", help="zipf, a routing record, or runs.jsonl of benchmarks balance")
    parser.add_argument("--ranks", type=int, default=8, help="that divide the experts")
    parser.add_argument("--nodes", type=int, default=1, help="of equal numbers of ranks, over which replicas spread")
    parser.add_argument(
        "--replica-count", type=int, nargs="+", help="slots beyond one for each expert; one and two a rank"
    )
    parser.add_argument("--history", type=int, default=1, help="windows that a placement is made from")
    parser.add_argument("--every", type=int, default=1, help="windows from one placement to the next")
    recorded = parser.add_argument_group("of a file")
    recorded.add_argument("--layer", help="by default the last one")
    recorded.add_argument("--line", type=int, default=0, help="of a .jsonl file, from 0")
    drawn = parser.add_argument_group("of zipf")
    drawn.add_argument("--experts", type=int, default=64)
    drawn.add_argument("--windows", type=int, default=50)
    drawn.add_argument("--slots", type=int, default=100_000, help="of a window: tokens times experts per token")
    drawn.add_argument("--exponent", type=float, default=1.0)
    drawn.add_argument("--drift", type=float, default=0.1, help="share of the experts that change places, by window")
    drawn.add_argument("--seed", type=int, default=0)
    add_out(parser, "file of the page, with the picture beside it")


def main(options: argparse.Namespace) -> int:
    """Simulates, prints the table, and writes the page where asked."""
    for name, least in (("windows", 2), ("history", 1), ("every", 1), ("slots", 1), ("ranks", 1), ("nodes", 1)):
        if getattr(options, name) < least:
            raise OptionError(f"--{name} must be at least {least}, got {getattr(options, name)}.")
    if not 0 <= options.drift <= 1:
        raise OptionError(f"--drift must be from 0 to 1, got {options.drift}.")
    if options.ranks % options.nodes:
        raise OptionError(f"--nodes must divide the {options.ranks} ranks, got {options.nodes}.")
    mesh = (options.ranks,) if options.nodes == 1 else (options.nodes, options.ranks // options.nodes)
    if options.loads == "zipf":
        about = (
            f"{options.experts} experts, Zipf's law with exponent {options.exponent:g}, {options.drift:.0%} of the "
            f"experts change places from window to window, {options.slots:,} slots a window, seed {options.seed}"
        )
        fields = (getattr(options, name) for name in Drawn._fields)
        loads = zipf_loads(Drawn(*fields))
    else:
        layer, loads = recorded_loads(Path(options.loads), options.layer, options.line)
        about = f"{loads.shape[1]} experts of {layer} in {options.loads}, line {options.line}"
    replicas = [options.ranks, 2 * options.ranks] if options.replica_count is None else options.replica_count
    schemes = [Scheme("contiguous", None), Scheme("placed", 0)]
    schemes += [Scheme(f"{count} replicas", count) for count in replicas]
    try:
        outcomes = [simulate(loads, mesh, scheme, history=options.history, every=options.every) for scheme in schemes]
    except ValueError as error:
        raise OptionError(f"--ranks, --replica-count and the loads do not fit: {error}") from error
    where = f" on {options.nodes} nodes" if options.nodes > 1 else ""
    heading = (
        f"{about}; {options.ranks} ranks{where}, {len(loads)} windows. Placed every {options.every} from the last "
        f"{options.history}."
    )
    text = f"{heading}\n\n{table(outcomes)}"
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        picture = draw(outcomes, options.out.with_suffix(".svg"))
        options.out.write_text(
            f"# Balance of ranks by placement\n\n{text}\n\n![The most loaded rank over the windows.]({picture.name})\n"
        )
    return 0


def table(outcomes: Sequence[Outcome]) -> str:
    """Returns the outcomes as a table in Markdown."""
    count = len(outcomes[0].ratios)
    places = sorted({0, count // 2, count - 1})
    columns = [f"window {place + 2}" for place in places]
    lines = [
        f"| | slots a rank | max / mean, mean | 90% of windows | worst | {' | '.join(columns)} | if known before | "
        "moved |",
        f"|---|{'---:|' * (len(places) + 6)}",
    ]
    for each in outcomes:
        ninety = sorted(each.ratios)[math.ceil(0.9 * count) - 1]
        numbers = [mean(each.ratios), ninety, max(each.ratios), *(each.ratios[place] for place in places)]
        cells = [f"{number:.2f}" for number in (*numbers, mean(each.known))]
        lines.append(f"| {each.scheme.name} | {each.slots} | {' | '.join(cells)} | {mean(each.moved):.0%} |")
    return "\n".join(lines)
