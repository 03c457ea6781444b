"""Pictures of single runs: which records share a panel."""

import dataclasses

import pytest

from benchmarks.pictures import draw_bars


def test_a_layer_timed_in_two_sections_has_a_panel_in_each(tmp_path, case):
    """One bar would hide the other: the same layer on the same workload, by kernels and as wall time of steps."""
    pytest.importorskip("matplotlib")
    shared = {"direction": "forward+backward", "preset": "mixtral"}
    kernels = dataclasses.replace(case("moekit-layer", 2.0, of_dense=0.75, **shared), section="criteria")
    steps = dataclasses.replace(case("moekit-layer", 4.0, of_dense=0.25, **shared), section="steps")
    picture = draw_bars([kernels, steps], tmp_path / "run.svg")
    assert picture is not None
    text = picture.read_text()
    assert text.count(f"{kernels.workload()}: forward+backward") == 2
    assert text.count("forward+backward, section steps") == 1
    assert "0.75" in text
    assert "0.25" in text


def test_without_ratios_there_is_no_picture(tmp_path, case):
    assert draw_bars([case("moekit-layer", 2.0, direction="forward")], tmp_path / "run.svg") is None
