"""Zero-shot segmentation: regions from word maps, and how well they fit boxes or masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.data.image_folders import image_files
from recipes.data.pairs import PairStream
from recipes.medmoe.choices import Checkpoint, Split
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.shared.runs import read_metrics, update_metrics

if TYPE_CHECKING:
    from recipes.medmoe.inference.session import ModelSession
    from recipes.medmoe.segment.regions import Overlap
    from recipes.medmoe.segment.scoring import Region

CHOSEN_ON = "val"
"""The split of a run's own data on which the threshold is chosen."""


def main(
    run: Path,
    *,
    image: tuple[Path, ...] = (),
    text: str | None = None,
    finding: str | None = None,
    masks: Path | None = None,
    threshold: float | None = None,
    split: Split = "test",
    modality: str | None = None,
    force_dicom: bool = False,
    bootstrap: int = 1000,
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> dict[str, Any]:
    """Draws the region of a finding from its word map, without having been taught any region.

    Without --image, the findings of the run's own data that have boxes are scored: section ``segmentation`` of
    ``metrics.json``. With --image, regions go to ``segment/`` in the run's folder, as masks and over the images, and
    are scored where --masks has masks.

    Args:
        run: Folder of a pretrained run.
        image: Image files, or folders of them; files called NAME_mask.png are passed over.
        text: The text that belongs to the images and names the finding.
        finding: The words of the text whose region is drawn; by default the whole text.
        masks: Folder of masks, NAME_mask.png for NAME.png, or of the same name in another folder.
        threshold: Where the map is cut, from 0 (its lowest cell) to 1 (its highest). By default the one of the highest
            mean Dice on the run's own validation split, which must have boxes.
        split: Which studies of the run's own data are scored.
        modality: Kind of these images, for a run that routes on the label.
        force_dicom: Read DICOM files without preamble and file meta group; always if the run does.
        bootstrap: Resamples of patients for the intervals.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The scores; without known regions only ``threshold`` and ``images``.

    Raises:
        ValueError: If images and text do not come together, no threshold can be chosen, the split is a stream or has no
            boxes, the tokenizer knows no word of the finding, or a file cannot be read.
    """
    if bool(image) != bool(text and text.strip()):
        raise ValueError("image and text belong together: give --image FILES and --text with their report, or neither.")
    if (finding is not None or masks is not None) and not image:
        raise ValueError("finding and masks (--finding, --masks) belong to images of your own: give --image too.")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold} (--threshold).")
    if bootstrap < 0:
        raise ValueError(f"bootstrap (--bootstrap) must be 0 (no intervals) or a number of resamples, got {bootstrap}.")
    files = image_files(image)
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.inference.opening import open_session

    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "segment"))
    weights = session.weights_checksum(checkpoint)
    cut = threshold if threshold is not None else _kept_threshold(run, weights)
    if cut is None:
        cut = _chosen_threshold(session)
    how = {"threshold": cut, "threshold_by": "given" if threshold is not None else f"Dice on {CHOSEN_ON}"}
    if image:
        return _own(session, files, str(text), finding, masks, cut, modality, force_dicom, bootstrap) | how
    from recipes.medmoe.segment.scoring import regions_of_split

    regions = list(regions_of_split(session, _split(session, split), "segment"))
    if not regions:
        raise ValueError(
            f"split: the {split} split holds no boxes of findings that reports name; draw images: --image."
        )
    scores = _scores(regions, cut, bootstrap) | how | {"split": split, "checkpoint": checkpoint, "weights": weights}
    update_metrics(run, segmentation=scores)
    print("\n".join(_lines(scores)))
    return scores


def _split(session: "ModelSession", name: str) -> Any:
    pairs = getattr(session.source(), name)
    if isinstance(pairs, PairStream):
        raise ValueError(f"split must be one that can be listed, got {name!r}, which is a stream: use val or test.")
    return pairs


def _kept_threshold(run: Path, weights: str) -> float | None:
    """Returns the threshold that an earlier call chose for weights of this checksum."""
    kept = read_metrics(run).get("segmentation") or {}
    chosen = kept.get("threshold_by") == f"Dice on {CHOSEN_ON}" and kept.get("weights") == weights
    return kept["threshold"] if chosen else None


def _chosen_threshold(session: "ModelSession") -> float:
    from recipes.medmoe.segment.regions import best_threshold
    from recipes.medmoe.segment.scoring import regions_of_split

    regions = list(regions_of_split(session, _split(session, CHOSEN_ON), "threshold"))
    if not regions:
        raise ValueError(
            f"threshold: the run's {CHOSEN_ON} split has no boxes to choose one by: give a number from 0 to 1 "
            "(--threshold)."
        )
    return best_threshold([one.map for one in regions], [one.known for one in regions if one.known is not None])


def _own(
    session: "ModelSession",
    files: Sequence[Path],
    text: str,
    finding: str | None,
    masks: Path | None,
    cut: float,
    modality: str | None,
    force_dicom: bool,
    bootstrap: int,
) -> dict[str, Any]:
    """Draws the regions of image files, and scores those with masks."""
    from recipes.medmoe.inference.vocabulary import words_unknown_to
    from recipes.medmoe.segment.masks import without_masks
    from recipes.medmoe.segment.pictures import write_region
    from recipes.medmoe.segment.regions import summarise
    from recipes.medmoe.segment.scoring import regions_of_files

    files, named = without_masks(files), finding or text
    words = words_unknown_to(session, [named])
    if words is not None and words.share == 1:
        raise ValueError(
            f"finding: the tokenizer knows no word of {named!r}: use words of the training texts (--finding, --text)."
        )
    if words is not None:
        print(words.in_words("finding"))
    folder, scored = session.run / "segment", []
    folder.mkdir(exist_ok=True)
    force = force_dicom or session.force_dicom
    regions = regions_of_files(session, files, text, named, modality=modality, masks=masks, force_dicom=force)
    for number, one in enumerate(regions):
        print(f"open {write_region(folder, number, one, cut)}")
        scored += _overlaps([one], cut)
    if masks is not None:
        print(f"masks of {len(scored)} of {len(files)} images in {masks}")
    if not scored:
        return {"images": len(files)}
    result = {"images": len(files)} | summarise(*map(list, zip(*scored, strict=True)), bootstrap=bootstrap)
    print("\n".join(_lines(result | {"threshold": cut})))
    return result


def _overlaps(regions: "Sequence[Region]", cut: float) -> "list[tuple[str, str, Overlap]]":
    """Returns finding, patient and overlap of the regions whose place is known."""
    from recipes.medmoe.segment.regions import overlap

    return [(one.finding, one.group, overlap(one.map >= cut, one.known)) for one in regions if one.known is not None]


def _scores(regions: "Sequence[Region]", cut: float, bootstrap: int) -> dict[str, Any]:
    from recipes.medmoe.segment.regions import summarise

    findings, groups, overlaps = zip(*_overlaps(regions, cut), strict=True)
    return summarise(findings, groups, overlaps, bootstrap=bootstrap)


def _lines(scores: dict[str, Any]) -> list[str]:
    lines = [f"{scores['regions']} regions of {scores['groups']} patients, cut at {scores['threshold']:g}"]
    for name, one in (("all findings", scores), *scores["per_finding"].items()):
        low, high = one["dice_ci95"] or (float("nan"), float("nan"))
        lines.append(
            f"  {name}: Dice {one['dice']:.3f} (95% CI {low:.3f} to {high:.3f}), IoU {one['iou']:.3f}; as large at "
            f"random {one['random_dice']:.3f}, whole image {one['whole_dice']:.3f}"
        )
    return lines
