"""Retrieval between the images and the reports of a run's own data. Writes the section ``retrieval``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from recipes.data.pairs import PairStream
from recipes.data.studies import StudySplit
from recipes.medmoe.choices import Checkpoint, NearDuplicates, Split
from recipes.medmoe.hints import next_command
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.shared.runs import update_metrics
from recipes.shared.scores.retrieval import RECALLS, retrieval_scores, unique_texts

if TYPE_CHECKING:
    from recipes.medmoe.inference.session import ModelSession

Score = Literal["global", "global+local"]


def main(
    run: Path,
    *,
    split: Split = "test",
    score: Score = "global",
    near_duplicates: NearDuplicates = "count",
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> dict[str, Any]:
    """Finds reports by image and images by report; adds the section ``retrieval`` to the run's ``metrics.json``.

    Args:
        run: Folder of a pretrained run.
        split: Which pairs.
        score: Cosine of the global embeddings, or with the local score of words and regions beside it, both
            brought to the same spread over all pairs.
        near_duplicates: Count images that are equal or nearly equal to pretraining images, leave them out, or do not
            look for them.
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The section: what :func:`~recipes.shared.scores.retrieval.retrieval_scores` gives for the split, with
        ``split``, ``score``, ``model``, ``route_on``, ``images``, ``texts`` (distinct ones), ``near_duplicates`` and
        ``checkpoint``.

    Raises:
        ValueError: If the split is a stream.
    """
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.inference.near_duplicates import without_near_duplicates
    from recipes.medmoe.inference.opening import open_session

    session = open_session(run, checkpoint, baseline)
    pairs = getattr(session.source(), split)
    if isinstance(pairs, PairStream):
        raise ValueError(
            f"split: the {split} split of this run is a stream, which cannot be ranked: use --split val or test."
        )
    # Pretraining images are their own duplicates: there is nothing to count.
    mode: NearDuplicates = "ignore" if split == "train" and near_duplicates == "count" else near_duplicates
    pairs, overlap = without_near_duplicates(session, pairs, split, mode)
    result = {"split": split, "checkpoint": checkpoint} | retrieve(session, pairs, score=score)
    result["near_duplicates"] = overlap
    update_metrics(run, retrieval=result)
    print(_line(result))
    if overlap is not None:
        print(f"near-duplicates: {overlap['in_words']}")
    if session.is_run:  # a released model has no other stages of its own
        print(next_command(run, "retrieve", data=session.data))
    return result


def retrieve(session: "ModelSession", pairs: StudySplit, *, score: Score = "global") -> dict[str, Any]:
    """Ranks the texts of a split by its images and the other way round.

    Args:
        session: The run.
        pairs: Images with texts.
        score: See :func:`main`.

    Raises:
        ValueError: If an image has no text, or local scores need the kind of an image that is not known.
    """
    from recipes.medmoe.inference.embedding import embed

    lacking = [name for name, text in zip(pairs.ids, pairs.texts, strict=True) if not text]
    if lacking:
        raise ValueError(f"pairs must all have a text, but {len(lacking)} have none, such as {lacking[0]!r}.")
    texts, index = unique_texts([str(text) for text in pairs.texts])
    local = score == "global+local"
    embedded = embed(session, pairs, texts, local=local, kind=None, title="retrieval")
    scores = embedded.images @ embedded.prompts.T
    if embedded.local is not None:
        scores = (_standard(scores) + _standard(embedded.local)) / 2
    about = {
        "score": score,
        "model": session.name,
        "route_on": session.route_on,
        "images": len(pairs),
        "texts": len(texts),
    }
    return about | retrieval_scores(scores, index)


def _standard(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standardises over all pairs, which keeps every ranking and lets two scores be added."""
    spread = scores.std()
    return (scores - scores.mean()) / (spread if spread > 0 else 1)


def _line(result: dict[str, Any]) -> str:
    ways = []
    for way in ("image_to_text", "text_to_image"):
        one = result[way]
        recalls = ", ".join(
            f"R@{k} {one['recall'][str(k)]:.3f} (chance {one['chance']['recall'][str(k)]:.3f})" for k in RECALLS
        )
        ways.append(f"{way.replace('_', ' ')}: {recalls}, median rank {one['median_rank']:g} of {one['candidates']}")
    return "\n".join(ways)
