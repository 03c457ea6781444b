"""Where studies come from: drawn images, a csv, MedMNIST files, or public sets of chest radiographs."""

from dataclasses import fields, replace
from pathlib import Path

from recipes.data.arguments import DRAWN_FLAGS, Spelling, flags_of, spelled
from recipes.data.chest.options import ChestOptions
from recipes.data.chest.sets import CHEST_SETS, split_name
from recipes.data.medmnist.npz import medmnist_source
from recipes.data.phantom import phantom_hard_source, phantom_source
from recipes.data.studies import StudySource, StudySplit
from recipes.data.tables.sections import section_of, sections_of
from recipes.data.tables.studies import manifest_source
from recipes.data.tables.text_columns import text_columns
from recipes.medvlmoe.config import ChestConfig, DataConfig, ManifestConfig

_SHARED_SETTINGS = ("text_section", "uncertain", "blank", "on_bad_image", "split_seed", "fractions")
"""Settings of `ManifestConfig` that sets of chest radiographs have too."""


_RENAMED = {
    "size": "data_size",
    "root": "data_root",
    "seed": "split_seed",
    "attribute_columns": "subgroup_columns",
}
"""Settings that are arguments of the readers under other names."""

SPELLING = Spelling(flags_of([DataConfig], renamed=_RENAMED))
"""How the arguments of the readers are typed."""

_DRAWN = Spelling({"num_contexts": "--num-contexts", **DRAWN_FLAGS})


@spelled(SPELLING)
def build_source(config: DataConfig, image_size: int, *, allow_crossing: bool = False) -> StudySource:
    """Opens the data set that ``config.data`` names.

    Args:
        config: What and how to read.
        image_size: Side at which phantoms are drawn, in pixels.
        allow_crossing: Whether a patient may lie in two splits; only to list what splits share.

    Raises:
        ValueError: If there is no such data set; the message lists the kinds there are. If the column of texts is blank
            for every training study.
    """
    if config.chest != ChestConfig() and split_name(config.data) is None:
        raise ValueError(
            f"views and official_splits are for {', '.join(CHEST_SETS)}, got data={config.data!r}: leave --views and "
            "--no-official-splits out."
        )
    if config.data in ("phantom", "phantom-hard"):
        drawn = config.phantom
        sizes = {"train": drawn.train_studies, "val": drawn.val_studies, "test": drawn.test_studies, "size": image_size}
        with spelled(_DRAWN):
            if config.data == "phantom":
                return phantom_source(**sizes)
            return phantom_hard_source(**sizes, num_contexts=drawn.num_contexts)
    chest = split_name(config.data)
    if chest is not None:
        _refuse_columns(config.manifest, chest[0])
        source = CHEST_SETS[chest[0]](chest[1], _chest_options(config, allow_crossing))
        return replace(source, notes=(*source.notes, *_section_notes(source, config)))
    name = config.data.lower()
    if name.endswith((".csv", ".csv.gz")):
        m = config.manifest
        source = manifest_source(
            config.data,
            image_column=m.image_column,
            text_column=m.text_column if config.use_text else None,
            label_columns=m.label_columns or None,
            label_column=m.label_column,
            label_separator=m.label_separator,
            negative_label=m.negative_label,
            classes=m.classes or None,
            task=m.task,
            seed=m.split_seed,
            fractions=m.fractions,
            split_column=m.split_column,
            group_column=m.group_column,
            attribute_columns=m.subgroup_columns,
            image_root=m.image_root,
            force_dicom=config.force_dicom,
            uncertain=m.uncertain,
            blank=m.blank or "ignore",
            on_bad_image=m.on_bad_image,
            allow_crossing=allow_crossing,
            blank_images=True,
        )
        _check_texts(source, config)
        return replace(source, notes=(*source.notes, *_section_notes(source, config), *_unread_texts(config)))
    if name.endswith(".npz") or (name.isidentifier() and not Path(config.data).exists()):
        return medmnist_source(config.data, size=config.data_size, root=config.data_root, download=config.download)
    raise ValueError(
        "data must be 'phantom', 'phantom-hard', a .csv, an .npz or the name of a MedMNIST set, or NAME:FOLDER with "
        f"one of {', '.join(CHEST_SETS)}, got {config.data!r}."
    )


