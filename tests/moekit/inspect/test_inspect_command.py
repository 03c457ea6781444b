"""The command shows records and checkpoints."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moekit import FFNExperts, SparseMoE, TopKRouter
from moekit.inspect import RoutingRecord, record_routing
from moekit.inspect.__main__ import main
from tests.moekit.inspect.models import DIM, NUM_EXPERTS, collapsed, stack


@pytest.fixture
def record(tmp_path: Path) -> Path:
    model = collapsed()
    with record_routing(model) as record:
        model(torch.randn(100, DIM))
    record.save(tmp_path / "record.json.gz")
    return tmp_path / "record.json.gz"


def test_a_record_is_shown_in_words_and_as_a_table(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(record)]) == 0
    output = capsys.readouterr().out
    assert "SparseMoE: 100 % of slots go to expert 1; 3 of 4 experts get none (0, 2, 3)." in output
    assert output == f"{RoutingRecord.load(record)}\n"


def test_several_records_are_merged(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(record), str(record), "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(",")[:6] == ["SparseMoE", "4", "1", "2", "200", "200"]
    assert main([str(record), str(record), "--csv", "--parallel"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(",")[:6] == ["SparseMoE", "4", "1", "1", "200", "200"]


def test_page_and_figure_are_written(record: Path, tmp_path: Path) -> None:
    page, figure = tmp_path / "page.html", tmp_path / "figure.png"
    assert main([str(record), "--page", str(page), "--figure", str(figure), "--layer", "SparseMoE"]) == 0
    assert "<title>record.json.gz</title>" in page.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["torch", "nested", "safetensors", "folder"])
def test_a_checkpoint_is_compared_by_its_weights(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router = TopKRouter(DIM, NUM_EXPERTS, 2, selection_bias=True)
    model = torch.nn.ModuleDict({"10": stack(1)[0], "2": SparseMoE(router, FFNExperts(DIM, DIM, NUM_EXPERTS))})
    state: dict[str, Tensor] = model.state_dict()
    gate = next(value for name, value in state.items() if name.startswith("2.router.gate"))
    gate[1] = 3 * gate[0]
    state["2.router.selection_bias"].copy_(torch.tensor([0.0, -0.5, 0.25, 0.0]))
    path = tmp_path / "weights.pt"
    if form in ("safetensors", "folder"):
        from safetensors.torch import save_file

        path = tmp_path / "weights.safetensors"
        save_file(state, str(path))
    else:
        torch.save({"state_dict": state, "step": 3} if form == "nested" else state, path)
    assert main([str(tmp_path if form == "folder" else path)]) == 0
    header, second, tenth = capsys.readouterr().out.splitlines()[:3]
    assert header.split()[0] == "layer"
    assert [second.split()[0], tenth.split()[0]] == ["2", "10.moe"]
    experts, norms, alike, bias_range, _ = second.split()[1:]
    assert (experts, alike, bias_range) == ("4", "1.000", "0.750")
    assert float(norms) >= 3
    assert tenth.split()[4] == "-"


def test_experts_in_modules_of_their_own_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"model.layers.0.mlp.experts.{index}.up.weight": torch.full((2, 2), index + 1.0) for index in range(3)}
    state["model.layers.0.mlp.gate.weight"] = torch.eye(3)
    torch.save(state, tmp_path / "weights.bin")
    assert main([str(tmp_path / "weights.bin")]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[1].split() == ["model.layers.0.mlp", "3", "1.000", "0.000", "-", "3.000"]
    assert "with record_routing(model) as record:" in output


class Call:
    """Would write a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("missing", "which does not exist"),
        ("text", "path must be a record, a safetensors file or tensors of torch.save"),
        ("pickle", "path must be a record, a safetensors file or tensors of torch.save"),
        ("dense", r"path must be a checkpoint with experts .* in 1 file\(s\)"),
        ("folder", "path must hold .safetensors, .bin, .pt, .pth or .ckpt files"),
    ],
)
def test_what_is_neither_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, written = tmp_path / "file.pt", tmp_path / "written"
    if content == "text":
        path.write_text("text")
    elif content == "pickle":
        torch.save({"experts": Call(str(written))}, path)
    elif content == "dense":
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    elif content == "folder":
        path.mkdir()
    assert main([str(path)]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not written.exists()


@pytest.mark.parametrize(
    "options", [["--page", "page.html"], ["--figure", "figure.png"], ["--csv"], ["--layer", "0"], ["--parallel"]]
)
def test_what_needs_a_record_is_refused_of_a_checkpoint_with_the_way_to_record(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(stack().state_dict(), tmp_path / "weights.pt")
    assert main([str(tmp_path / "weights.pt"), *options]) == 1
    message = capsys.readouterr().err
    assert "--csv, --layer, --parallel, --page and --figure need a record, got" in message
    assert "record.write_page" in message
