"""Zero-shot prompts for the findings and for the normal state of each modality."""

from recipes.data.phantom.modalities.findings import NORMAL, findings_of

CLASS_PROMPTS: dict[str, tuple[str, ...]] = {
    "pleural effusion": (
        "There is a large pleural effusion at the lung base.",
        "Pleural effusion hides the diaphragm.",
        "Chest radiograph with a pleural effusion.",
    ),
    "consolidation": (
        "There is consolidation in the lung.",
        "Patchy consolidation with air bronchograms.",
        "Chest radiograph with an area of consolidation.",
    ),
    "lung nodule": (
        "There is a small lung nodule.",
        "A solitary lung nodule is seen.",
        "Chest radiograph with a well defined lung nodule.",
    ),
    "liver mass": (
        "There is a large liver mass.",
        "A hypodense liver mass is seen.",
        "CT of the abdomen shows a liver mass.",
    ),
    "kidney cyst": (
        "There is a kidney cyst.",
        "A smooth round kidney cyst is seen.",
        "CT of the abdomen with a kidney cyst of water density.",
    ),
    "kidney stone": (
        "There is a tiny kidney stone.",
        "A bright kidney stone is seen.",
        "CT of the abdomen with a small dense kidney stone.",
    ),
    "simple cyst": (
        "There is a large simple cyst.",
        "An anechoic simple cyst is seen in the breast.",
        "Breast ultrasound with a simple cyst.",
    ),
    "solid mass": (
        "There is an irregular solid mass.",
        "A hypoechoic solid mass is seen in the breast.",
        "Breast ultrasound with a suspicious solid mass.",
    ),
    "calcifications": (
        "There are tiny calcifications.",
        "A cluster of calcifications is seen in the breast.",
        "Breast ultrasound with grouped bright calcifications.",
    ),
    "brain tumor": (
        "There is a large brain tumor.",
        "A ring enhancing brain tumor is seen.",
        "Brain MRI with a necrotic brain tumor.",
    ),
    "infarct": (
        "There is an infarct in the brain.",
        "A wedge shaped infarct is seen.",
        "Brain MRI with an acute infarct.",
    ),
    "plaque": (
        "There is a tiny plaque in the white matter.",
        "A small demyelinating plaque is seen.",
        "Brain MRI with a single bright plaque.",
    ),
}
"""Zero-shot prompts of each finding."""

NORMAL_PROMPTS: dict[str, tuple[str, ...]] = {
    "xray": ("The lungs are clear and the heart is normal.", "Normal chest radiograph.", "Normal chest, clear lungs."),
    "ct": (
        "Liver, spleen and both kidneys are normal.",
        "Normal CT of the abdomen.",
        "Normal abdomen without focal abnormality.",
    ),
    "ultrasound": (
        "The breast layers are regular and normal.",
        "Normal ultrasound of the breast.",
        "Normal breast tissue without focal abnormality.",
    ),
    "mri": (
        "The brain and the ventricles are normal.",
        "Normal MRI of the brain.",
        "Normal brain without focal abnormality.",
    ),
}
"""Zero-shot prompts of each modality's normal state."""

DENIALS: tuple[str, ...] = ("No {finding}.", "No evidence of {finding}.", "Study without {finding}.")
"""How a finding is denied; a normal sentence follows, as reports say what is normal rather than what is not."""


def phantom_prompts(modality: str) -> dict[str, dict[str, list[str]]]:
    """Returns the zero-shot prompts of one drawn modality, in the form of a prompt file.

    Returns:
        ``"classes"``: prompts of each of its findings and of ``"normal"``; ``"absent"``: prompts that deny
        each finding, and for ``"normal"`` prompts that name one.

    Raises:
        ValueError: If the modality is not drawn.

    Example:
        >>> list(phantom_prompts("ct")["classes"])
        ['liver mass', 'kidney cyst', 'kidney stone', 'normal']
    """
    names = [finding.name for finding in findings_of(modality)]
    normal = NORMAL_PROMPTS[modality]
    denied = {
        name: [f"{denial.format(finding=name)} {then}" for denial, then in zip(DENIALS, normal, strict=True)]
        for name in names
    }
    return {
        "classes": {**{name: list(CLASS_PROMPTS[name]) for name in names}, NORMAL: list(normal)},
        "absent": {**denied, NORMAL: [CLASS_PROMPTS[name][0] for name in names]},
    }
