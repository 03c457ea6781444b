"""Table 3 of the paper by counting: parameters and operations of the baselines' image towers and MedMoE's image side.

Nothing is trained or downloaded. The paper's figures stand in columns of their own; differences are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.medmoe.flops.conventions import Convention, Macs

COLUMN = "reported by the paper, not reproduced here"
"""Title of the paper's figures."""

DASH = "–"

NOTES = (
    "BiomedCLIP and UniMed-CLIP have the same ViT-B/16, which the paper gives 16.8 and 11.29. That is the way of "
    "counting: both are figures of a counter that sees modules, and UniMed-CLIP's attention is written as "
    "`nn.MultiheadAttention`, which calls none. Counted alike they need the same.",
    "The paper's figures are of two counters (`fvcore` and `modules`), which its table does not say.",
    "The paper's G are multiply-adds, which its column calls FLOPs; a multiply-add is two operations.",
    "The paper's row of MedMoE has the parameters of all experts beside the operations of one. Its text says that one "
    "expert runs for each image; the public release runs all of them and keeps one output (last row).",
    "The paper leaves the width of an expert open, so the rows of MedMoE are not meant to meet its figures.",
)
"""What the paper's table leaves out, and where it does not fit together."""


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        model: Its name.
        what: What is counted.
        params: Parameters in all.
        params_active: Parameters that take part in the computation of one image.
        macs: Multiply-adds by each convention.
        convention: The one whose figure is compared with the paper's.
        paper_params: As printed, in M; ``None`` where the paper has no such row.
        paper_gmacs: As printed, in G.
    """

    model: str
    what: str
    params: int
    params_active: int
    macs: "Macs"
    convention: "Convention"
    paper_params: str | None = None
    paper_gmacs: str | None = None

    @property
    def gmacs(self) -> float:
        """Returns billions of multiply-adds by the row's convention."""
        return getattr(self.macs, self.convention) / 1e9

    def to_row(self) -> dict[str, Any]:
        """Returns the row as plain values, with differences to the paper's figures."""
        return {
            "model": self.model,
            "counted": self.what,
            "params_m": round(self.params / 1e6, 3),
            "params_active_m": round(self.params_active / 1e6, 3),
            **{f"gmacs_{name}": round(value / 1e9, 3) for name, value in self.macs._asdict().items()},
            "convention": self.convention,
            "paper_params_m": self.paper_params,
            "paper_gmacs": self.paper_gmacs,
            "params_less_paper": _less(self.params / 1e6, self.paper_params),
            "gmacs_less_paper": _less(self.gmacs, self.paper_gmacs),
        }


def main(*, out: Path) -> list[Line]:
    """Counts parameters and operations of the paper's Table 3, and writes it into a folder.

    Args:
        out: Folder for table3.md, table3.csv, table3.json and table3.png.

    Returns:
        The rows.

    Raises:
        ValueError: If the folder cannot be written to.
        ImportError: If open_clip or fvcore is not installed.
    """
    from tqdm import tqdm

    from recipes.medmoe.flops.trunks import TRUNKS
    from recipes.shared.outputs import check_folder
    from recipes.shared.runs import write_json
    from recipes.shared.sweeps.tables import write_csv, write_text

    check_folder(out, "--out FOLDER")
    jobs = [*((_trunk_line, (trunk,)) for trunk in TRUNKS), *((_own_line, form) for form in _FORMS)]
    lines = [make(*arguments) for make, arguments in tqdm(jobs, desc="table 3", leave=False)]
    rows = [line.to_row() for line in lines]
    about = _about()
    write_text(out / "table3.md", _markdown(lines, about))
    write_csv(out / "table3.csv", rows)
    write_json(out / "table3.json", {"table": "table3", **about, "rows": rows, "notes": list(NOTES)})
    _draw(lines, out / "table3.png")
    print(_table(lines))
    print(f"written: {out / 'table3.md'}")
    return lines


_FORMS = (("paper", False), ("release", True))
"""Preset of MedMoE, and whether all experts run."""


def _trunk_line(trunk: Any) -> Line:
    import torch

    from recipes.medmoe.flops.conventions import count_macs
    from recipes.medmoe.flops.trunks import SIZE

    module = trunk.build().eval()
    images = torch.zeros(1, 3, SIZE, SIZE, device="meta")
    count = sum(parameter.numel() for parameter in module.parameters())
    macs = count_macs(module, images)
    return Line(trunk.name, trunk.what, count, count, macs, trunk.convention, trunk.paper_params, trunk.paper_gmacs)


