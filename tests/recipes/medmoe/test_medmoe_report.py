import json
import re

import pytest

from tests.recipes.json_files import change_json, number_epochs_from_zero
from tests.recipes.medmoe.report_runs import few_shot_result, read, table_row, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run and its report, which tests only read."""
    run = write_run(tmp_path_factory.mktemp("written") / "run")
    return run, read(run)


def test_the_headline_comes_from_the_files(written):
    run, text = written
    metrics = json.loads((run / "metrics.json").read_text())
    zero_shot, game, retrieval = (metrics[key] for key in ("zero_shot", "pointing_game", "retrieval"))
    assert f"<dd>{zero_shot['accuracy']:.3f}<small>chance 0.333, mean of 2 sets</small>" in text
    assert "<dt>Routing purity</dt><dd>0.950<small>30 test images</small>" in text
    hit, center = game["hit_rate"], game["center_baseline"]
    assert f"<dt>Pointing game</dt><dd>{hit:.3f}<small>centre baseline {center:.3f}</small>" in text
    way = retrieval["image_to_text"]
    assert f"<dt>Retrieval R@1</dt><dd>{way['recall']['1']:.3f}<small>report for an image, chance 0.050" in text
    assert "<dd>3<small>best: epoch 3</small>" in text


def test_every_table_shows_the_files_figures(written):
    run, text = written
    metrics = json.loads((run / "metrics.json").read_text())
    first = metrics["zero_shot"]["sets"]["first set"]
    cells = table_row(text, "first set")
    low, high = first["accuracy_ci95"]
    assert cells[:2] == [f"{first['accuracy']:.3f}", f"{low:.3f} to {high:.3f}"]
    assert cells[3:7] == ["0.345", "0.333", "0.400", f"{first['macro_auroc']:.3f}"]
    assert cells[-2:] == ["30", "mean"]
    assert table_row(text, "second")[0] == "–"
    assert table_row(text[text.index("Linear probe") :], "first set")[1:4] == ["0.610 ± 0.020 (2)", "0.830", "0.333"]
    assert text.count("0.610 ± 0.020 (2)") == 3  # accuracy, macro AUROC, kappa
    assert "fitted on the share of training alone" in text
    assert "Words of the prompts that the tokenizer does not know: first set (25%)." in text
    assert "Cohen&#39;s kappa" in text
    assert "macro F1" not in text  # a run of an earlier version has none
    back = metrics["retrieval"]["text_to_image"]
    assert table_row(text, "Image for a report") == [
        *[f"{back['recall'][k]:.3f}" for k in ("1", "5", "10")],
        f"{back['median_rank']:.1f}".removesuffix(".0"), "20", "30",
    ]  # fmt: skip
    nodule = table_row(text, "nodule")
    assert (nodule[0], nodule[3:]) == ("1.000", ["0.000", "–", "–", "0.020", "1.000", "4"])
    assert "epoch without augmentation" in " ".join(text.split())
    assert table_row(text, "Mean of 2 sets")[0] == f"{metrics['zero_shot']['accuracy']:.3f}"
    assert "17 test studies played; 2 with boxes left out, and 3 findings" in " ".join(text.split())


def test_confusion_shows_counts_and_the_share_of_the_row(written):
    run, text = written
    confusion = json.loads((run / "zero_shot" / "first set.json").read_text())["confusion"]
    part = text[text.index("Zero-shot confusion") :]
    assert "first set: 30 test studies, scoring mean" in part
    for name, counts in zip(["normal", "lung &lt;nodule&gt;", "effusion"], confusion["matrix"], strict=True):
        assert table_row(part, name) == [str(count) for count in counts]
    top = max(confusion["matrix"][0])
    assert f"--a:{top / 10:.2f}" in part
    assert "second:" not in part


def test_routing_shows_shares_and_the_load_over_all_images(written):
    _, text = written
    part = " ".join(text[text.index("Routing: modality by expert") :].split())
    assert "E1 <small>ct</small>" in part
    assert "E2 <small>spare</small>" in part
    assert table_row(part, "All images") == ["60%", "40%", "0%"]
    assert "chosen by the image" in part
    assert "Purity 0.950 (best match). Accuracy 0.930" in part
    assert "2 of 3 experts live; the images are of 2 modalities. Entropy of the load 0.67 of at most 1.10 nats" in part
    assert "the busiest expert has 1.80 times an equal share" in part
    assert 'class="warning"' not in part


def test_experts_that_should_live_and_do_not_are_a_warning(run):
    change_json(run / "metrics.json", lambda metrics: metrics["routing"].update(warning="1 lives, <b>2</b> should"))
    assert '<p class="warning"><strong>Warning:</strong> 1 lives, &lt;b&gt;2&lt;/b&gt; should.</p>' in read(run)


def test_runs_of_before_the_load_was_measured_have_a_report(run):
    def strip(metrics):
        for name in ("load", "load_entropy", "max_violation", "live_experts", "live_expected", "warning"):
            del metrics["routing"][name]

    change_json(run / "metrics.json", strip)
    text = read(run)
    assert "Routing: modality by expert" in text
    assert "experts live" not in text


def test_curves_are_drawn_for_what_was_recorded(written):
    _, text = written
    assert "best: 1.167 in epoch 3" in text
    assert "maximum: ln 3" in text
    assert "<figcaption>Local contrastive loss" in text
    assert "Load-balancing loss" not in text


def test_examples_show_maps_scales_and_the_chosen_expert(written):
    _, text = written
    assert text.count("<article") == 2
    assert text.count('alt="map of ') == 3
    assert "effusion: hit" in text
    assert "β of scale 4, mean" in text
    part = text[text.rindex("<article") :]
    assert table_row(part, "E0 xray")[1:] == ["0.90", "● chosen"]
    assert table_row(part, "E2 expert 2")[1:] == ["0.04", ""]


def test_the_report_says_what_a_reader_must_know(written):
    _, text = written
    assert "Phantom data: images and texts are synthetic" in text
    assert "a note of the source" in text
    assert "Pointing game played less than 10 times: nodule" in text
    assert "The best epoch is the last one" in text
    assert "For research only" in text


def test_the_page_is_safe_whole_and_loads_nothing(written):
    run, text = written
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!#|data:image/png;base64,)', text)
    assert text == read(run)


def test_stages_that_were_not_run_are_named(run):
    def strip(metrics):
        for key in ("zero_shot", "probe", "retrieval", "pointing_game", "training"):
            del metrics[key]
        unknown = {"modalities": [], "matrix": [], "counts": [], "accuracy": None, "live_expected": None}
        metrics["routing"] |= unknown
        metrics["routing_purity"] = None
        metrics["run"]["data"] = "openi"

    change_json(run / "metrics.json", strip)
    for path in (run / "zero_shot").iterdir():
        path.unlink()
    (run / "explain" / "examples.npz").unlink()
    text = read(run)
    for stage in ("zero-shot", "probe", "retrieve", "explain"):
        assert f"The stage {stage} was not run." in text
    words = " ".join(text.split())
    assert "No test image has a known modality. One expert runs per image, chosen by the image." in words
    assert "2 of 3 experts live" in text
    assert "Zero-shot confusion" not in text
    assert "Phantom data" not in text
    assert text.count("<small>not run</small>") == 3


def test_a_pointing_game_that_could_not_be_played_gives_its_reason(run):
    change_json(
        run / "metrics.json",
        lambda m: m["pointing_game"].update(hit_rate=None, per_finding={}, reason="the data hold no boxes"),
    )
    text = read(run)
    assert "Not played: the data hold no boxes." in text
    assert "<small>not played</small>" in text


def test_sets_without_single_labels_show_the_auroc(run):
    def multi(metrics):
        metrics["zero_shot"] |= {"accuracy": None, "chance": None}

    change_json(run / "metrics.json", multi)
    assert "<dt>Zero-shot macro AUROC</dt>" in read(run)


def test_a_run_that_numbered_epochs_from_zero_has_the_same_report(run):
    text = read(run)
    number_epochs_from_zero(run)
    assert read(run) == text


def test_few_shots_stand_by_classifier_and_number(written):
    _, text = written
    part = text[text.index("Few-shot classification") :]
    assert "first set: 2 draws" in part
    cells = table_row(part, "first set")
    low, high = few_shot_result()["results"][0]["accuracy"]["ci95"]
    assert cells[:4] == ["accuracy", "nearest class mean", "0.510", f"0.510 ({low:.3f} to {high:.3f})"]
    assert cells[5:] == ["0.333", "0.400", "30"]
    assert "Tip-Adapter</td>" in part
    assert part.count("undefined") == 3  # macro AUROC


def test_regions_stand_beside_random_ones(written):
    _, text = written
    part = text[text.index("Zero-shot segmentation") :]
    cells = table_row(part, "All findings")
    assert (cells[0], cells[3], cells[5:]) == ("0.400", "0.283", ["0.167", "0.267", "3", "3"])
    assert table_row(part, "nodule")[0] == "0.200"
    assert "(0.55, chosen by Dice on val)" in " ".join(part.split())


def test_the_spread_over_prompts_stands_beside_the_scores(written):
    run, text = written
    accuracy = json.loads((run / "metrics.json").read_text())["zero_shot"]["sets"]["first set"]["accuracy"]
    part = text[text.index("What the prompts decide") :]
    assert "scores of 20 random halves" in " ".join(part.split())
    assert table_row(part, "first set") == ["accuracy", f"{accuracy:.3f}", "0.410", "0.030", "0.360", "0.470"]


def test_near_duplicates_are_named_below_the_scores(written):
    _, text = written
    assert "first set: of 30 images 2 are equal &lt;" in text
    assert text.count("equal or nearly equal to pretraining images:") == 2  # zero-shot and few-shot


def test_what_was_not_run_is_said(run):
    change_json(run / "metrics.json", lambda metrics: [metrics.pop(name) for name in ("few_shot", "segmentation")])
    change_json(run / "metrics.json", lambda metrics: metrics["zero_shot"]["sets"]["first set"].pop("prompt_spread"))
    text = read(run)
    assert "The stage few-shot was not run." in text
    assert "The stage segment was not run on the run&#39;s own data." in text
    assert "What the prompts decide" not in text
