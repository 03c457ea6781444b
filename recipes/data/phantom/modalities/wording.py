"""The sentences that reports are made of."""

OPENINGS: dict[str, tuple[str, ...]] = {
    "xray": ("Frontal chest radiograph.", "Chest x-ray, single view.", "Radiograph of the chest."),
    "ct": ("Axial CT of the abdomen.", "Abdominal CT, one slice.", "CT slice of the upper abdomen."),
    "ultrasound": ("Ultrasound of the breast.", "Breast sonography.", "Targeted breast ultrasound."),
    "mri": ("Axial MRI of the brain.", "Brain MRI, one slice.", "FLAIR MRI of the head."),
}
"""What the study is."""

TECHNIQUES: dict[str, tuple[str, ...]] = {
    "xray": (
        "The film was taken at the bedside.",
        "Upright view in full inspiration.",
        "The patient is slightly rotated.",
        "No earlier films for comparison.",
    ),
    "ct": (
        "Scanned after oral and intravenous contrast.",
        "Images in the portal venous phase.",
        "Slice thickness is five millimeters.",
        "No earlier scan for comparison.",
    ),
    "ultrasound": (
        "Scanned with a high frequency probe.",
        "The patient was examined lying down.",
        "Gain and focus were adjusted.",
        "No earlier sonogram for comparison.",
    ),
    "mri": (
        "Acquired at three tesla with head coil.",
        "Slight motion during the sequence.",
        "Fluid signal has been suppressed.",
        "No earlier sequences for comparison.",
    ),
}
"""Asides that say nothing of the finding."""

SENTENCES: dict[str, tuple[str, ...]] = {
    "pleural effusion": (
        "There is a large pleural effusion {place}.",
        "Pleural effusion {place} hides the diaphragm.",
        "Fluid layers {place}, a pleural effusion.",
        "A moderate to large pleural effusion is seen {place}.",
    ),
    "consolidation": (
        "There is consolidation {place}.",
        "Patchy consolidation {place} with air bronchograms.",
        "An area of consolidation is seen {place}.",
        "Airspace consolidation has developed {place}.",
    ),
    "lung nodule": (
        "There is a small lung nodule {place}.",
        "A solitary lung nodule is seen {place}.",
        "Small round lung nodule {place}, sharply outlined.",
        "One well defined lung nodule {place}.",
    ),
    "liver mass": (
        "There is a large liver mass {place}.",
        "A hypodense liver mass is seen {place}.",
        "Large liver mass {place} with uneven margins.",
        "The scan shows a liver mass {place}.",
    ),
    "kidney cyst": (
        "There is a kidney cyst {place}.",
        "A smooth round kidney cyst is seen {place}.",
        "Kidney cyst of water density {place}.",
        "Simple appearing kidney cyst {place}.",
    ),
    "kidney stone": (
        "There is a tiny kidney stone {place}.",
        "A bright kidney stone is seen {place}.",
        "Small dense kidney stone {place}, not obstructing.",
        "Punctate kidney stone {place}.",
    ),
    "simple cyst": (
        "There is a large simple cyst {place}.",
        "An anechoic simple cyst is seen {place}.",
        "Simple cyst {place} with posterior enhancement.",
        "A smooth thin walled simple cyst {place}.",
    ),
    "solid mass": (
        "There is an irregular solid mass {place}.",
        "A hypoechoic solid mass is seen {place}.",
        "Spiculated solid mass {place} with acoustic shadow.",
        "Suspicious solid mass {place}.",
    ),
    "calcifications": (
        "There are tiny calcifications {place}.",
        "A cluster of calcifications is seen {place}.",
        "Grouped bright calcifications {place}.",
        "Several punctate calcifications lie {place}.",
    ),
    "brain tumor": (
        "There is a large brain tumor {place}.",
        "A ring enhancing brain tumor is seen {place}.",
        "Necrotic brain tumor {place} with surrounding edema.",
        "Large brain tumor {place} with a bright rim.",
    ),
    "infarct": (
        "There is an infarct {place}.",
        "A wedge shaped infarct is seen {place}.",
        "Recent cortical infarct {place}.",
        "Bright signal of an acute infarct {place}.",
    ),
    "plaque": (
        "There is a tiny plaque {place}.",
        "A small demyelinating plaque is seen {place}.",
        "Single bright oval plaque {place}.",
        "One focal white plaque {place}.",
    ),
}
"""How a report tells a finding; every sentence names it in its own words."""

NORMAL_SENTENCES: dict[str, tuple[str, ...]] = {
    "xray": (
        "The lungs are clear and the heart is normal.",
        "Normal chest without acute abnormality.",
        "Clear lungs, normal heart size, sharp costophrenic angles.",
    ),
    "ct": (
        "Liver, spleen and both kidneys are normal.",
        "Normal abdomen without focal abnormality.",
        "The solid organs are unremarkable, normal study.",
    ),
    "ultrasound": (
        "Normal breast tissue without focal abnormality.",
        "The breast layers are regular and normal.",
        "Unremarkable fibroglandular tissue, normal study.",
    ),
    "mri": (
        "Normal brain without focal abnormality.",
        "The brain and the ventricles are normal.",
        "Unremarkable brain parenchyma, normal signal throughout.",
    ),
}
"""How a report says that nothing was found; no finding is named."""