def _own_line(preset: str, run_all: bool) -> Line:
    import torch

    from recipes.medmoe.flops.conventions import count_macs
    from recipes.medmoe.flops.counting import ImageSide, NoText, active_parameters
    from recipes.medmoe.model import MedMoE
    from recipes.medmoe.presets import PRESETS
    from recipes.shared.encoders.pyramid import load_pyramid_encoder

    config = PRESETS[preset]().model
    encoder = load_pyramid_encoder(config.image_encoder, config.image_size, weights="random")
    side = ImageSide(MedMoE(config, encoder, NoText(config)).eval(), run_all=run_all)
    images = torch.zeros(1, 3, config.image_size, config.image_size)
    total, active = active_parameters(side, images)
    name = "MedMoE, all experts run" if run_all else "MedMoE (ours)"
    form = "the release's form: " if run_all else ""
    what = f"{form}image side, preset {preset}: Swin-T, {config.num_experts} experts of width {config.expert_dim}"
    paper = (None, None) if run_all else ("37", "7.8")
    return Line(name, what, total, active, count_macs(side, images), "fvcore", *paper)


def _about() -> dict[str, Any]:
    import importlib.metadata

    from recipes.shared.sweeps.provenance import commit_of_code

    names = ("torch", "fvcore", "timm", "open_clip_torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"commit": commit_of_code(), "versions": versions, "size": "224 x 224 pixels, batch 1"}


def _table(lines: Sequence[Line]) -> str:
    from recipes.shared.sweeps.tables import markdown_table

    titles = [
        "model",
        "parameters, M",
        "active, M",
        "GMACs: products",
        "fvcore",
        "modules",
        "convention of the paper's",
    ]
    titles += ["GMACs by it", f"{COLUMN}: M", "G", "M less paper", "G less paper"]
    rows = []
    for line in lines:
        row = line.to_row()
        rows.append(
            [
                line.model,
                f"{line.params / 1e6:.2f}",
                f"{line.params_active / 1e6:.2f}",
                *(f"{value / 1e9:.3f}" for value in line.macs),
                line.convention,
                f"{line.gmacs:.2f}",
                line.paper_params or DASH,
                line.paper_gmacs or DASH,
                *(
                    DASH if row[name] is None else f"{row[name]:+.2f}"
                    for name in ("params_less_paper", "gmacs_less_paper")
                ),
            ]
        )
    return markdown_table(titles, rows)


def _markdown(lines: Sequence[Line], about: dict[str, Any]) -> str:
    from recipes.medmoe.flops import conventions
    from recipes.shared.sweeps.tables import markdown_list, markdown_table

    ways = str(conventions.__doc__).partition("\n\n")[2].rstrip()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    counted = markdown_table(["model", "what is counted"], [[line.model, line.what] for line in lines])
    parts = [
        "# Table 3: parameters and operations by counting",
        f"One image of {about['size']}. Architectures are built without weights.",
        _table(lines),
        "![Multiply-adds by three conventions, and the paper's figures](table3.png)",
        "## What is counted",
        counted,
        "## Conventions",
        ways.replace("``", "`"),
        "## What does not fit together in the paper's table",
        markdown_list(NOTES),
        "## Where these figures come from",
        markdown_list([f"commit {about['commit']}", versions]),
    ]
    return "\n\n".join(parts) + "\n"


def _draw(lines: Sequence[Line], path: Path) -> None:
    """Draws a bar per convention and the paper's figure as a diamond, by model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.75 * len(lines) + 1.2), layout="constrained")
    axes = figure.subplots()
    height = 0.26
    for place, (name, colour) in enumerate((("products", "#30638e"), ("fvcore", "#edae49"), ("modules", "#66a182"))):
        values = [getattr(line.macs, name) / 1e9 for line in lines]
        at = [row + (place - 1) * height for row in range(len(lines))]
        axes.barh(at, values, height, color=colour, label=name)
    printed = [(row, float(line.paper_gmacs)) for row, line in enumerate(lines) if line.paper_gmacs]
    axes.plot([value for _, value in printed], [row for row, _ in printed], "D", color="black", label=COLUMN)
    axes.set_yticks(range(len(lines)), [line.model for line in lines])
    axes.invert_yaxis()
    axes.set_xlabel("multiply-adds of one image, in G")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def _less(value: float, paper: str | None) -> float | None:
    return None if paper is None else round(value - float(paper), 3)
