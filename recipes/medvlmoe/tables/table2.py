"""Table 2: the full model and its ablations, and sweeps of routing, of the number of experts and of top-k beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from recipes.medvlmoe.config import Config
from recipes.medvlmoe.tables.options import Model, ParseTrain, TableOptions, run_grid
from recipes.medvlmoe.tables.pictures import draw_differences
from recipes.medvlmoe.tables.printed import COLUMN, NOTES_2, TABLE_2
from recipes.medvlmoe.tables.rows import (
    CELL_TITLES,
    Row,
    csv_rows,
    read_rows,
    row_cells,
    seed_csv_rows,
    seed_table,
    with_paper,
)
from recipes.shared.report.formats import DASH, signed, signed_interval
from recipes.shared.runs import write_json
from recipes.shared.sweeps.grid import Grid, cell_csv_rows, provenance_lines
from recipes.shared.sweeps.tables import markdown_list, markdown_table, write_csv, write_text

FULL = "full"
VARIANTS = (FULL, "no-moe", "single-ffn", "no-fusion", "no-text", "vision-only")
SWEEPS = ("core", "routing", "experts", "top-k")
EXPERTS = (2, 4, 8, 16)
TOP_K = (1, 2, 4, 8)
_TITLES = {
    "core": "Table 2: what each part adds",
    "routing": "Table 2, beside it: one decision per study, or one per token",
    "experts": "Table 2, beside it: the number of experts",
    "top-k": "Table 2, beside it: experts per decision",
}
_MEANINGS = {
    FULL: "the model as it is",
    "no-moe": "one dense network of equal active FLOPs for router and experts",
    "single-ffn": "one dense network of one expert's size: the paper's \"single FFN\"",
    "no-fusion": "no cross-attention; the streams meet where they are concatenated",
    "no-text": "no text encoder: the null text for every study; fusion and experts stay",
    "vision-only": "image encoder and linear classifier: no text, fusion, gate or experts",
}
SETTINGS = (
    "AUROC is the mean over the classes on the test split, and over the seeds. Differences are variant less full model "
    "and paired by study and seed. The interval over patients and the p-values (Holm's method over the table) are for "
    "the models as they are trained; the t-interval over seeds is another uncertainty, and neither includes the other."
)


@dataclass(frozen=True)
class Variation:
    """A model of the table.

    Attributes:
        model: Its cells.
        meaning: What it is, in words.
        hidden: Hidden units that work for one decision: K times an expert's; 0 without a feed-forward part.
    """

    model: Model
    meaning: str
    hidden: int


def variations(sweep: str, base: Config) -> list[Variation]:
    """Returns the models of a sweep, the full one first.

    Args:
        sweep: One of `SWEEPS`.
        base: Settings of the full model.

    Raises:
        ValueError: If the settings leave a sweep without anything to compare with.
    """
    width, top_k, experts = base.model.expert_hidden_dim, base.model.top_k, base.model.num_experts

    def one(name: str, meaning: str, hidden: int, **settings: object) -> Variation:
        cell = "medvlmoe" if name == FULL else f"medvlmoe-{name}"
        return Variation(Model(name, cell, base.preset, settings), meaning, hidden)

    full = one(FULL, _MEANINGS[FULL], top_k * width)
    if sweep == "core":
        hidden = {"single-ffn": width, "vision-only": 0}
        return [full, *(one(v, _MEANINGS[v], hidden.get(v, top_k * width), variant=v) for v in VARIANTS[1:])]
    if sweep == "routing":
        other = "token" if base.model.route_on == "study" else "study"
        meaning = {"token": "one decision per patch and text token", "study": "one decision per study"}
        full = one(FULL, f"{_MEANINGS[FULL]}: {meaning[base.model.route_on]}", top_k * width)
        return [full, one(f"route-{other}", meaning[other], top_k * width, route_on=other)]
    if sweep == "experts":
        full = one(FULL, f"{_MEANINGS[FULL]}: {experts} experts", top_k * width)
        counts = [count for count in EXPERTS if count != experts and count >= top_k]
        return [full, *(one(f"experts-{n}", f"{n} experts", top_k * width, num_experts=n) for n in counts)]
    full = one(FULL, f"{_MEANINGS[FULL]}: top {top_k}", top_k * width)
    counts = [count for count in TOP_K if count != top_k and count <= experts]
    if not counts:
        raise ValueError(f"sweeps (--sweeps) top-k: with {experts} experts (--num-experts) only top {top_k} is left.")
    return [full, *(one(f"top-{k}", f"top {k}", k * width, top_k=k) for k in counts)]


def check_sweeps(sweeps: Sequence[str]) -> None:
    """Refuses sweeps that there are not.

    Args:
        sweeps: Their names.

    Raises:
        ValueError: If one is unknown or repeats, or there is none.
    """
    if not sweeps or len(set(sweeps)) < len(sweeps) or not set(sweeps) <= set(SWEEPS):
        raise ValueError(f"sweeps (--sweeps) must be different ones of {', '.join(SWEEPS)}, got {', '.join(sweeps)}.")


def run_table2(options: TableOptions, sweeps: Sequence[str], size: str, parse: ParseTrain) -> dict[str, list[Row]]:
    """Runs the sweeps of Table 2, and writes of each ``table2.md`` and so on, or ``table2-SWEEP.md`` and so on.

    Args:
        options: Of the sweep.
        sweeps: Some of `SWEEPS`.
        size: ``"tiny"`` or ``"paper"``.
        parse: Parses options of ``train``.

    Returns:
        The rows of each sweep.
    """
    check_sweeps(sweeps)

    def models(base: Config) -> list[Model]:
        listed = [variation for sweep in sweeps for variation in variations(sweep, base)]
        return list({variation.model.name: variation.model for variation in listed}.values())

    grid = run_grid(options, models, size, parse)
    base = parse(["--preset", size, *options.train])
    tables = {}
    for sweep in sweeps:
        own = variations(sweep, base)
        known = {variation.model.name: variation for variation in own}
        rows = read_rows(grid, list(known), FULL, bootstrap=options.bootstrap)
        paper = {(row.data_set, row.model): _paper(row.model, sweep) for row in rows}
        tables[sweep] = with_paper(rows, paper)
        _write(grid, tables[sweep], sweep, known, size)
    return tables


def file_name(sweep: str) -> str:
    """Returns the name of a sweep's files, without their endings."""
    return "table2" if sweep == "core" else f"table2-{sweep}"


