"""Where the weights of a block are, of what shape, and which of its submodules are known.

Letters in shapes: E experts, D width, F hidden width of an expert, S hidden width of the shared expert.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

from torch import Tensor, nn

from moekit.interop.transformers._forms import BLOCK, EXPERTS, ROUTER, SHARED, Form, Known

Shape = tuple[str, ...]
Sizes = Mapping[str, int]


def size_of(letters: str, sizes: Sizes) -> int | None:
    """Returns the size of a dimension such as ``"D"``, ``"2F"``, ``"EF"`` or ``"1"``; None if it is not known."""
    product = 1
    for letter in letters:
        factor = int(letter) if letter.isdigit() else sizes.get(letter)
        if factor is None:
            return None
        product *= factor
    return product


class PartsOfBlock(NamedTuple):
    """What a block of a form consists of.

    Attributes:
        shapes: Of each parameter and buffer, by name.
        settings: Of each submodule, by name, the values that its settings may have.
        linear: Names of the submodules that must be plain linear layers.
        identity: Names of those that must be identities.
        activations: Names of those that compute an activation.
    """

    shapes: dict[str, Shape]
    settings: dict[str, Mapping[str, Known]]
    linear: frozenset[str]
    identity: frozenset[str]
    activations: frozenset[str]


def parts_of(form: Form, block: nn.Module) -> PartsOfBlock:
    """Returns what a block consists of, by its form and by the optional parts that it has."""
    has = {name for name, _ in block.named_parameters()} | {name for name, _ in block.named_buffers()}
    children = dict(block.named_children())
    router = form.router
    shapes: dict[str, Shape] = {f"{router}.{form.weight}": ("E", "D")}
    settings: dict[str, Mapping[str, Known]] = {"": BLOCK, router: ROUTER, "experts": EXPERTS}
    linear, activations, identity = set[str](), {"experts.act_fn"}, set[str]()
    if "." in form.weight:
        linear.add(f"{router}.{form.weight.rpartition('.')[0]}")
    if f"{router}.bias" in has:
        shapes[f"{router}.bias"] = ("E",)
    if form.selection_bias is not None and form.selection_bias in has:
        bias = tensor_at(block, form.selection_bias)
        shapes[form.selection_bias] = ("1", "E") if bias.ndim == 2 else ("E",)
        owner = form.selection_bias.rpartition(".")[0]
        settings.setdefault(owner, {})
    if form.split:
        shapes |= {f"experts.mlp.{name}": ("EF", "D") for name in ("w1", "v1", "w2")}
        settings["experts.mlp"] = EXPERTS
        activations.add("experts.mlp.activation_fn")
    else:
        shapes |= _stacked(vars(children["experts"]) if "experts" in children else {})
    if form.shared is not None and form.shared in children:
        shapes |= _shared(form.shared, children[form.shared], has)
        settings[form.shared] = SHARED
        linear |= {f"{form.shared}.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
        activations.add(f"{form.shared}.act_fn")
        if form.shared_gate is not None:
            shapes[f"{form.shared_gate}.weight"] = ("1", "D")
            linear.add(form.shared_gate)
    if type(block).__name__ == "NemotronHMoE":
        identity = {"fc1_latent_proj", "fc2_latent_proj"}
    return PartsOfBlock(shapes, settings, frozenset(linear), frozenset(identity), frozenset(activations))


def _stacked(experts: Mapping[str, object]) -> dict[str, Shape]:
    gated = experts.get("has_gate", True)
    first, rows = ("gate_up_proj", "2F") if gated else ("up_proj", "F")
    if experts.get("is_transposed", False):
        shapes: dict[str, Shape] = {first: ("E", "D", rows), "down_proj": ("E", "F", "D")}
    else:
        shapes = {first: ("E", rows, "D"), "down_proj": ("E", "D", "F")}
    if experts.get("has_bias", False):
        shapes |= {f"{first}_bias": ("E", rows), "down_proj_bias": ("E", "D")}
    return {f"experts.{name}": shape for name, shape in shapes.items()}


def _shared(name: str, shared: nn.Module, has: set[str]) -> dict[str, Shape]:
    gated = {"gate_proj": ("S", "D")} if "gate_proj" in dict(shared.named_children()) else {}
    matrices = gated | {"up_proj": ("S", "D"), "down_proj": ("D", "S")}
    shapes: dict[str, Shape] = {f"{name}.{each}.weight": shape for each, shape in matrices.items()}
    if f"{name}.down_proj.bias" in has:
        shapes |= {f"{name}.{each}.bias": shape[:1] for each, shape in matrices.items()}
    return shapes


def tensor_at(module: nn.Module, path: str) -> Tensor:
    """Returns a parameter or buffer by its name."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Returns a module and its submodules by name, those of several names by each."""
    # torch's own types leave it partially unknown.
    return dict(cast(Iterable[tuple[str, nn.Module]], module.named_modules(remove_duplicate=False)))
