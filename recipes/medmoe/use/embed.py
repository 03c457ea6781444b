"""Embeddings of images of one's own, in a file: an index to search, or the input of other programs."""

from pathlib import Path
from typing import Any

import numpy as np

from recipes.medmoe.choices import Checkpoint
from recipes.medmoe.models.choice import RUN_ITSELF, OtherModel
from recipes.medmoe.use.images import NO_IMAGES, OwnImages
from recipes.medmoe.use.index import Index, check_suffix, texts_or_none, write_index
from recipes.shared.outputs import check_file


def main(
    run: Path,
    *,
    images: OwnImages = NO_IMAGES,
    out: Path = Path("index.npz"),
    checkpoint: Checkpoint = "best",
    baseline: OtherModel = RUN_ITSELF,
) -> Index:
    """Embeds images, and with --text-column their texts, into one file.

    Args:
        run: Folder of a pretrained run.
        images: The images.
        out: File to write, .npz or .parquet (which needs the extra search).
        checkpoint: Which weights.
        baseline: Another model instead of the run's own.

    Returns:
        The index that was written.

    Raises:
        ValueError: If there are no images, one cannot be read, or the file cannot be written.
        ImportError: If the file is parquet and pyarrow is missing.
    """
    check_suffix(out, "--out")
    check_file(out, "--out")
    # Imported here, so that --help does not wait for torch.
    from recipes.medmoe.inference.opening import open_session
    from recipes.medmoe.use.embeddings import image_embeddings, made_by, text_embeddings

    session = open_session(run, checkpoint, baseline, writes=())
    files = images.open(force_dicom=session.force_dicom)
    texts = texts_or_none(files.texts)
    index = Index(
        files.paths,
        image_embeddings(session, files, title="embed"),
        made_by(session, checkpoint),
        texts,
        None if texts is None else _texts(session, texts, text_embeddings),
    )
    write_index(out, index)
    print(f"written: {out} ({len(index.images)} images, {index.embeddings.shape[1]} numbers each)")
    return index


def _texts(session: Any, texts: tuple[str, ...], embed: Any) -> Any:
    """Embeds texts; of an empty one the embedding is 0."""
    rows = [row for row, text in enumerate(texts) if text.strip()]
    values = embed(session, [texts[row] for row in rows])
    full = np.zeros((len(texts), values.shape[1]), np.float32)
    full[rows] = values
    return full
