"""Where the weights of a block are, of what shape, and which of its submodules are known.

Letters in shapes are those of :mod:`moekit.interop.transformers._forms`.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

from torch import Tensor, nn

from moekit.interop.transformers._forms import BLOCK, EXPERTS, ROUTER, SHARED, SHARED_LIMIT, Bank, Form, Known

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
    of_router = "A" if form.experts == "identity" else "E"
    shapes: dict[str, Shape] = {f"{router}.{form.weight}": (of_router, "D")}
    settings: dict[str, Mapping[str, Known]] = {"": BLOCK, router: ROUTER, "experts": EXPERTS}
    linear, activations, identity = set[str](), {"experts.act_fn"}, set[str]()
    if form.scoring == "sqrt_softplus":
        activations.add(f"{router}.score_fn")
    if "." in form.weight:
        linear.add(f"{router}.{form.weight.rpartition('.')[0]}")
    if f"{router}.bias" in has:
        shapes[f"{router}.bias"] = (of_router,)
    if form.selection_bias is not None and form.selection_bias in has:
        bias = tensor_at(block, form.selection_bias)
        shapes[form.selection_bias] = ("1", of_router) if bias.ndim == 2 else (of_router,)
        owner = form.selection_bias.rpartition(".")[0]
        settings.setdefault(owner, {})
    if form.experts == "split":
        shapes |= {f"experts.mlp.{name}": ("EF", "D") for name in ("w1", "v1", "w2")}
        settings["experts.mlp"] = EXPERTS
        activations.add("experts.mlp.activation_fn")
    else:
        shapes |= _stacked(form.experts, vars(children["experts"]) if "experts" in children else {})
    if form.experts == "identity":
        identity.add("experts.identity_expert")
    for name, shape in {"fc1_latent_proj": ("L", "D"), "fc2_latent_proj": ("D", "L")}.items():
        # Of Nemotron-H alone; of others, they would be parts that are not known.
        if type(block).__name__ != "NemotronHMoE":
            continue
        if isinstance(children.get(name), nn.Identity):
            identity.add(name)
            shapes = {path: tuple("D" if each == "L" else each for each in old) for path, old in shapes.items()}
        else:
            linear.add(name)
            shapes[f"{name}.weight"] = shape
            if f"{name}.bias" in has:
                shapes[f"{name}.bias"] = shape[:1]
    if form.shared is not None and form.shared in children:
        shapes |= _shared(form.shared, children[form.shared], has)
        settings[form.shared] = {**SHARED, "limit": SHARED_LIMIT} if form.clamped_shared else SHARED
        linear |= {f"{form.shared}.{name}" for name in ("gate_proj", "up_proj", "down_proj")}
        activations.add(activation_path(children[form.shared], form.shared))
        if form.shared_gate is not None:
            shapes[f"{form.shared_gate}.weight"] = ("1", "D")
            linear.add(form.shared_gate)
    return PartsOfBlock(shapes, settings, frozenset(linear), frozenset(identity), frozenset(activations))


def _stacked(kind: Bank, experts: Mapping[str, object]) -> dict[str, Shape]:
    gated = experts.get("has_gate", True)
    first, rows = ("gate_up_proj", "2F") if gated else ("up_proj", "F")
    width = "L" if not gated else "D"
    if kind == "input_gated" or experts.get("is_transposed", False):
        shapes: dict[str, Shape] = {first: ("E", width, rows), "down_proj": ("E", "F", width)}
    else:
        shapes = {first: ("E", rows, width), "down_proj": ("E", width, "F")}
    if kind == "identity":
        shapes[first] = ("A", rows, width)
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


def activation_path(shared: nn.Module, name: str) -> str:
    """Returns the name of the activation of a shared expert."""
    return f"{name}.activation_fn" if "activation_fn" in dict(shared.named_children()) else f"{name}.act_fn"


def tensor_at(module: nn.Module, path: str) -> Tensor:
    """Returns a parameter or buffer by its name."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Returns a module and its submodules by name, those of several names by each."""
    # torch's own types leave it partially unknown.
    return dict(cast(Iterable[tuple[str, nn.Module]], module.named_modules(remove_duplicate=False)))