def _paper(model: str, sweep: str) -> str | None:
    if sweep != "core" or model not in TABLE_2:
        return None
    value, delta = TABLE_2[model]
    return f"{value} % ({delta})"


def _write(grid: Grid, rows: Sequence[Row], sweep: str, known: dict[str, Variation], size: str) -> None:
    folder, name = grid.place.root, file_name(sweep)
    table = csv_rows(rows, "variant", COLUMN)
    for line in table:
        results = next((row.scores.results for row in rows if row.scores and _same(row, line)), ())
        line["parameters"] = results[0]["parameters"] if results else None
        line["active_hidden"] = known[line["variant"]].hidden
    write_text(folder / f"{name}.md", _markdown(grid, rows, sweep, known, size))
    write_csv(folder / f"{name}.csv", table)
    write_csv(folder / f"{name}-seeds.csv", seed_csv_rows(rows, "variant"))
    write_csv(folder / f"{name}-cells.csv", cell_csv_rows(grid))
    write_json(folder / f"{name}.json", {"table": name, "size": size, "title": _TITLES[sweep], "rows": table})
    title = "Variant less full model: 95% interval over patients; ticks are seeds"
    draw_differences(folder / f"{name}.png", rows, title)


def _same(row: Row, line: dict[str, object]) -> bool:
    return (row.data_set, row.model) == (line["data_set"], line["variant"])


def _markdown(grid: Grid, rows: Sequence[Row], sweep: str, known: dict[str, Variation], size: str) -> str:
    titles = ["variant", "data set", *CELL_TITLES, "t-interval over seeds"]
    titles += [f"{COLUMN}: ChestX-ray14"] if sweep == "core" else []
    lines = []
    for row in rows:
        over_seeds = row.difference.over_seeds if row.difference else None
        line = [row.model, row.data_set, *row_cells(row), signed_interval(over_seeds)]
        line += [row.paper or DASH] if sweep == "core" else []
        lines.append([*line, "; ".join(row.notes)])
    parts = [
        f"# {_TITLES[sweep]}",
        f"Preset {size}. {SETTINGS}",
        markdown_table([*titles, "notes"], lines),
        f"![Differences to the full model]({file_name(sweep)}.png)",
        "## What the variants are",
        _meanings(rows, known),
        "## Every cell, and its difference to the full model of the same seed",
        seed_table(rows, "variant"),
    ]
    if sweep == "core":
        parts += [
            "## Does the mixture help?",
            _verdict(rows),
            "## What the paper's figures contradict",
            markdown_list(NOTES_2),
        ]
    parts += ["## Where these figures come from", markdown_list(provenance_lines(grid))]
    return "\n\n".join(parts) + "\n"


def _meanings(rows: Sequence[Row], known: dict[str, Variation]) -> str:
    lines = []
    for name, variation in known.items():
        results = [result for row in rows if row.model == name and row.scores for result in row.scores.results]
        parameters = f"{results[0]['parameters']:,}" if results else DASH
        lines.append([name, variation.meaning, f"{variation.hidden:,}" if variation.hidden else DASH, parameters])
    return markdown_table(["variant", "what it is", "hidden units at work per decision", "parameters"], lines)


def _verdict(rows: Sequence[Row]) -> str:
    """Says for each data set, in words, how the full model compares to the networks without experts."""
    lines = []
    for row in rows:
        if row.model not in ("no-moe", "single-ffn") or row.difference is None or row.difference.interval is None:
            continue
        low, high = row.difference.interval
        gain = f"{signed(-(row.difference.value or 0.0))} (95% {signed_interval([-high, -low])})"
        words = "undecided over these patients"
        if high < 0:
            words = "the mixture scores higher"
        elif low > 0:
            words = "the mixture scores lower"
        lines.append(f"{row.data_set}: full model less `{row.model}` {gain}: {words}.")
    return markdown_list(lines) if lines else "Not known before the full model and one without experts are finished."
