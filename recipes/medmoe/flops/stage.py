"""Parameters and operations of the image side: the paper's Table 3, with its two conventions kept apart.

The printed row of MedMoE has the parameters of all experts beside the operations of one. Here both are given for
both: parameters in total and active, multiply-adds and operations, experts run and experts whose output is used.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipes.medmoe.config import ModelConfig
from recipes.medmoe.presets import PRESETS
from recipes.shared.extras import require
from recipes.shared.runs import write_json

if TYPE_CHECKING:
    from recipes.medmoe.flops.counting import Row

COUNTED = "matrix products and convolutions of one forward pass, batch 1; a multiply-add is 2 operations (FLOPs)"

_PRINTED = {"swin-t alone": "27 M, 4.5 G", "medmoe (ours)": "37 M, 7.8 G"}


def main(
    *,
    preset: Literal["paper", "release", "tiny"] = "paper",
    image_size: int | None = None,
    num_experts: int | None = None,
    expert_dim: int | None = None,
    json: Path | None = None,
) -> list[Any]:
    """Counts parameters and operations: the paper's Table 3.

    Args:
        preset: Whose architecture to count. Weights are random; nothing is downloaded.
        image_size: Side of the square input, in pixels; the preset's by default (paper: 224).
        num_experts: Experts; the preset's by default (6).
        expert_dim: Width inside an expert; the preset's by default.
        json: File to write the table to.

    Returns:
        The rows (`recipes.medmoe.flops.counting.Row`): the encoder alone, MedMoE, and MedMoE with all experts run.

    Raises:
        ValueError: If a size is out of range, or the encoder does not take images of that size.
        ImportError: If fvcore is not installed.
    """
    # Imported here, so that --help does not wait for torch.
    import torch

    from recipes.medmoe.flops.counting import SWIN, NoText, table
    from recipes.medmoe.model import MedMoE
    from recipes.shared.encoders.pyramid import load_pyramid_encoder

    config = _changed(PRESETS[preset]().model, image_size, num_experts, expert_dim)
    encoder = load_pyramid_encoder(config.image_encoder, config.image_size, weights="random")
    model = MedMoE(config, encoder, NoText(config)).eval()
    rows = table(model)
    about = {
        "preset": preset,
        "image_encoder": config.image_encoder,
        "image_size": config.image_size,
        "num_experts": config.num_experts,
        "expert_dim": config.expert_dim,
        "route_on": config.route_on,
        "counted": COUNTED,
        "versions": {"torch": torch.__version__, "fvcore": require("fvcore", "counting operations twice").__version__},
    }
    printed = _PRINTED if _is_printed(config, SWIN) else {}
    print(render(rows, about, printed))
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_json(json, {**about, "rows": [asdict(row) for row in rows], "paper_prints": printed})
    return rows


def render(rows: "list[Row]", about: dict[str, Any], printed: dict[str, str]) -> str:
    """Renders the table as text, with what the paper prints beside the rows that it has."""
    lines = [
        f"Image side of MedMoE, preset {about['preset']}: {about['image_encoder']} at {about['image_size']} px, "
        f"{about['num_experts']} experts of width {about['expert_dim']}, routed on the {about['route_on']}.",
        f"Counted: {COUNTED}.",
        "",
        f"{'':24}{'parameters':>22}{'GMACs':>9}{'GFLOPs':>9}{'experts':>15}{'fvcore':>10}  paper prints",
        f"{'':24}{'total':>11}{'active':>11}{'':9}{'':9}{'run':>7}{'active':>8}{'GMACs':>10}",
    ]
    for row in rows:
        paper = printed.get(row.name, "")
        mark = "" if row.counters_agree else f"  the counters differ by {row.difference:.1%}"
        lines.append(
            f"{row.name:24}{row.params_total / 1e6:9.2f} M{row.params_active / 1e6:9.2f} M{row.gmacs:9.2f}"
            f"{row.flops / 1e9:9.2f}{row.experts_run:7d}{row.experts_active:8d}{row.fvcore_gmacs:10.2f}  {paper}{mark}"
        )
    if printed:
        lines += ["", "The paper's G are multiply-adds; its parameters are those of all experts, its G those of one."]
    return "\n".join(line.rstrip() for line in lines)


def _changed(
    config: ModelConfig, image_size: int | None, num_experts: int | None, expert_dim: int | None
) -> ModelConfig:
    sizes = {"image_size": image_size, "num_experts": num_experts, "expert_dim": expert_dim}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    config = replace(config, **{name: value for name, value in sizes.items() if value is not None})
    return replace(config, modalities=config.modalities[: config.num_experts])


def _is_printed(config: ModelConfig, encoder: str) -> bool:
    return (config.image_encoder, config.image_size, config.num_experts) == (encoder, 224, 6)
