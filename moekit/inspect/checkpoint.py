"""What a checkpoint tells about its routers and experts: their weights, but no load."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.inspect.table import aligned

_EXPERTS = re.compile(r"^(?P<layer>.*?)\.?\bexperts\.(?P<rest>(?:\w+\.)*?(?P<index>\d+)\..+|[\w.]+)$")
_BIASES = ("selection_bias", "e_score_correction_bias", "expert_bias")


class CheckpointLayer(NamedTuple):
    """What the weights of one layer tell; ``None`` where a layer has no such weights.

    Attributes:
        name: Its name.
        num_experts: ``E``.
        gate_norms: Largest over smallest norm of the rows of the gate: an expert with a much shorter row wins less
            often, one with a much longer row more often.
        gate_similarity: Largest cosine of the rows of two experts: near 1, they compete for the same tokens.
        bias_range: Largest less smallest selection bias: how far loss-free balancing had to go.
        expert_norms: Largest over smallest norm of the weights of an expert. Under weight decay, experts that get no
            tokens shrink.
    """

    name: str
    num_experts: int
    gate_norms: float | None
    gate_similarity: float | None
    bias_range: float | None
    expert_norms: float | None


HOW_TO_RECORD = """\
Weights do not tell which tokens go where. To see the load, run the model on data and record it:

    from moekit.inspect import record_routing
    with record_routing(model) as record:
        model(batch)  # as many batches as you like
    print(record)
    record.save("routing.json.gz")        # python -m moekit.inspect routing.json.gz
    record.write_page("routing.html")"""


def inspect_checkpoint(path: str | Path) -> list[CheckpointLayer]:
    """Reads the weights of a checkpoint and compares those of the experts of each layer.

    Args:
        path: A safetensors file; a file of ``torch.save`` that holds tensors, numbers, strings and containers of them
            (nothing else is unpickled); or a folder of such files.

    Returns:
        One entry for each layer, by name.

    Raises:
        ValueError: If there are no such files or they hold no experts.
        ImportError: If safetensors is needed and not installed.
    """
    layers: dict[str, _Layer] = {}
    gates: dict[str, Tensor] = {}
    files = _files(Path(path))
    for file in files:
        for name, read in _tensors(file):
            if match := _EXPERTS.match(name):
                layers.setdefault(match["layer"], _Layer()).add(match["index"], read())
            elif re.search(r"gate|router|bias", name) and "noise" not in name:
                gates[name] = read()
    records = [layer for name, each in sorted(layers.items(), key=_in_order) if (layer := each.compared(name, gates))]
    if not records:
        raise ValueError(
            f"path must be a checkpoint with experts (weights named ...experts...), got {path}, which has none in "
            f"{len(files)} file(s)."
        )
    return records


def checkpoint_table(layers: list[CheckpointLayer]) -> str:
    """Returns the layers as aligned text."""
    headers = ("layer", "E", "gate norms max/min", "gate rows most alike", "bias range", "expert norms max/min")
    rows = [[each.name or "(model)", *map(_shown, each[1:])] for each in layers]
    return aligned([headers, *rows])


class _Layer:
    """The experts of one layer while a checkpoint is read."""

    def __init__(self) -> None:
        self.squares: dict[int, float] = {}

    def add(self, index: str | None, weight: Tensor) -> None:
        """Adds the weight of one expert, or one stacked over the experts."""
        if index is None and weight.ndim < 2:
            return
        rows = [weight] if index is not None else list(weight)
        for place, row in enumerate(rows):
            expert = place if index is None else int(index)
            self.squares[expert] = self.squares.get(expert, 0.0) + float(row.float().square().sum())

    def compared(self, name: str, others: Mapping[str, Tensor]) -> CheckpointLayer | None:
        """Returns the figures, or ``None`` if there are no experts."""
        count = len(self.squares)
        if count < 2:
            return None
        own = {key: each for key, each in others.items() if key.startswith(f"{name}." if name else "")}
        matrices = [each.float() for each in own.values() if each.ndim == 2 and each.shape[0] == count]
        biases = [each.float() for key, each in own.items() if key.endswith(_BIASES) and each.shape == (count,)]
        norms, similarity = _gate(matrices[-1]) if matrices else (None, None)
        return CheckpointLayer(
            name,
            count,
            norms,
            similarity,
            float(biases[0].max() - biases[0].min()) if biases else None,
            _ratio(torch.tensor([value**0.5 for value in self.squares.values()])),
        )


def _gate(weight: Tensor) -> tuple[float | None, float]:
    unit = F.normalize(weight, dim=-1)
    cosines = (unit @ unit.T).fill_diagonal_(-1.0)
    return _ratio(weight.square().sum(-1).sqrt()), float(cosines.max())


def _ratio(norms: Tensor) -> float | None:
    least = float(norms.min())
    return float(norms.max()) / least if least else None


def _in_order(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Orders names by the numbers in them: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in item[0].split(".")]


def _shown(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise ValueError(f"path must be a record or a checkpoint, got {path}, which does not exist.")
    if path.is_file():
        return [path]
    for pattern in ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt"):
        if files := sorted(path.glob(pattern)):
            return files
    raise ValueError(f"path must hold .safetensors, .bin, .pt, .pth or .ckpt files, got {path} without any.")


def _tensors(file: Path) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yields the name of each tensor and a function that reads it."""
    if file.suffix == ".safetensors":
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(f"{file} needs safetensors, which is not installed: pip install safetensors.") from error
        with cast(Any, safe_open)(str(file), framework="pt") as tensors:
            for name in cast(list[str], list(tensors.keys())):
                yield name, lambda name=name: cast(Tensor, tensors.get_tensor(name))
        return
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle may fail in any way
        raise ValueError(
            f"path must be a record, a safetensors file or tensors of torch.save, got {file}: {error}"
        ) from error
    yield from _flat(content)


def _flat(content: object, prefix: str = "") -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yields the tensors of nested dictionaries; the names of the outermost ones are left out."""
    if not isinstance(content, Mapping):
        return
    for key, value in cast(Mapping[object, object], content).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", lambda value=value: value
        elif isinstance(value, Mapping) and key in ("state_dict", "model", "module", "model_state_dict"):
            yield from _flat(cast(object, value), prefix)
