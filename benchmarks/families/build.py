"""Small random models of every family of ``transformers`` that takes an ``experts_implementation``."""

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.models
from torch import nn

DECORATOR = "\n@use_experts_implementation"

# By any of the names that configurations have for it.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("shared_experts_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "moe_hidden_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("num_hidden_layers", "num_layers"), 2),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "q_rank", "kv_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim", "swa_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("num_attention_heads", "swa_num_attention_heads", "index_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads"), 4),
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# What a family needs beyond these; None takes a value of SMALL away.
_HALF_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _HALF_LINEAR | {"mlp_layer_types": ["dense", "sparse"]},
    "beam": {"mlp_layer_types": ["dense", "sparse"]},
    "dbrx": {
        "n_heads": 4,
        "n_layers": 2,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse"]},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [24, 24],
        "mlp_layer_types": ["dense", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    },
    "flint": {"mlp_only_layers": [0]},
    "gemma4": {
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
    },
    "glm4v_moe": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}},
    "glm5_next": {
        "qk_rope_head_dim": None,
        "layer_types": ["linear_attention", "indexed_attention"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "granitemoehybrid": _HALF_LINEAR | {"mamba_n_heads": 8, "mamba_d_state": 8},
    "hy_v4_vl": {"qk_rope_head_dim": None, "index_head_dim": None},
    "inkling2": {"unpadded_vocab_size": 64},
    "inkling2_loop": {"unpadded_vocab_size": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": _HALF_LINEAR,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "nemotron_h": {
        "num_hidden_layers": None,
        "layers_block_type": ["mamba", "moe", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
    },
    # With its default, no two experts of a random model are near enough to share a token.
    "phimoe": {"router_jitter_noise": 0.5},
    "qwen3_5_moe": _HALF_LINEAR,
    "qwen3_next": _HALF_LINEAR,
    "qwen4_exp": _HALF_LINEAR
    | {
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 32,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
# Where the first class that generates is not the one with the experts.
CLASSES: dict[str, str] = {}
KINDS = ("ForCausalLM", "TextModel", "ForTokenClassification")


@cache
def families() -> tuple[str, ...]:
    """Returns the families whose modelling file decorates experts, by name."""
    root = Path(transformers.models.__path__[0])
    names = sorted(module.name for module in pkgutil.iter_modules([str(root)]))
    paths = [(name, root / name / f"modeling_{name}.py") for name in names]
    return tuple(name for name, path in paths if path.exists() and DECORATOR in path.read_text())


# Their experts take no implementation, but moekit computes their blocks.
UNDECORATED = ("dbrx", "llama4", "longcat_flash")


def all_families() -> tuple[str, ...]:
    """Returns :func:`families` and those of other models whose blocks moekit computes, by name."""
    return tuple(sorted({*families(), *UNDECORATED}))


def model_class(family: str) -> type[Any]:
    """Returns the class that is built: one that generates text, else the family's text model."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if family in CLASSES:
        return getattr(module, CLASSES[family])
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    return next(each for kind in KINDS for each in own if each.__name__.endswith(kind))


def small_config(family: str, **settings: Any) -> Any:
    """Returns a configuration of :func:`model_class` with small sizes, and with these settings."""
    kind = model_class(family).config_class
    known = {field.name for field in fields(kind)} | set(getattr(kind, "attribute_map", ()))
    sizes = {name: value for name, value in SMALL.items() if name in known} | OPTIONS.get(family, {})
    return kind(**{name: value for name, value in sizes.items() if value is not None} | settings)


def build(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Returns the small model with random weights, in evaluation mode."""
    config = small_config(family, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(family)._from_config(config, dtype=dtype).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.1)
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Returns the modules of a model that hold experts."""
    return [module for module in model.modules() if "experts" in dict(module.named_children())]


def experts_of(model: nn.Module) -> list[nn.Module]:
    """Returns the modules of a model that take an ``experts_implementation``."""
    return [module for module in model.modules() if hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")]
