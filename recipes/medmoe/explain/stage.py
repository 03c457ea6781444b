"""Stage 6: explanation of a run. Draws pictures into ``explain/`` and plays the pointing game."""

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.data.image_folders import image_files
from recipes.data.pairs import PairStream
from recipes.data.phantom import phantom_several_findings
from recipes.medmoe.choices import Checkpoint, Split
from recipes.medmoe.hints import next_command
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.shared.runs import update_metrics

if TYPE_CHECKING:
    from recipes.medmoe.inference.session import ModelSession


class Explained(NamedTuple):
    """What the stage wrote.

    Attributes:
        pictures: The PNG files.
        pointing_game: As in ``metrics.json``; ``None`` for images of one's own.
    """

    pictures: list[Path]
    pointing_game: dict[str, Any] | None


def main(
    run: Path,
    *,
    count: int = 8,
    split: Split = "test",
    checkpoint: Checkpoint = "best",
    image: tuple[Path, ...] = (),
    text: str | None = None,
    modality: str | None = None,
    force_dicom: bool = False,
    tolerance: float = 0.0,
    bootstrap: int = 1000,
    remove_mean: bool = False,
    baseline: OtherModel = RUN_ITSELF,
) -> Explained:
    """Explains a run by studies of its own data, or images of your own.

    Studies of its own go to ``explain/example-*.png`` and ``explain/examples.npz``, the pointing game over all
    studies with boxes to ``metrics.json`` and ``explain/findings.png``; images of your own to ``explain/own-*.png``,
    and nothing else changes.

    Args:
        run: Folder of the run.
        count: How many studies to draw.
        split: Of which split.
        checkpoint: Which weights.
        image: Image files to explain instead, or folders of them.
        text: The report that belongs to them.
        modality: Kind of these images, for a run that routes on the label.
        force_dicom: Read DICOM files without preamble and file meta group; always if the run does.
        tolerance: Pixels by which the pointing game widens boxes.
        bootstrap: Resamples of patients for the pointing game's intervals.
        remove_mean: Subtract from every map the mean map of its expert, over all words of the training reports.
        baseline: Another model instead of the run's own.

    Raises:
        ValueError: If the folder is not that of a pretrained run, the split is a stream, ``count`` is below 1, images
            have no text, a text no image or no word that the tokenizer knows, or a file cannot be read.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count} (--count).")
    if bootstrap < 0 or tolerance < 0:
        raise ValueError(
            f"bootstrap and tolerance (--bootstrap, --tolerance) must be at least 0, got {bootstrap} and {tolerance}."
        )
    if bool(image) != bool(text and text.strip()):
        raise ValueError("image and text belong together: give --image FILES and --text with their report, or neither.")
    image = tuple(image_files(image))
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.explain.examples import choose, own_images, write_examples
    from recipes.medmoe.explain.from_training import learn_boxes, mean_maps
    from recipes.medmoe.explain.game import ABSENT, FIXED, HOW, line, play
    from recipes.medmoe.explain.rates import draw_rates
    from recipes.medmoe.explain.seen import explanation, look
    from recipes.medmoe.inference.opening import open_session

    session = open_session(run, checkpoint, baseline, writes=("metrics.json", "explain"))
    source = session.source() if remove_mean or not image else None
    means = mean_maps(session, source.train) if source is not None and remove_mean else None
    if image:
        for sentence in _known(session, str(text)):
            print(sentence)
        pictures = own_images(session, image, str(text), modality, force_dicom=force_dicom, means=means)
        print("\n".join(f"open {path}" for path in pictures))
        return Explained(pictures, None)
    assert source is not None
    pairs = getattr(source, split)
    if isinstance(pairs, PairStream):
        raise ValueError(f"split must be one that can be listed, got {split!r}, which is a stream: use val or test.")
    learn = cache(partial(learn_boxes, session, source.train))
    options: dict[str, Any] = {"learn": learn, "means": means, "tolerance": tolerance, "bootstrap": bootstrap}
    game, played = play(session, pairs, **options)
    if session.data == "phantom":  # each of its studies has one finding
        drawn = phantom_several_findings(split=split, count=max(1, len(pairs) // 2), size=pairs[0].image.shape[0])
        game |= {"several_findings": play(session, drawn, **options)[0], "several_findings_drawn": True}
    game |= {"split": split, "checkpoint": checkpoint, "tolerance": tolerance, "mean_removed": remove_mean}
    game |= {"words": HOW, "absent_word": ABSENT, "fixed_place": FIXED}
    update_metrics(run, pointing_game=game)
    chosen = choose(pairs, played, count)
    size = session.batch_size
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
    seen = [one for batch in batches for one in look(session, [pairs[row] for row in batch], means=means)]
    pictures = write_examples(session, [explanation(one, tolerance) for one in seen])
    if game["per_finding"]:
        print(f"hit rate of each finding: {draw_rates(game, run / 'explain' / 'findings.png')}")
    print(line(game))
    print(f"{len(pictures)} pictures: {run / 'explain'}")
    if session.is_run:  # a released model has no other stages of its own
        print(next_command(run, "explain", data=session.data))
    return Explained(pictures, game)


def _known(session: "ModelSession", text: str) -> list[str]:
    """Says which words of a text the tokenizer does not know; their maps are those of the unknown word.

    Raises:
        ValueError: If it knows none of them.
    """
    from recipes.medmoe.inference.vocabulary import words_unknown_to

    words = words_unknown_to(session, [text])
    if words is not None and words.share == 1:
        raise ValueError(
            f"text: the tokenizer knows no word of {text!r}, so all maps would be that of the unknown word. Use words "
            "of the training texts (--text)."
        )
    return [] if words is None else [words.in_words("text")]
