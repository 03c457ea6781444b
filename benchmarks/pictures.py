"""Pictures of a run, for light and dark pages: speed relative to the ceiling, the roofline, how cost grows.

The same records give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ceilings import ceilings_of
from benchmarks.curve_tables import GROWS, LABELS, PROCESSOR_TIME, measured, memory_label, memory_of
from benchmarks.records import Record
from benchmarks.shapes import DIRECTIONS, DTYPES, Shape

_OURS, _OTHERS = "#1f6f8b", "#b5b5b5"
_DARK = f"""@media (prefers-color-scheme: dark) {{
text {{fill: #e8edf3}}
[style*="fill: #ffffff"] {{fill: #161d26 !important}}
[style*="stroke: #000000"] {{stroke: #a9b6c4 !important}}
[style*="fill: {_OURS}"] {{fill: #4fb0cf !important}}
[style*="stroke: {_OURS}"] {{stroke: #4fb0cf !important}}
}}"""
"""Colours of a dark page; matplotlib writes those of a light one into each element."""


def pyplot() -> Any:
    """Returns matplotlib's module, set to write the same bytes again."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "moekit", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    return pyplot


def save_picture(figure: Any, path: Path) -> Path:
    """Writes a figure as SVG for light and dark pages, and closes it."""
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    pyplot().close(figure)
    text = path.read_text().replace("</style>", f"\n{_DARK}</style>", 1)
    lines = text.splitlines()  # matplotlib ends lines of paths with a blank
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n")
    return path


def draw_bars(records: Sequence[Record], path: Path) -> Path | None:
    """Draws the speed relative to a dense network of as many operations; None without any.

    A panel has one workload in one section: ratios of another section are of another process, or of another time.
    """
    measured = [r for r in records if r.kind == "case" and r.of_dense is not None]
    direction = next((d for d in reversed(DIRECTIONS) if any(r.direction == d for r in measured)), None)
    panels: dict[tuple[str, str], list[Record]] = {}
    for record in measured:
        if record.direction == direction:
            panels.setdefault((record.workload(), record.section), []).append(record)
    if not panels:
        return None
    heights = [1 + 0.22 * len(rows) for rows in panels.values()]
    figure, axes = pyplot().subplots(
        len(panels), 1, figsize=(7, sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, ((workload, section), rows) in zip(axes[:, 0], panels.items(), strict=True):
        ordered = sorted(rows, key=lambda r: r.of_dense or 0)
        colours = [_OURS if r.name.startswith("moekit") else _OTHERS for r in ordered]
        bars = axis.barh([r.name for r in ordered], [r.of_dense for r in ordered], color=colours)
        # The line of the dense network passes behind bars and figures.
        axis.bar_label(bars, fmt="%.2f", padding=2, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
        axis.axvline(1, color="black", linewidth=0.8, zorder=0.5)
        what = f"{direction}, section {section}" if section not in ("", "criteria") else direction
        axis.set_title(f"{workload}: {what}", fontsize=8, loc="left")
        axis.set_xlabel("speed relative to a dense network of as many operations")
        axis.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, path)


def draw_roofline(records: Sequence[Record], path: Path) -> Path | None:
    """Draws the rate against the operations per byte, under the ceilings of the run; None without ceilings."""
    ours = [r for r in records if r.kind == "case" and r.tflops and r.gbps and r.name.startswith("moekit")]
    others = [r for r in records if r.kind == "case" and r.tflops and r.gbps and not r.name.startswith("moekit")]
    dtype = next((name for name in DTYPES if any(r.dtype == name for r in ours)), "")
    limits = ceilings_of(list(records), dtype)
    if limits is None or not ours:
        return None
    figure, axis = pyplot().subplots(figsize=(7, 4.5), layout="constrained")
    for rows, colour, label in ((others, _OTHERS, "others"), (ours, _OURS, "moekit")):
        points = [(r.tflops / r.gbps * 1e3, r.tflops) for r in rows if r.tflops and r.gbps]
        axis.scatter([x for x, _ in points], [y for _, y in points], s=14, color=colour, label=label)
    intensities = [r.tflops / r.gbps * 1e3 for r in (*ours, *others) if r.tflops and r.gbps]
    ridge = limits.tflops / limits.gbps * 1e3
    low, high = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    axis.plot([low, ridge, high], [low * limits.gbps / 1e3, limits.tflops, limits.tflops], color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations per byte at least moved")
    axis.set_ylabel("TFLOP/s")
    axis.set_title(f"Roofline: product {limits.tflops:.3g} TFLOP/s, copy {limits.gbps:.3g} GB/s ({dtype})", fontsize=8)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return save_picture(figure, path)


_STYLES = {
    "moekit": (_OURS, "-"),
    "dense": ("#7a7a7a", "--"),
    "eager": ("#7a7a7a", "--"),
    "grouped_mm": ("#c9772b", "-."),
    "liger": ("#8a4fbf", ":"),
    "batched_mm": ("#8a4fbf", ":"),
}
"""Colour and dashes of the layers in a curve, by a part of their name."""


def draw_curves(records: Sequence[Record], path: Path) -> list[Path]:
    """Draws a picture for each curve: time of forward, of a step, and memory, against what grows."""
    pictures = []
    for curve in GROWS:
        points = measured([r for r in records if r.kind == "curve"], curve)
        if points:
            pictures.append(_draw_curve(curve, points, path.with_suffix(f".{curve}.svg")))
    return pictures


def _draw_curve(curve: str, points: Sequence[Record], path: Path) -> Path:
    figure, axes = pyplot().subplots(1, 3, figsize=(9, 3), layout="constrained")
    names = list(dict.fromkeys(r.name for r in points))
    panels = (
        ("forward", "ms, forward", lambda r: r.median_ms),
        ("forward+backward", "ms, forward+backward", lambda r: r.median_ms),
        ("forward+backward", f"MiB, {memory_label(points)}", lambda r: (memory_of(r) or 0) / 2**20 or None),
    )
    for axis, (direction, label, value) in zip(axes, panels, strict=True):
        for name in names:
            own = [r for r in points if r.name == name and r.direction == direction and value(r)]
            colour, dashes = style_of(name)
            xs = [GROWS[curve](r) for r in own]
            axis.plot(xs, [value(r) for r in own], dashes, color=colour, linewidth=1.2, marker=".", label=name)
        if curve != "skew":
            axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(LABELS[curve])
        axis.set_title(label, fontsize=8, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    # Under the panels, where no line crosses it.
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(names))
    clock = f", {PROCESSOR_TIME}" if PROCESSOR_TIME in points[0].remark else ""
    figure.suptitle(f"{_fixed(curve, points)}, {points[0].dtype}{clock}", fontsize=8)
    return save_picture(figure, path)


def style_of(name: str) -> tuple[str, str]:
    """Returns colour and dashes of a layer in a curve."""
    parts = name.split("-")
    return next((style for part, style in _STYLES.items() if part in parts), (_OTHERS, "--"))


def _fixed(curve: str, points: Sequence[Record]) -> str:
    """Returns the sizes that are the same at every point."""
    shapes = [Shape(*r.shape)._asdict() for r in points]
    letters = zip(("T", "D", "F", "E", "K"), shapes[0], strict=True)
    same = [f"{letter}={shapes[0][name]}" for letter, name in letters if len({s[name] for s in shapes}) == 1]
    return " ".join(same)
