import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.data.evaluation import busi, chexpert5x200, knee, rsna, sets, thyroid
from recipes.data.phantom import phantom_prompts
from recipes.medmoe.zero_shot.prompt_files import (
    choose_prompts,
    load_prompts,
    parse_prompts,
    prompt_files,
    template_prompts,
)

MEDIMETA_ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
CLASSES_OF = {
    "chexpert5x200": chexpert5x200.CLASSES,
    "rsna": rsna.CLASSES,
    "thyroid": thyroid.CLASSES,
    "busi": busi.CLASSES,
    "acl": knee.CLASSES["acl"],
    "meniscus": knee.CLASSES["meniscus"],
    **{f"organs_{plane}": MEDIMETA_ORGANS for plane in ("axial", "coronal", "sagittal")},
    "pocus_lung_us": ("bacterial", "covid", "regular", "viral"),
    "modalities": ("xray", "ct", "mri", "ultrasound", "pathology", "fundus"),
    "hrf_fundus": ("diabetic retinopathy", "glaucoma", "healthy"),
}


@pytest.mark.parametrize("name", CLASSES_OF)
def test_every_class_of_a_set_has_prompts(name):
    chosen = choose_prompts(load_prompts(name), CLASSES_OF[name])
    assert list(chosen.classes) == list(CLASSES_OF[name])
    assert all(len(texts) >= 3 for texts in chosen.classes.values())


@pytest.mark.parametrize("flag", sets.MODALITIES)
def test_every_class_of_a_medmnist_set_has_prompts(flag):
    medmnist = pytest.importorskip("medmnist")
    names = [medmnist.INFO[flag]["label"][str(k)] for k in range(len(medmnist.INFO[flag]["label"]))]
    choose_prompts(load_prompts(flag), names)


@pytest.mark.parametrize("name", prompt_files())
def test_no_text_stands_for_two_classes_or_twice_for_one(name):
    prompts = load_prompts(name)
    for texts in (*prompts.classes.values(), *prompts.absent.values()):
        assert len(set(texts)) == len(texts)
    if not name.startswith("organs_"):  # They know some organs by two names.
        every = [text for texts in prompts.classes.values() for text in texts]
        assert len(set(every)) == len(every)
    for one, texts in prompts.absent.items():
        assert not set(texts) & set(prompts.classes[one])


def test_the_phantom_prompts_have_the_form_of_a_file():
    for modality in ("xray", "ct", "ultrasound", "mri"):
        assert len(parse_prompts(phantom_prompts(modality), modality).classes) == 4


def test_all_are_taken_by_default_and_names_are_compared_plainly():
    prompts = parse_prompts({"classes": {"Lung-Nodule": ["a", "b"], "mass": ["c"]}, "absent": {"mass": ["d"]}}, "mine")
    chosen = choose_prompts(prompts, ["MASS", "lung_nodule"])
    assert chosen.to_json() == {"classes": {"MASS": ["c"], "lung_nodule": ["a", "b"]}, "absent": {"MASS": ["d"]}}
    assert chosen.name == "mine"
    assert choose_prompts(prompts).classes == prompts.classes


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 8), st.permutations(["a", "b", "c"]))
def test_draws_belong_to_seed_and_class_alone(seed, count, order):
    texts = {name: [f"{name} {k}" for k in range(8)] for name in "abc"}
    prompts = parse_prompts({"classes": texts, "absent": {"a": ["no a", "without a"]}}, "mine")
    drawn = choose_prompts(prompts, count=count, seed=seed)
    assert choose_prompts(prompts, order, count=count, seed=seed).classes == drawn.classes
    assert choose_prompts(prompts, order[:1], count=count, seed=seed).classes[order[0]] == drawn.classes[order[0]]
    for name, chosen in drawn.classes.items():
        assert len(set(chosen)) == count
        assert list(chosen) == sorted(chosen)
        assert set(chosen) <= set(texts[name])
    assert len(drawn.absent["a"]) == min(count, 2)


def test_a_file_is_read_as_utf_8(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes('{"classes": {"a": ["œdème"]}}'.encode())
    assert load_prompts(path).classes == {"a": ("œdème",)}
    path.write_bytes('{"classes": {"a": ["œdème"]}}'.encode("utf-16"))
    with pytest.raises(ValueError, match="is no valid json"):
        load_prompts(path)


def test_another_seed_draws_others():
    prompts = load_prompts("chexpert5x200")
    drawn = {tuple(choose_prompts(prompts, count=5, seed=seed).classes["Edema"]) for seed in range(5)}
    assert len(drawn) > 1


def test_templates_name_the_class():
    prompts = template_prompts(["lung_nodule"])
    assert prompts.name == "templates"
    assert prompts.classes["lung_nodule"][:2] == ("lung nodule", "an image of lung nodule")


def test_a_file_is_read_by_its_path(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"classes": {"a": ["one"]}}))
    assert load_prompts(path).classes == load_prompts(str(path)).classes == {"a": ("one",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no valid json"),
        ('{"classes": {"a": ["x"], "a": ["y"]}}', r"is no valid json: the keys \['a'\] come more than once"),
        ("[]", 'must hold an object with "classes" and at most "absent" beside it, got list'),
        ('{"prompts": {}}', r"got \['prompts'\]"),
        ('{"classes": {}}', "has no class"),
        ('{"classes": ["a"]}', "'classes' of .* must map names of classes to lists of texts"),
        ('{"classes": {"a": []}}', "must give 'a' a list of at least one text"),
        ('{"classes": {"a": "x"}}', "must give 'a' a list of at least one text"),
        ('{"classes": {"a": [" "]}}', "must give 'a' texts that are not empty"),
        ('{"classes": {"a": [3]}}', "texts that are not empty in 'classes', got 3"),
        ('{"classes": {"a b": ["x"], "A-B": ["y"]}}', "must name each class once"),
        ('{"classes": {"a": ["x"]}, "absent": {"b": ["y"]}}', r"names \['b'\] under \"absent\""),
    ],
)
def test_damaged_files_are_refused(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"there is no prompt file 'nothing'\. .* one of acl, "):
        load_prompts("nothing")
    prompts = load_prompts("thyroid")
    with pytest.raises(ValueError, match=r"no prompts for the classes \['normal'\]; it has \['benign', 'malignant'\]"):
        choose_prompts(prompts, ["benign", "normal"])
    with pytest.raises(ValueError, match="count: 99 prompts per class asked for, but 'thyroid' has 12 for 'benign'"):
        choose_prompts(prompts, count=99)
    with pytest.raises(ValueError, match="count must be at least 1 prompt per class"):
        choose_prompts(prompts, count=0)
