"""What cannot be saved or loaded is refused, by name and with a remedy."""

import json
import pickle
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moekit import (
    BidirectionalCrossAttention,
    CrossScaleAttention,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    SparseMoE,
    TopKRouter,
)
from moekit.activations import Activation
from moekit.interop.hub import from_pretrained, register_part, save_pretrained
from moekit.interop.hub.registry import FUNCTIONS, PARTS
from moekit.lora import add_lora_, merge_lora_
from tests.moekit.interop.hub.parts import DIM, EXPERTS, HIDDEN, TOP_K, assert_same, description_in, saved_and_loaded


@pytest.fixture
def registry(monkeypatch):
    """Forgets afterwards what a test registers."""
    for table in (PARTS, FUNCTIONS):
        for name in dict(table):
            monkeypatch.setitem(table, name, table[name])
    before = set(PARTS), set(FUNCTIONS)
    yield
    for table, names in zip((PARTS, FUNCTIONS), before, strict=True):
        for name in set(table) - names:
            del table[name]


class Scaled(nn.Module):
    """A module of the user's."""

    def __init__(self, factor: float, *, dim: int = DIM, names: Any = None, device: str | None = None) -> None:
        super().__init__()
        self.factor, self.dim, self.names = factor, dim, names
        self.bias = nn.Parameter(torch.zeros(dim, device=device))
        self.register_buffer("place", torch.arange(dim, device=device), persistent=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.factor * x + self.bias + self.place


def double(x: torch.Tensor) -> torch.Tensor:
    """An activation of the user's."""
    return 2 * x


def _layer(**options: Any) -> SparseMoE:
    return SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K), FFNExperts(DIM, HIDDEN, EXPERTS), **options)


def test_registered_classes_and_functions_come_back(registry, tmp_path):
    register_part(Scaled, name="mine.Scaled")
    assert register_part(double) is double
    values = {"mapping": [1, (2.5, float("inf"))], "dtype": torch.bfloat16, "tensor": torch.tensor([1, 2])}
    experts = FFNExperts(DIM, HIDDEN, EXPERTS, activation=double)
    layer = SparseMoE(TopKRouter(DIM, EXPERTS, TOP_K), experts, shared=Scaled(0.5, names=values)).eval()
    layer(torch.randn(2, DIM))
    loaded = saved_and_loaded(layer, tmp_path)
    assert_same(layer, loaded, (torch.randn(9, DIM),), {})
    names = loaded.shared.names
    assert torch.equal(names.pop("tensor"), values.pop("tensor"))
    assert names == values
    assert type(loaded.shared) is Scaled


