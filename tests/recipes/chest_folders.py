"""Generated folders in the layouts of public sets of chest radiographs, six patients each and more."""

import gzip
import io
import tarfile

import numpy as np
from PIL import Image

from recipes.data.chest import chexpert, mimic_cxr
from tests.recipes.data.dicom_files import write_dicom

OLD_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def draw(path, seed, shape=(24, 20)):
    """Writes an image whose kind is that of its ending: 8 or 16-bit PNG, JPEG, TIFF or DICOM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    if path.suffix == ".dcm":
        write_dicom(path, pixels)
    elif path.suffix == ".png" and seed % 2:
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(pixels).save(path)


def chestxray14(root, *, old=False, patients=10):
    """Two images of each patient, the first half in ``images_001/images``; the last two patients are for test."""
    findings = ["No Finding", "Effusion|Mass", "Pneumonia", "Effusion"]
    rows, lists = [], {"train_val": [], "test": []}
    for patient in range(1, patients + 1):
        for number in range(2):
            name = f"{patient:08d}_{number:03d}.png"
            folder = "images" if patient > patients // 2 or old else "images_001/images"
            draw(root / folder / name, patient * 2 + number)
            age, end = ("058Y", ",") if old else ("58", "")
            finding = findings[(patient + number) % 4]
            rows.append(f"{name},{finding},{number},{patient},{age},M,{'AP' if number else 'PA'},24,20,0.1,0.1{end}")
            lists["test" if patient > patients - 2 else "train_val"].append(name)
    header = OLD_HEADER + ("," if old else "")
    table = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
    (root / table).write_text("\n".join([header, *rows]) + "\n")
    (root / "train_val_list.txt").write_text("\n".join(lists["train_val"]) + "\n")
    (root / "test_list.txt").write_text("\n".join(lists["test"]))
    return root


def chexpert_row(patient, view, cells, *, part="train"):
    """A row of CheXpert's tables; ``cells`` by label, blank for the others."""
    side = "" if view == "lateral" else "AP"
    path = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1/view1_{view}.jpg"
    labels = ",".join(cells.get(name, "") for name in chexpert.CLASSES)
    return f"{path},Female,68,{view.capitalize()},{side},{labels}"


def chexpert_folder(root, *, train=12, valid=4, ending=".jpg"):
    """A frontal and a lateral image of each patient; in ``valid.csv`` every label is 0 or 1."""
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(chexpert.CLASSES)
    for part, patients in (("train", range(train)), ("valid", range(train, train + valid))):
        rows = []
        for patient in patients:
            for view in ("frontal", "lateral"):
                draw(root / part / f"patient{patient:05d}" / "study1" / f"view1_{view}{ending}", patient)
                cells = {"Edema": ["1.0", "0.0", "-1.0"][patient % 3], "Cardiomegaly": ["-1.0", "1.0"][patient % 2]}
                if part == "valid":
                    cells = {name: f"{(patient + i) % 2}.0" for i, name in enumerate(chexpert.CLASSES)}
                rows.append(chexpert_row(patient, view, cells, part=part))
        (root / f"{part}.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


REPORT = (
    "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  Cough {n}.\n \n"
    " COMPARISON:  None.\n \n FINDINGS:  Lungs {n} are clear.\n \n IMPRESSION:  No acute process {n}.\n"
)


def mimic_cxr_folder(root, *, patients=10, ending=".jpg", compressed=True):
    """One study of two views for each patient; the report of every third lacks findings and impression."""
    tables = {
        "metadata": ["dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows"],
        "split": ["dicom_id,study_id,subject_id,split"],
        "chexpert": ["subject_id,study_id," + ",".join(mimic_cxr.CLASSES)],
    }
    for n in range(patients):
        subject, study = f"{10000000 + n * 1000}", f"{50000000 + n}"
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
        split = {patients - 1: "test", patients - 2: "test", patients - 3: "validate", patients - 4: "validate"}
        for view in ("PA", "LATERAL"):
            name = f"{n:08x}-{view.lower()}"
            draw(folder / f"s{study}" / f"{name}{ending}", n)
            tables["metadata"].append(f"{name},{subject},{study},CHEST,{view},2500")
            tables["split"].append(f"{name},{study},{subject},{split.get(n, 'train')}")
        labels = {"Edema": f"{n % 2}.0", "Atelectasis": ["-1.0", "1.0", "0.0"][n % 3]}
        tables["chexpert"].append(f"{subject},{study}," + ",".join(labels.get(c, "") for c in mimic_cxr.CLASSES))
        report = REPORT.format(n=n) if n % 3 else f" WET READ: seen.\n \n The lungs of {n} are clear.\n"
        (folder / f"s{study}.txt").write_text(report)
    for name, lines in tables.items():
        data = ("\n".join(lines) + "\n").encode()
        path = root / f"mimic-cxr-2.0.0-{name}.csv{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(data) if compressed else data)
    return root


def openi_xml(n, images, headings=("normal",), findings="Heart of XXXX size is normal."):
    """A report of Open-i."""
    parts = "".join(
        f'<AbstractText Label="{label}">{text}</AbstractText>'
        for label, text in (("COMPARISON", "None."), ("INDICATION", ""), ("FINDINGS", findings), ("IMPRESSION", "Ok."))
    )
    major = "".join(f"<major>{heading}</major>" for heading in headings)
    parents = "".join(f'<parentImage id="{image}"><figureId>F1</figureId></parentImage>' for image in images)
    return f"<eCitation><uId id='CXR{n}'/><Abstract>{parts}</Abstract><MeSH>{major}</MeSH>{parents}</eCitation>"


def openi_folder(root, *, reports=12, archive=False):
    """One or two images of each report; every third is normal, the second to last is not indexed."""
    root.mkdir(parents=True, exist_ok=True)
    files = {}
    for n in range(1, reports + 1):
        images = [f"CXR{n}_IM-0001-{1 + view}001" for view in range(1 + n % 2)]
        headings = [("normal",), ("Pulmonary Atelectasis/base/left", "Opacity/lung"), ("Cardiomegaly/mild",)][n % 3]
        if n == reports - 1:
            headings = ("No Indexing",)
        files[f"{n}.xml"] = openi_xml(n, images, headings, findings=f"Lungs of {n} are clear.").encode()
        for view, image in enumerate(images):
            draw(root / "NLMCXR_png" / f"{image}.png", n * 2 + view)
    files["99.xml"] = openi_xml(99, []).encode()
    if archive:
        with tarfile.open(root / "NLMCXR_reports.tgz", "w:gz") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(f"ecgen-radiology/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        (root / "ecgen-radiology").mkdir()
        for name, data in files.items():
            (root / "ecgen-radiology" / name).write_bytes(data)
    return root
