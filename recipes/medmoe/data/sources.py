"""Where pairs come from: drawn images, a csv, or WebDataset tars."""

from dataclasses import replace

from recipes.data.arguments import DRAWN_FLAGS, Spelling, flags_of, spelled
from recipes.data.pairs import PairSource, PairStream
from recipes.data.phantom import phantom_modalities_source
from recipes.data.tables.pairs import pair_manifest_source
from recipes.data.tars.shards import shard_source
from recipes.medmoe.config import Config, DataConfig, ModelConfig

_RENAMED = {"seed": "split_seed", "train": "data", "val": "val_shards", "test": "test_shards"}
"""Settings that are arguments of the readers under other names."""

SPELLING = Spelling(flags_of([DataConfig, ModelConfig], renamed=_RENAMED))
"""How the arguments of the readers are typed."""


@spelled(SPELLING)
def build_source(config: Config) -> PairSource:
    """Opens the pairs that ``config.data.data`` names.

    Args:
        config: What and how to read; the model's settings name the modalities and the side of drawn images.

    Raises:
        ValueError: If there is no such data set; the message lists the kinds there are.
    """
    data = config.data
    if data.data == "phantom":
        sizes = data.phantom
        with spelled(Spelling(DRAWN_FLAGS)):
            return phantom_modalities_source(
                train=sizes.train_studies,
                val=sizes.val_studies,
                test=sizes.test_studies,
                size=config.model.image_size,
            )
    name = data.data.lower()
    if name.endswith((".csv", ".csv.gz")):
        m = data.manifest
        return pair_manifest_source(
            data.data,
            image_column=m.image_column,
            text_column=m.text_column,
            modality_column=m.modality_column,
            modality=data.modality,
            split_column=m.split_column,
            seed=m.split_seed,
            fractions=m.fractions,
            group_column=m.group_column,
            image_root=m.image_root,
            force_dicom=data.force_dicom,
            on_bad_image=m.on_bad_image,
            on_missing_text=m.on_missing_text,
        )
    if name.endswith(".tar"):
        s = data.shards
        return shard_source(
            data.data,
            s.val_shards,
            s.test_shards,
            modality=data.modality,
            modalities=config.model.modalities,
            text_key=s.text_key,
            shuffle_buffer=s.shuffle_buffer,
            force_dicom=data.force_dicom,
        )
    raise ValueError(f"data must be 'phantom', a .csv, or WebDataset shards (.tar), got {data.data!r} (--data).")


@spelled(SPELLING)
def indexed(source: PairSource, workers: int, *, shown: bool) -> PairSource:
    """Finds out where the training pairs lie, if they are a stream, and notes what is left out.

    Args:
        source: The pairs.
        workers: Processes that read.
        shown: Whether there is a progress bar.

    Raises:
        ValueError: If no training pair can be read.
    """
    if not isinstance(source.train, PairStream):
        return source
    notes = source.train.build_index(workers=workers, title="index train" if shown else None)
    return replace(source, notes=(*source.notes, *notes))


def train_texts(source: PairSource, most: int = 20_000) -> list[str]:
    """Returns texts of the training pairs, the first ones of a stream, to make a vocabulary of."""
    if isinstance(source.train, PairStream):
        return source.train.first_texts(most)
    return [text for text in source.train.texts if text]
