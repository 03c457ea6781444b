"""Classifies images of one's own by classes that are texts: no labels, no training."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recipes.medmoe.choices import Checkpoint, Scoring
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.use.images import NO_IMAGES, OwnImages
from recipes.medmoe.zero_shot.prompt_files import (
    Prompts,
    choose_prompts,
    load_prompts,
    prompt_files,
    template_prompts,
)
from recipes.shared.outputs import check_file

SURE = 0.5
"""Probability from which on a class of several is taken for present."""


def main(
    run: Path,
    *,
    images: OwnImages = NO_IMAGES,
    classes: tuple[str, ...] = (),
    prompts: str | None = None,
    several: bool = False,
    scoring: Scoring | None = None,
    modality: str | None = None,
    out: Path = Path("classes.csv"),
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> pd.DataFrame:
    """Classifies images by the names of classes, or by prompts for them; no labels are needed.

    Args:
        run: Folder of a pretrained run.
        images: The images.
        classes: Names of the classes, such as "pleural effusion" "no finding". With --prompts, which of its classes.
        prompts: Prompt file: a path (.json) or a name of this recipe's; by default the names in plain sentences.
        several: Whether an image may be of several classes or none; each is then judged against its absence.
        scoring: How scores are computed; by default pairs with --several, else mean.
        modality: Kind of all images, for a run whose experts are chosen by it.
        out: Table to write, one row per image.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        One row per image: ``image``, ``prediction`` (with --several the classes of probability above one half, joined
        by "|") and ``prob:CLASS`` each, which is not calibrated.

    Raises:
        ValueError: If there are no images or no classes, the tokenizer knows no word of a class, or what a scoring
            needs is missing.
    """
    if images.csv is not None and out.resolve() == images.csv.resolve():
        raise ValueError(f"out would replace the table that is read, {images.csv}: give another --out.")
    check_file(out, "--out")
    chosen = _prompts(classes, prompts)
    scoring = scoring or ("pairs" if several else "mean")
    _check(chosen, scoring, several=several)
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.inference.opening import open_session
    from recipes.medmoe.inference.vocabulary import words_unknown_to
    from recipes.medmoe.zero_shot.prompt_scores import score_prompts

    session = open_session(run, checkpoint, baseline, writes=())
    unknown = words_unknown_to(session, [text for texts in chosen.classes.values() for text in texts])
    if unknown is not None:
        counts = {name: words_unknown_to(session, _of(name, texts)) for name, texts in chosen.classes.items()}
        mute = [name for name, own in counts.items() if own is not None and own.share == 1]
        if mute:
            raise ValueError(
                f"classes: the tokenizer knows no word of {', '.join(map(repr, mute))}, so the model cannot tell it: "
                "use words of the training texts (--classes, --prompts)."
            )
        print(unknown.in_words("prompts"))
    files = images.open(force_dicom=session.force_dicom)
    task = "multi-label" if several else "multi-class"
    scores = score_prompts(
        session, files, chosen, task=task, scoring=scoring, kind=modality, title="classify", checkpoint=checkpoint
    ).scores
    names = list(chosen.classes)
    table = pd.DataFrame({"image": list(files.paths)})
    table["prediction"] = [_prediction(row, names, several=several) for row in scores.probs]
    for column, name in enumerate(names):
        table[f"prob:{name}"] = scores.probs[:, column]
    table.to_csv(out, index=False)
    print(table.to_string(index=False, max_rows=10, float_format="{:.3f}".format))
    counts = table["prediction"].value_counts()
    print(", ".join(f"{name or 'none'}: {count}" for name, count in counts.items()))
    print(f"written: {out} ({len(table)} rows); scoring {scoring}, not calibrated, no diagnosis")
    return table


def _prompts(classes: Sequence[str], name: str | None) -> Prompts:
    twice = sorted({one for one in classes if list(classes).count(one) > 1})
    if twice:
        raise ValueError(f"classes must differ, got {twice} more than once (--classes).")
    if name is not None:
        return choose_prompts(load_prompts(name), classes or None)
    if not classes:
        raise ValueError(
            'classes: give names, --classes "pleural effusion" "no finding", or a prompt file, --prompts FILE.json or '
            f"one of {', '.join(prompt_files())}."
        )
    plain = template_prompts(classes)
    return Prompts(plain.name, plain.classes, {one: (f"no {one}", f"without {one}") for one in classes})


def _check(prompts: Prompts, scoring: str, *, several: bool) -> None:
    if not several and len(prompts.classes) < 2:
        raise ValueError(
            f"classes must be at least two to choose among, got {list(prompts.classes)}: add one (--classes), or judge "
            "each against its absence (--several)."
        )
    lacking = [name for name in prompts.classes if name not in prompts.absent]
    if scoring == "pairs" and lacking:
        raise ValueError(
            f"{prompts.name!r} has no texts against {lacking}, which --several and --scoring pairs need: add "
            'them under "absent", or use another --scoring.'
        )


def _of(name: str, texts: Sequence[str]) -> list[str]:
    """Returns the texts of a class; of templates, whose words around the name say nothing, the name alone."""
    return [name.replace("_", " ")] if tuple(texts) == template_prompts([name]).classes[name] else list(texts)


def _prediction(probs: Sequence[float], names: Sequence[str], *, several: bool) -> str:
    if several:
        return "|".join(name for name, prob in zip(names, probs, strict=True) if prob > SURE)
    return names[max(range(len(names)), key=lambda place: probs[place])]
