"""What the paper prints, and where its figures contradict each other. None of it is reproduced here.

Reference:
    Chopra et al. 2025, https://arxiv.org/abs/2506.08356, Tables 1 and 2, Figure 3.
"""

COLUMN = "reported by the paper, not reproduced here"
"""Title of every column of the paper's figures."""
OURS = "medmoe"

SETS = {
    "chexpert5x200": "CheXpert (5x200)",
    "rsna": "RSNA",
    "thyroid": "Thyroid",
    "busi": "Breast",
    "acl": "ACL",
    "meniscus": "Meniscus",
    "medimeta-axial": "MedIMeta Axial",
    "medimeta-coronal": "MedIMeta Coronal",
    "medimeta-sagittal": "MedIMeta Sagittal",
}
"""The paper's nine sets, by the names that ``zero-shot --set`` has for them."""

TABLE_1: dict[str, tuple[float, ...]] = {
    "quiltnet": (18.20, 45.45, 60.12, 42.27, 34.49, 55.57, 10.03, 5.83, 9.38),
    "keepfit": (23.30, 50.00, 40.12, 59.72, 66.32, 62.26, 8.74, 12.46, 9.06),
    "gloria": (61.00, 50.00, 79.16, 72.43, 43.75, 76.44, 3.39, 3.39, 3.39),
    "medclip": (59.42, 73.63, 44.68, 53.98, 68.01, 45.27, 9.87, 13.92, 10.36),
    "pmc-clip": (30.30, 74.99, 58.60, 68.76, 67.09, 65.03, 33.98, 20.23, 23.30),
    "biomedclip": (38.30, 72.56, 61.05, 68.12, 47.89, 40.09, 29.13, 19.09, 20.39),
    "unimed-clip": (65.90, 71.65, 71.35, 66.31, 85.82, 85.27, 37.54, 24.43, 31.72),
    OURS: (66.03, 78.32, 62.74, 69.32, 77.92, 74.87, 40.00, 28.32, 26.83),
}
"""Zero-shot accuracy in percent by model, on `SETS` in their order. Baselines are released weights, trained on other
data than ours."""

AVERAGES_1 = {
    "quiltnet": 31.26, "keepfit": 36.88, "gloria": 43.66, "medclip": 42.12, "pmc-clip": 49.14, "biomedclip": 44.06,
    "unimed-clip": 59.98, OURS: 58.26,
}  # fmt: skip
"""Its column "Avg."."""

SETS_2 = ("rsna", "thyroid", "acl", "medimeta-axial")
TABLE_2: dict[str, tuple[tuple[float, float, float], ...]] = {
    "clip": ((71.67, 73.89, 81.09), (70.99, 72.51, 75.99), (56.99, 85.89, 91.73), (32.20, 45.97, 70.06)),
    "pmc-clip": ((65.25, 64.15, 79.47), (46.78, 56.61, 61.40), (57.00, 63.47, 77.92), (35.92, 43.04, 57.61)),
    "biomedclip": ((80.04, 78.32, 83.84), (76.96, 80.47, 81.87), (44.13, 65.46, 90.12), (29.77, 59.06, 77.67)),
    "unimed-clip": ((79.52, 79.19, 88.51), (55.67, 64.44, 76.84), (89.61, 95.28, 97.28), (39.97, 57.28, 76.38)),
    OURS: ((81.12, 83.84, 87.83), (73.99, 76.96, 79.83), (85.89, 89.77, 92.84), (42.68, 62.13, 76.38)),
}
"""Accuracy of a linear probe in percent by model, on `SETS_2` in their order, with 1, 10 and 100 % of training."""
FRACTIONS = (0.01, 0.1, 1.0)


def table_1(model: str, data_set: str) -> float | None:
    """Returns the paper's figure of Table 1 in percent, ``None`` where it has none.

    Args:
        model: A row: ``"medmoe"``, or the name of a released model.
        data_set: Its name for ``--set``.
    """
    if model not in TABLE_1 or data_set not in SETS:
        return None
    return TABLE_1[model][list(SETS).index(data_set)]


def table_2(model: str, data_set: str, fraction: float) -> float | None:
    """Returns the paper's figure of Table 2 in percent, ``None`` where it has none.

    Args:
        model: As for :func:`table_1`.
        data_set: Its name for ``--set``.
        fraction: Share of the training set.
    """
    if model not in TABLE_2 or data_set not in SETS_2 or fraction not in FRACTIONS:
        return None
    return TABLE_2[model][SETS_2.index(data_set)][FRACTIONS.index(fraction)]


