"""The report's tables of linear probing and of retrieval."""

from collections.abc import Mapping
from typing import Any

from recipes.medmoe.report.run import Run
from recipes.shared.report.html import Markup, section, table, tag

WAYS = (("image_to_text", "Report for an image"), ("text_to_image", "Image for a report"))


def probe_section(run: Run) -> Markup:
    """One row per set: mean and spread of the score at each share of the training set.

    Args:
        run: The run; where nothing was probed the section says so.
    """
    found = run.section("probe")
    if not found:
        return section("Linear probe", tag("p", "The stage probe was not run.", class_="muted"))
    shares = sorted({row["fraction"] for one in found.values() for row in one["fractions"]})
    head = [
        "Set",
        "Score",
        *[f"{100 * share:g}% of training" for share in shares],
        "Chance",
        "Features",
        "Test studies",
    ]
    rows = []
    for name, one in found.items():
        key = "macro_auroc" if one["task"] == "multi-label" else "accuracy"
        scores = {row["fraction"]: _spread(row[key], row["subsets"]) for row in one["fractions"]}
        chance = 0.5 if key == "macro_auroc" else one["chance"]
        rows.append(
            [
                name,
                key.replace("_", " ").replace("auroc", "AUROC"),
                *[scores.get(share, "–") for share in shares],
                f"{chance:.3f}",
                one["features"],
                f"{one['studies']['test']:,}",
            ]
        )
    caption = (
        "A linear classifier on frozen features. Mean ± standard deviation over subsets drawn from the training set, "
        "whose number stands behind; the weight decay is chosen on the validation set."
    )
    return section("Linear probe", table(head, rows, align="ll" + "r" * (len(shares) + 1) + "lr"), caption=caption)


def retrieval_section(run: Run) -> Markup:
    """Recall at K and median rank, both ways, beside what chance gives.

    Args:
        run: The run; where retrieval was not run the section says so.
    """
    found = run.section("retrieval")
    if not found:
        return section("Retrieval", tag("p", "The stage retrieve was not run.", class_="muted"))
    recalls = list(found[WAYS[0][0]]["recall"])
    head = ["Wanted", *[f"R@{k}" for k in recalls], "Median rank", "Queries", "Candidates"]
    rows: list[list[object]] = []
    for way, title in WAYS:
        one = found[way]
        sizes = [f"{one['queries']:,}", f"{one['candidates']:,}"]
        rows += [[title, *_ranks(one, recalls), *sizes], ["by chance", *_ranks(one["chance"], recalls), "", ""]]
    caption = (
        f"The {found['images']:,} images of the {found['split']} split and their {found['texts']:,} distinct reports, "
        f"scored by {found['score'].replace('+', ' and ')} similarity. Equal reports are one candidate, and any image "
        "with the report counts as found."
    )
    return section("Retrieval", table(head, rows, align="l" + "r" * (len(recalls) + 3)), caption=caption)


def _spread(spread: Mapping[str, Any], subsets: int) -> str:
    if spread["mean"] is None:
        return "undefined"
    if spread["sd"] is None:
        return f"{spread['mean']:.3f}"
    return f"{spread['mean']:.3f} ± {spread['sd']:.3f} ({subsets})"


def _ranks(one: Mapping[str, Any], recalls: list[str]) -> list[str]:
    return [*[f"{one['recall'][k]:.3f}" for k in recalls], f"{one['median_rank']:.1f}".removesuffix(".0")]