def unread_settings(config: DataConfig) -> frozenset[str]:
    """Returns the settings that nothing reads for the data set in hand, as ``phantom.num_contexts`` or ``chest``.

    Another value of one of them, such as a later version's default, makes no other run.

    Args:
        config: What and how to read.
    """
    unread: set[str] = set()
    drawn, chest = config.data in ("phantom", "phantom-hard"), split_name(config.data) is not None
    table = not drawn and not chest and config.data.lower().endswith((".csv", ".csv.gz"))
    if not drawn:
        unread.add("phantom")
    elif config.data == "phantom":
        unread.add("phantom.num_contexts")
    if not chest:
        unread.add("chest")
    if not table:
        # The section of texts is looked for in whatever texts a set has.
        shared = _SHARED_SETTINGS if chest else ("text_section",)
        unread |= {f"manifest.{field.name}" for field in fields(ManifestConfig) if field.name not in shared}
    if drawn or chest or table:
        unread |= {"data_root", "data_size", "download"}
    return frozenset(unread)


def _refuse_columns(manifest: ManifestConfig, name: str) -> None:
    """Refuses settings that are for a csv alone."""
    unused = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(manifest)
        if field.name not in _SHARED_SETTINGS and getattr(manifest, field.name) != field.default
    ]
    if unused:
        raise ValueError(
            f"{', '.join(unused)}: for a csv of your own, but {name} is read by its own tables. Leave it out."
        )


def _chest_options(config: DataConfig, allow_crossing: bool) -> ChestOptions:
    return ChestOptions(
        views=config.chest.views,
        uncertain=config.manifest.uncertain,
        blank=config.manifest.blank,
        official_splits=config.chest.official_splits,
        texts=config.use_text,
        on_bad_image=config.manifest.on_bad_image,
        force_dicom=config.force_dicom,
        allow_crossing=allow_crossing,
        seed=config.manifest.split_seed,
        fractions=config.manifest.fractions,
    )


@spelled(SPELLING)
def texts_of(split: StudySplit, config: DataConfig, *, whole_notes: bool = False) -> list[str | None]:
    """Returns the texts that the model may read: the chosen section of each, or none.

    Args:
        split: The studies.
        config: Whether texts are used, and which section of them.
        whole_notes: Whether a text without any header is used whole where a section is chosen.

    Raises:
        ValueError: If the split has texts, but none has the section; the message lists the headers that they have.
    """
    section = config.manifest.text_section
    if not config.use_text:
        return [None] * len(split)
    if section is None:
        return list(split.texts)
    return sections_of(split.texts, section, whole_notes=whole_notes)


def _check_texts(source: StudySource, config: DataConfig) -> None:
    """Refuses a column of texts from which a model would be trained without any."""
    column = config.manifest.text_column
    if config.use_text and column is not None and not any(source.train.texts):
        raise ValueError(
            f"{config.data}: column {column!r} is blank for all {len(source.train)} training studies, so no text would "
            "be read. Name the column that holds the texts (--text-column), or pass --no-use-text."
        )


def _unread_texts(config: DataConfig) -> list[str]:
    """Says that a csv seems to hold texts where no column of them was named."""
    m = config.manifest
    if not config.use_text or m.text_column is not None:
        return []
    known = {m.image_column, m.label_column, m.split_column, m.group_column, *m.label_columns}
    return [
        f"column {name!r} seems to hold texts, and no text is read: pass --text-column {name!r} to read it, or "
        "--no-use-text to leave it out"
        for name in text_columns(Path(config.data), known)
    ]


def _section_notes(source: StudySource, config: DataConfig) -> list[str]:
    """Says of how many texts the chosen section is read, if not of all."""
    section = config.manifest.text_section
    texts = [text for _, split in source.splits() for text in split.texts if text is not None]
    if section is None or not config.use_text or not texts:
        return []
    count = sum(section_of(text, section) is not None for text in texts)
    if count == len(texts):
        return []
    return [f"{count} of {len(texts)} texts have the section {section!r}; the other studies count as without text"]