def test_a_decorator_with_arguments_of_its_own(registry, tmp_path):
    @register_part(name="mine.Wide", arguments=lambda module: {"width": module.linear.out_features})
    class Wide(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(DIM, width)

        def forward(self, x):
            return self.linear(x)

    layer = _layer(shared=Wide(DIM)).eval()
    assert_same(layer, saved_and_loaded(layer, tmp_path), (torch.randn(9, DIM),), {})


def test_what_cannot_be_registered(registry):
    with pytest.raises(ValueError, match=r"part must be a subclass of nn.Module or a function, got ReLU\(\)"):
        register_part(nn.ReLU())
    with pytest.raises(ValueError, match=r"name must not be empty or begin with moekit. or torch., got 'moekit.Mine'"):
        register_part(Scaled, name="moekit.Mine")
    with pytest.raises(ValueError, match=r"arguments are those of a class, got the function .*double.*: leave them"):
        register_part(double, arguments=dict)
    register_part(double)
    with pytest.raises(ValueError, match=r"name must be unique, but 'double' stands for .*double.*choose another name"):
        register_part(torch.tanh, name="double")
    assert register_part(double) is double  # again, as in a notebook


def _forward(layer: SparseMoE) -> None:
    layer.router.forward = double


def _replaced_gate(layer: SparseMoE) -> None:
    layer.router.gate.layers[0] = nn.Linear(DIM, EXPERTS)


def _unknown_class(layer: SparseMoE) -> None:
    layer.experts = ModuleExperts([nn.Sequential(Scaled(1.0)), *(nn.Identity() for _ in range(EXPERTS - 1))])


def _wrapper(layer: SparseMoE) -> None:
    layer.experts = torch.compile(layer.experts)


def _more(layer: SparseMoE) -> None:
    layer.experts.adapter = nn.Linear(2, 2)


def _other_tensors(layer: SparseMoE) -> None:
    layer.experts.register_buffer("scale", torch.ones(2))


def _attribute(layer: SparseMoE) -> None:
    layer.experts._gated = False


def _function(layer: SparseMoE) -> None:
    layer.experts = FFNExperts(DIM, HIDDEN, EXPERTS, activation=lambda pre: 2 * pre)


def _merged(layer: SparseMoE) -> None:
    add_lora_(layer)
    merge_lora_(layer)


CHANGES = {
    _merged: "but experts.lora .*whose adapters are merged: call unmerge_lora_ to keep them or remove_lora_ to keep",
    _forward: "but router has a forward of its own: undo the change, or register a class of your own",
    _replaced_gate: "router is of the class moekit.TopKRouter, whose argument init_scale cannot be read from it",
    _unknown_class: r"but experts.modules\[0\]\[0\] is of the class .*Scaled, which no file can name: register it",
    _wrapper: "but experts is of the class .*OptimizedModule.*; if it wraps a part, take the wrapper off first",
    _more: "but experts.adapter is a Linear that is not built with what holds it: undo the change",
    _other_tensors: r"but experts has other tensors than its constructor makes: scale \(2,\) and not absent",
    _attribute: "but experts has _gated=False, where its constructor makes True: undo the change",
    _function: "but experts.activation is the function .*lambda.*, which no file can name: .*register_part.*Activation",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_layer_that_cannot_be_rebuilt_is_named_and_not_written(change, tmp_path):
    layer = _layer()
    change(layer)
    with pytest.raises(ValueError, match=r"model must consist of parts that can be rebuilt, .*" + CHANGES[change]):
        save_pretrained(layer, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_changes_of_fusion_layers_are_named(tmp_path):
    attention = BidirectionalCrossAttention(DIM, num_heads=2)
    attention.right_output = None
    with pytest.raises(ValueError, match="but BidirectionalCrossAttention lacks right_output: undo the change"):
        save_pretrained(attention, tmp_path)
    scales = CrossScaleAttention((4, 8), DIM)
    scales.projections[0] = nn.Identity()
    with pytest.raises(ValueError, match=r"but projections.0 is a Identity in place of a Conv2d"):
        save_pretrained(scales, tmp_path)


def test_arguments_that_json_cannot_hold(registry, tmp_path):
    register_part(Scaled)
    with pytest.raises(ValueError, match=r"but shared.names is a object, which json cannot hold: use numbers, strings"):
        save_pretrained(_layer(shared=Scaled(1.0, names=object())), tmp_path)
    with pytest.raises(ValueError, match=r"but shared.names has the keys \[1\]: use strings without a slash"):
        save_pretrained(_layer(shared=Scaled(1.0, names={1: 2})), tmp_path)


class Subclass(SparseMoE):
    """A layer of the user's."""


def test_models_without_known_parts(tmp_path):
    with pytest.raises(ValueError, match="model must be or hold parts of moekit, got a Linear without: save it by its"):
        save_pretrained(nn.Linear(2, 2), tmp_path)
    model = nn.Sequential(_layer(), Subclass(HardRouter(DIM, EXPERTS), FFNExperts(DIM, HIDDEN, EXPERTS)))
    with pytest.raises(ValueError, match="but 1 is of the class Subclass, a subclass that no file can name: register"):
        save_pretrained(model, tmp_path)


class _Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.moe = _layer()

    def get_extra_state(self):
        return {"step": 3}

    def set_extra_state(self, state):
        pass


def test_states_that_are_no_plain_tensors(tmp_path):
    with pytest.raises(ValueError, match="model must have a state of tensors, got _extra_state, a dict"):
        save_pretrained(_Extra(), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    with pytest.raises(ValueError, match=r"model must have values, got router.gate.layers.0.weight on the meta device"):
        save_pretrained(_layer().to("meta"), tmp_path)
    layer = _layer(shared=nn.Linear(DIM, DIM))
    layer.shared.weight = nn.Parameter(torch.eye(DIM).to_sparse())
    with pytest.raises(ValueError, match=r"model must have plain dense tensors, got shared.weight, .*: gather or deq"):
        save_pretrained(layer, tmp_path)


def _edited(folder, path: str, value: Any) -> None:
    """Sets a value in the json of a folder; deletes it where the value is ``...``."""
    description = description_in(folder)
    *keys, last = path.split("/")
    inner = description
    for key in keys:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    (folder / "moekit.json").write_text(json.dumps(description))


ROOT = "parts//arguments"
EDITS = [
    ("version", 2, r"moekit.json must have a version up to 1, got 2, which moekit .* wrote: install that version"),
    ("version", "1", "moekit.json must have a version up to 1, got '1'"),
    ("format", "else", 'moekit.json must have the format "moekit", got another file'),
    ("tied", ..., r"moekit.json must hold the objects parts and tied, got \['format', 'moekit', 'parts', 'version'\]"),
    ("tied", {"a": "b"}, "tied must name tensors of the file, got 'a' for 'b'"),
    ("parts/", 3, r"part \(the model itself\) is no part but 3"),
    (
        "parts//part",
        "os.system",
        r"part \(the model itself\) is a 'os.system', which this process does not know: import",
    ),
    ("parts//arguments", ..., r"is not complete \(KeyError: 'arguments'\)"),
    (f"{ROOT}/router/part", "moekit.Future", "part router is a 'moekit.Future', which this process does not know"),
    (f"{ROOT}/more", 1, "has arguments that moekit.SparseMoE does not have: more"),
    (f"{ROOT}/router/arguments/device", "cuda", "has arguments that moekit.TopKRouter does not have: device"),
    (f"{ROOT}/router/arguments/top_k", ..., "part router lacks the arguments top_k of moekit.TopKRouter"),
    (f"{ROOT}/router/arguments/top_k", 9, "part router cannot be built: top_k must be between 1 and num_experts=4"),
    (f"{ROOT}/router/arguments/top_k", [2], r"part router.top_k is \[2\], which has no meaning in version 1"),
    (f"{ROOT}/router/arguments/top_k", {"code": 2}, "part router.top_k is an object of 'code', of a form that is not"),
    (f"{ROOT}/router/arguments/top_k", {"tensor": [1], "dtype": "load"}, r"top_k is not complete \(KeyError: 'load'\)"),
    (f"{ROOT}/shared", {"same_as": "/arguments/shared"}, "part shared is not complete|part shared holds itself"),
    (f"{ROOT}/shared", {"same_as": "/arguments/none"}, r"part shared is not complete \(KeyError: 'none'\)"),
    (f"{ROOT}/shared", {"same_as": ""}, r"part \(the model itself\) holds itself"),
    (f"{ROOT}/shared", {"record": "os.system", "fields": {}}, "part shared is a 'os.system', which this version does"),
    (f"{ROOT}/experts/arguments/activation", {"function": "os.system"}, "is the function 'os.system', which this proc"),
    (
        f"{ROOT}/experts/arguments/activation",
        {"activation": "none"},
        "part experts.activation cannot be built: the activation 'none' does not exist in this process: make it",
    ),
    (
        f"{ROOT}/experts/arguments/activation",
        {"activation": "clamped_swiglu(alpha=1.0, unknown=2.0)"},
        "does not exist in this process: make it, as moekit.activations.Activation",
    ),
    (
        f"{ROOT}/experts/arguments/activation",
        {"activation": "swiglu", "gated": False, "interleaved": False},
        "the activation 'swiglu' was saved with gated=False, but that of this process has gated=True: give one of them",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), EDITS)
def test_descriptions_that_cannot_be_built(path, value, message, tmp_path):
    save_pretrained(_layer(), tmp_path)
    _edited(tmp_path, path, value)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_an_activation_must_exist_where_it_is_loaded(registry, tmp_path):
    activation = Activation("halved_for_files", lambda x: x / 2)
    save_pretrained(SparseMoE(TopKRouter(DIM, 4, 2), FFNExperts(DIM, HIDDEN, 4, activation=activation)), tmp_path)
    assert from_pretrained(tmp_path).experts.activation is activation


class _Call:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_nothing_is_unpickled(tmp_path):
    save_pretrained(_layer(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(_Call()))
    with pytest.raises(ValueError, match=r"model.safetensors must be a safetensors file, and cannot be read"):
        from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"source must hold model.safetensors, but .* does not: save or download it"):
        from_pretrained(tmp_path)


def test_folders_that_are_not_whole(tmp_path):
    layer = _layer()
    with pytest.raises(ValueError, match=r"source must hold moekit.json, as .*save_pretrained writes it, but"):
        from_pretrained(tmp_path)
    save_pretrained(layer, tmp_path, max_shard_size=500)
    index = tmp_path / "model.safetensors.index.json"
    weights = json.loads(index.read_text())
    for name in ("../model.safetensors", "model.bin", "a\\b.safetensors", 3):
        index.write_text(json.dumps(weights | {"weight_map": {"experts.up_proj": name}}))
        with pytest.raises(
            ValueError, match="must name safetensors files of its own folder, got " + re.escape(repr(name))
        ):
            from_pretrained(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="must be the index of sharded safetensors files, and cannot be read"):
        from_pretrained(tmp_path)
    (tmp_path / "moekit.json").write_text("{")
    with pytest.raises(ValueError, match=r"moekit.json must be json, and cannot be read"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere", "a/b/c", "~/nowhere"])
def test_sources_that_are_neither_folder_nor_repository(source):
    with pytest.raises(
        ValueError, match=r'source must be a folder, or a repository as "owner/name", got .*: no such fol'
    ):
        from_pretrained(source)


def test_tensors_of_another_model(tmp_path):
    save_pretrained(_layer(), tmp_path)
    save_file({"other": torch.zeros(2)} | load_file(tmp_path / "model.safetensors"), tmp_path / "more")
    (tmp_path / "more").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected in the file: other. Nothing was loaded: pass the model that was"):
        from_pretrained(tmp_path)
    save_file({f"experts.{index}": torch.zeros(1) for index in range(7)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing in the file: router.*; unexpected in the file: .*experts.4 and 2 more"
    ):
        from_pretrained(tmp_path)
    save_pretrained(_layer(), tmp_path)
    _edited(tmp_path, f"{ROOT}/experts/arguments/hidden_dim", HIDDEN + 1)
    with pytest.raises(
        ValueError, match=r"of another shape in the file: experts.up_proj \(4, 12, 8\) and not \(4, 14, 8\)"
    ):
        from_pretrained(tmp_path)


def test_a_model_stays_as_it_was_where_tensors_do_not_fit(tmp_path):
    save_pretrained(nn.Sequential(nn.Linear(3, 4), _layer()), tmp_path)
    model = nn.Sequential(nn.Linear(2, 4), _layer())
    before, state = list(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"of another shape in the file: 0.weight \(4, 3\) and not \(4, 2\)"):
        from_pretrained(tmp_path, model=model)
    assert list(model) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_models_that_do_not_fit(tmp_path):
    save_pretrained(_layer(), tmp_path)
    with pytest.raises(ValueError, match="model must be left out for files that hold a whole part, got a SparseMoE"):
        from_pretrained(tmp_path, model=_layer())
    save_pretrained(nn.Sequential(nn.Identity(), _layer()), tmp_path)
    with pytest.raises(
        ValueError, match="model must be the model whose parts are 1, built as before it was saved, got No"
    ):
        from_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"model must have the modules 1, .*, got a Sequential without: build it as bef"
    ):
        from_pretrained(tmp_path, model=nn.Sequential(nn.Identity()))
