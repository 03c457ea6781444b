"""Finds images in an index: by a text, or by another image."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recipes.data.image_folders import image_files
from recipes.medmoe.choices import Checkpoint
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.use.index import Index, nearest, read_index
from recipes.shared.outputs import check_file


def main(
    run: Path,
    *,
    index: Path = Path("index.npz"),
    text: tuple[str, ...] = (),
    image: tuple[Path, ...] = (),
    top: int = 10,
    out: Path | None = None,
    faiss: bool = False,
    force_dicom: bool = False,
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> pd.DataFrame:
    """Finds the images of an index that fit texts, or that are like other images.

    Args:
        run: Folder of the run that made the index.
        index: File that embed wrote.
        text: What to look for; each text is a query of its own.
        image: Image files, or folders of them, to which similar ones are looked for. A file is never its own answer.
        top: How many images for each query.
        out: Table to write as well.
        faiss: Search with faiss (extra search): exact too, and quicker in millions of images.
        force_dicom: Read DICOM files without preamble and file meta group; always if the run does.
        checkpoint: Which weights; those of the index.
        baseline: Another model instead of the run's own.

    Returns:
        One row per query and image: ``query``, ``rank``, ``score`` (the cosine), ``image`` and, if the index has texts,
        ``text``.

    Raises:
        ValueError: If there is no query, the index is missing, damaged or of other weights, the tokenizer knows no word
            of a text, or an image cannot be read.
        ImportError: If a library of the extra search is missing.
    """
    if not text and not image:
        raise ValueError("give what to look for: --text WORDS, --image FILES, or both.")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top} (--top).")
    if out is not None:
        check_file(out, "--out")
    kept, files = read_index(index), tuple(image_files(image))
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.inference.opening import open_session
    from recipes.medmoe.inference.vocabulary import words_unknown_to
    from recipes.medmoe.use.embeddings import image_embeddings, made_by, text_embeddings
    from recipes.medmoe.use.images import Images

    session = open_session(run, checkpoint, baseline, writes=())
    if made_by(session, checkpoint)["weights"] != kept.about["weights"]:
        raise ValueError(
            f"{index} was made by other weights (run {kept.about['run']}, {kept.about['checkpoint']}), whose "
            f"embeddings cannot be compared with those of {run}: make it anew with embed, or name its run (--index)."
        )
    parts: list[Any] = []
    if text:
        for one in text:
            words = words_unknown_to(session, [one])
            if words is not None and words.share == 1:
                raise ValueError(
                    f"text: the tokenizer knows no word of {one!r}: use words of the training texts (--text)."
                )
            if words is not None and words.count:
                print(words.in_words(f"text {one!r}"))
        parts.append(text_embeddings(session, text))
    if files:
        split = Images(image=files, force_dicom=force_dicom).open(force_dicom=session.force_dicom)
        parts.append(image_embeddings(session, split, title="search"))
    table = _found(kept, [*text, *map(str, files)], np.concatenate(parts), top, faiss=faiss)
    print(table.to_string(index=False, max_rows=60, max_colwidth=60, float_format="{:.4f}".format))
    if out is not None:
        table.to_csv(out, index=False)
        print(f"written: {out} ({len(table)} rows)")
    return table


def _found(index: Index, queries: list[str], vectors: np.ndarray, top: int, *, faiss: bool) -> pd.DataFrame:
    """Puts the best images of each query into rows; a query's own file is left out."""
    places = {str(Path(path).resolve()): row for row, path in enumerate(index.images)}
    own = [places.get(str(Path(query).resolve())) for query in queries]
    cosines, found = nearest(index, vectors, top + any(row is not None for row in own), faiss=faiss)
    rows = []
    for number, query in enumerate(queries):
        pairs = [(c, r) for c, r in zip(cosines[number], found[number], strict=True) if r != own[number]][:top]
        for rank, (cosine, row) in enumerate(pairs, 1):
            one = {"query": query, "rank": rank, "score": float(cosine), "image": index.images[row]}
            rows.append(one | ({} if index.texts is None else {"text": index.texts[row]}))
    return pd.DataFrame(rows)