def notes_1() -> list[str]:
    """Returns what contradicts itself in the paper's Table 1; every number is computed from :data:`TABLE_1`."""
    best = {name: max(TABLE_1, key=lambda model: TABLE_1[model][place]) for place, name in enumerate(SETS)}
    won = [SETS[name] for name, model in best.items() if model == OURS]
    lost = ", ".join(
        f"{SETS[name]} ({model} {table_1(model, name):.2f} against {table_1(OURS, name):.2f})"
        for name, model in best.items()
        if model != OURS
    )
    means = {model: sum(values) / len(values) for model, values in TABLE_1.items()}
    wrong = [
        f"{model} {AVERAGES_1[model]:.2f} (the mean of its row is {mean:.2f})"
        for model, mean in means.items()
        if abs(mean - AVERAGES_1[model]) > 0.01
    ]
    views = ("medimeta-axial", "medimeta-coronal", "medimeta-sagittal")
    ahead = [SETS[name] for name in views if best[name] == OURS]
    gains = {name: _less(name, "pmc-clip") for name in ("rsna", "busi")}
    knee = {name: _less(name, "biomedclip") for name in ("acl", "meniscus")}
    top = max(means, key=lambda model: means[model])
    return [
        f'The paper says that MedMoE "attains the best performance on 6/9 datasets". Of its own figures it is best on '
        f"{len(won)}: {', '.join(won)}. Not on {lost}.",
        f'It says "state-of-the-art results on all three CT views". Its own figures are highest on {len(ahead)} of '
        f"them, {' and '.join(ahead)}.",
        f"Its average, {means[OURS]:.2f}, is below that of {top}, {means[top]:.2f}, by {means[top] - means[OURS]:.2f} "
        "points.",
        f"Differences that agree with its table: {gains['rsna']:+.2f} (RSNA) and {gains['busi']:+.2f} (Breast) to "
        f"PMC-CLIP, {knee['acl']:+.2f} (ACL) and {knee['meniscus']:+.2f} (Meniscus) to BiomedCLIP.",
        f"It counts Breast among the six; GLoRIA, trained on chest radiographs, has {table_1('gloria', 'busi'):.2f} "
        f"there, {-_less('busi', 'gloria'):.2f} points more.",
        (
            f"Its column of averages differs from the means of its rows: {'; '.join(wrong)}."
            if wrong
            else "Its column of averages agrees with the means of its rows."
        ),
        "It cites the RSNA pulmonary embolism CT data for RSNA, which it lists among radiographs; the set here is the "
        "pneumonia challenge.",
        "Its baselines are released weights trained on other data, so its table does not tell what the experts buy. "
        "The rows without -released here are trained on the same data by the same trainer.",
    ]


def notes_2() -> list[str]:
    """Returns what contradicts itself in the paper's Table 2; every number is computed from :data:`TABLE_2`."""
    acl, fraction = "acl", 0.01
    ours = TABLE_2[OURS][SETS_2.index(acl)][FRACTIONS.index(fraction)]
    above = {m: v for m in TABLE_2 if (v := TABLE_2[m][SETS_2.index(acl)][0]) > ours}
    cells = [(place, column) for place in range(len(SETS_2)) for column in range(len(FRACTIONS))]
    best = sum(TABLE_2[OURS][p][c] >= max(values[p][c] for values in TABLE_2.values()) for p, c in cells)
    axial = {model: values[3][2] for model, values in TABLE_2.items()}
    thyroid = {model: values[1][0] for model, values in TABLE_2.items()}
    return [
        f'With 1 % of ACL it says that {ours:.2f} % is "matching or exceeding all generalist baselines"; '
        + ", ".join(f"{model} has {value:.2f}" for model, value in above.items())
        + ".",
        f"MedMoE is best in {best} of its {len(cells)} cells.",
        f"With all of MedIMeta Axial it marks {axial[OURS]:.2f} as second best; UniMed-CLIP has the same, "
        f"{axial['unimed-clip']:.2f}.",
        f"It calls BiomedCLIP, which is trained on figures of all kinds, modality-specialised where that is ahead: "
        f"with 1 % of Thyroid by {thyroid['biomedclip'] - thyroid[OURS]:.2f} points.",
        "It does not say what chose the weight decay of the linear layer, or whether the validation set took part in "
        "the fit. With 1 % of training, where that set is much the larger one, this decides the figure.",
    ]


NOTES_3 = (
    "The paper shows one image of each of four kinds, and says that each expert attends to relevant regions. It gives "
    "no number, no other model's maps of the same images, and no word that is absent.",
    "A map may lie on a finding without having read the word: because findings lie where they usually lie, or because "
    "anything unusual attracts every word. The baselines of the pointing game are for that.",
)
"""What Figure 3 leaves open."""


def _less(data_set: str, model: str) -> float:
    ours, other = table_1(OURS, data_set), table_1(model, data_set)
    assert ours is not None
    assert other is not None
    return ours - other


def percent_text(value: float | None) -> str | None:
    """Returns a figure of the paper as its tables print it."""
    return None if value is None else f"{value:.2f}"
