"""Small models of the families of transformers whose blocks moekit computes, for tests."""

import importlib

import pytest
import torch
import transformers
from torch import nn

from benchmarks.families.build import build

# Of each, the class of its blocks.
FAMILIES = {
    "aria": "AriaTextMoELayer",
    "dbrx": "DbrxFFN",
    "deepseek_v2": "DeepseekV2Moe",
    "deepseek_v3": "DeepseekV3MoE",
    "dots1": "Dots1MoE",
    "ernie4_5_moe": "Ernie4_5_MoeSparseMoeBlock",
    "flex_olmo": "FlexOlmoSparseMoeBlock",
    "glm4_moe": "Glm4MoeMoE",
    "gpt_oss": "GptOssMLP",
    "granitemoe": "GraniteMoeMoE",
    "hunyuan_v1_moe": "HunYuanMoEV1Moe",
    "jamba": "JambaSparseMoeBlock",
    "lfm2_moe": "Lfm2MoeSparseMoeBlock",
    "llama4": "Llama4TextMoe",
    "longcat_flash": "LongcatFlashMoE",
    "minimax_m2": "MiniMaxM2SparseMoeBlock",
    "mixtral": "MixtralSparseMoeBlock",
    "nemotron_h": "NemotronHMoE",
    "olmoe": "OlmoeSparseMoeBlock",
    "phimoe": "PhimoeSparseMoeBlock",
    "qwen2_moe": "Qwen2MoeSparseMoeBlock",
    "qwen3_5_moe": "Qwen3_5MoeSparseMoeBlock",
    "qwen3_moe": "Qwen3MoeSparseMoeBlock",
    "qwen3_next": "Qwen3NextSparseMoeBlock",
}
DIM, EXPERTS = 32, 4
INSTALLED = tuple(int(part) for part in transformers.__version__.split(".")[:2])

MARKS = [
    pytest.mark.filterwarnings("ignore"),  # of transformers, about the models' own defaults
    pytest.mark.skipif(INSTALLED < (5, 24), reason="blocks of older transformers are made otherwise, and refused"),
]


def model_of(family: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    """Returns a small model whose biases and corrections are not zero, in evaluation mode."""
    try:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    model = build(family, dtype, **settings)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for block in blocks_in(model):
            # Biases and corrections start at zero, where no error of theirs would show.
            for tensor in [*block.parameters(), *block.buffers()]:
                if tensor.ndim <= 2:
                    tensor.normal_(std=0.1)
    return model


def blocks_in(model: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a model; of Llama 4 and DBRX, which change their class, only while they are not swapped."""
    return [module for module in model.modules() if type(module).__name__ in FAMILIES.values()]


def block_of(family: str, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Module:
    """Returns the first block of a family's model."""
    return blocks_in(model_of(family, dtype, **settings))[0]


def output_of_block(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Returns the output of a block, of the shape of its input."""
    output = block(x)
    return (output if isinstance(output, torch.Tensor) else output[0]).view(x.shape)
