"""Every sparse block of the installed ``transformers``, listed from its source, built small from its configuration."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
import transformers.models
from torch import nn

DIM, HIDDEN, EXPERTS, TOP_K = 16, 8, 4, 2
# By any of the names that configurations have for it.
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim"), DIM),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), HIDDEN),
    **dict.fromkeys(("ffn_dim", "ffn_hidden_size", "d_ff", "expert_ffn_hidden_size", "expert_dim"), HIDDEN),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k", "top_k_experts", "moe_top_k"), TOP_K),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group", "n_groups", "topk_groups"), 1),
    "vocab_size": 32,
    "part_features": 4,
    "n_shared_experts": 1,
}
# Where the defaults are no configuration.
OPTIONS = {
    "DeepseekV4Config": {"num_hidden_layers": 2, "mlp_layer_types": ["moe", "moe"]},
    "DbrxConfig": {
        "d_model": DIM,
        "ffn_config": {"moe_num_experts": EXPERTS, "moe_top_k": TOP_K, "ffn_hidden_size": HIDDEN},
    },
}


@cache
def block_classes() -> tuple[tuple[str, str], ...]:
    """``(model, class name)`` of every module class that holds an attribute ``experts``."""
    classes = []
    for model in pkgutil.iter_modules(transformers.models.__path__):
        path = Path(transformers.models.__path__[0]) / model.name / f"modeling_{model.name}.py"
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        classes += [
            (model.name, node.name)
            for node in tree.body
            if isinstance(node, ast.ClassDef) and "self.experts =" in ast.unparse(node)
        ]
    return tuple(classes)


def build(model: str, name: str) -> nn.Module | None:
    """The block with random weights, in evaluation mode; None if no small configuration of the model builds it."""
    kind = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), name)
    arguments = {"layer_idx": 1, "intermediate_size": HIDDEN, "ffn_dim": HIDDEN}
    extra = {each: arguments[each] for each in inspect.signature(kind.__init__).parameters if each in arguments}
    for config in _configurations(importlib.import_module(f"transformers.models.{model}.configuration_{model}")):
        try:
            with torch.device("meta"):
                block = kind(config, **extra)
        except Exception:  # the configuration of another part of the model
            continue
        if sum(p.numel() for p in block.parameters()) > 1_000_000:
            continue
        block = block.to_empty(device="cpu").float().eval()
        for tensor in [*block.parameters(), *block.buffers()]:
            if tensor.is_floating_point():
                nn.init.normal_(tensor, std=0.3)
            else:
                nn.init.zeros_(tensor)
        return block
    return None


def _configurations(module: ModuleType) -> Iterator[object]:
    for name, kind in vars(module).items():
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedConfig) and name.endswith("Config"):
            try:
                config = kind(**OPTIONS.get(name, {}))
            except Exception:  # a configuration of required parts
                continue
            for size, value in SIZES.items():
                try:
                    if hasattr(config, size) or size == "shared_expert_intermediate_size":
                        setattr(config, size, value)
                except Exception:  # derived from others, or of each layer
                    continue
            yield config
