"""What the paper prints, and where its figures contradict each other. None of it is reproduced here.

Reference:
    Khan 2025, https://doi.org/10.55529/jaimlnn.51.114.121, Tables 1 and 2, Figures 2 and 3.
"""

COLUMN = "reported by the paper, not reproduced here"
"""Title of every column of the paper's figures."""

SETS = {
    "chestxray14": "ChestX-ray14",
    "chexpert": "CheXpert",
    "mimic-cxr": "MIMIC-CXR",
    "pathmnist": "PathMNIST",
    "retinamnist": "RetinaMNIST",
}
"""The paper's data sets, by the names that ``--data`` has for them."""

TABLE_1: dict[str, tuple[str, ...]] = {
    "convirt": ("81.3 ± 0.6", "83.9 ± 0.7", "80.1 ± 0.8", "85.4 ± 0.9", "83.2 ± 0.7"),
    "biovil": ("83.7 ± 0.5", "85.4 ± 0.6", "82.5 ± 0.7", "87.1 ± 0.7", "84.9 ± 0.6"),
    "gloria": ("82.5 ± 0.6", "84.7 ± 0.7", "81.8 ± 0.8", "86.3 ± 0.8", "83.8 ± 0.7"),
    "clip-med": ("83.1 ± 0.5", "85.6 ± 0.6", "82.4 ± 0.7", "88.3 ± 0.6", "86.5 ± 0.5"),
    "biobert-vqa": ("79.8 ± 0.7", "81.2 ± 0.8", "78.9 ± 0.9", "84.6 ± 0.8", "82.1 ± 0.7"),
    "medvlmoe": ("89.3 ± 0.4", "91.2 ± 0.3", "88.7 ± 0.5", "94.1 ± 0.3", "92.8 ± 0.4"),
}
"""AUROC in percent by model, on `SETS` in their order."""

TABLE_2 = {
    "full": ("89.3 ± 0.4", "–"),
    "single-ffn": ("86.1 ± 0.5", "-3.2"),
    "no-fusion": ("84.7 ± 0.6", "-4.6"),
    "no-text": ("83.2 ± 0.6", "-6.1"),
    "vision-only": ("81.5 ± 0.7", "-7.8"),
}
"""AUROC in percent on ChestX-ray14, and its difference to the full model, by variant."""

NOTES_1 = (
    "The paper calls CLIP-Med the best baseline. Of its own figures BioViL is better on two of five sets: ChestX-ray14 "
    "(83.7 against 83.1) and MIMIC-CXR (82.5 against 82.4).",
    "Its text says that the gain over CLIP-Med is 3.7 to 6.3 points (abstract), 3.7 to 6.2 (introduction) and 5.7 to "
    "6.2 on radiographs (section 4.1). Its table has 6.2, 5.6, 6.3, 5.8 and 6.3; 3.7 occurs nowhere in it.",
    "ChestX-ray14, PathMNIST and RetinaMNIST have no reports. The paper does not state "
    "what its text encoders read there.",
    "The paper cites no source for CLIP-Med and BioBERT-VQA; what we take them to be is on the page of the baselines.",
    '"95% CI over 3 seeds" of ± 0.3 to ± 0.9 would be standard deviations of 0.1 to 0.4 points: an interval of three '
    "values is mean ± 2.48 of them. It says nothing of the choice of patients.",
)
"""Contradictions of Table 1."""

NOTES_2 = (
    "The paper's Table 2 is of ChestX-ray14, which has no reports: its rows without fusion and without text encoder "
    "cannot be what was run, or the text that was read there is not described.",
    'The paper\'s "single FFN" has the size of one expert (`single-ffn`), so at top 2 half of the active FLOPs of the '
    "experts. `no-moe` has equal ones; the paper has no such row.",
    "The paper calls its ± an interval over three seeds.",
)
"""Contradictions of Table 2."""

NOTES_3 = (
    'The paper says that experts are "mainly activated" in their diseases "with a routing rate of more than 35%" on '
    "the diagonal, of 8 experts at top 2. No share of routed slots can pass 1/2 then, and uniform routing gives 1/8.",
    "It has 8 experts and data sets of 14, 14, 14, 9 and 5 classes, and does not say which diseases the diagonal is "
    "of, how experts were assigned to them, or on which split.",
)
"""What Figure 3 leaves open."""


def paper_set(name: str) -> str | None:
    """Returns the paper's name of a data set.

    Args:
        name: Its name for ``--data``, such as ``"chexpert"``.
    """
    return SETS.get(name)


def table_1(model: str, data_set: str) -> str | None:
    """Returns the paper's figure of Table 1, ``None`` where it has none.

    Args:
        model: ``"medvlmoe"`` or the name of a baseline's preset.
        data_set: Its name for ``--data``.
    """
    if model not in TABLE_1 or data_set not in SETS:
        return None
    return TABLE_1[model][list(SETS).index(data_set)]
