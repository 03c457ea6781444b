"""Hugging Face ``transformers``: its blocks as :class:`~moekit.layer.SparseMoE`, its experts computed by moekit.

Importing this module does not import it.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from moekit.interop.transformers._build import build_layer, check_same_rule, empty_layer, understand
from moekit.interop.transformers._probabilities import router_probabilities
from moekit.interop.transformers._swap import SwappedBlocks, swap
from moekit.layer import SparseMoE
from moekit.observers import add_preparation
from moekit_kernels.impl import Impl

__all__ = [
    "SwappedBlocks",
    "from_transformers",
    "fused_activation",
    "load_transformers_",
    "register_experts",
    "save_transformers",
    "swap_moe_blocks_",
    "to_transformers",
]

# Before, models accepted no implementation but those of transformers.
_OLDEST = (5, 7)
_NEEDS = 'needs transformers 5.7 or newer: pip install "transformers>=5.7".'


def register_experts() -> None:
    """Registers ``experts_implementation="moekit"`` with ``transformers``, for the experts of every model.

    Models that are built or loaded with it, or told so by ``model.set_experts_implementation("moekit")``, keep their
    modules, parameters, routers and checkpoints; only the experts are computed by moekit, on a plan of the router's
    choice. ``set_experts_implementation("grouped_mm")`` turns back.

    - Transposed weights are read as views. Their gradients are made in moekit's layout and copied into theirs.
    - Experts whose activation is recognised run fused; others run the module's own gate between two grouped GEMMs, and
      so do those with a norm after each expert. :func:`fused_activation` tells.
    - With expert parallelism of ``transformers``, slots of other ranks are left out.
    - Under ``torch.autocast``, products are in the autocast dtype, as in ``F.linear``; sums over experts are rounded to
      it once.
    - Gradients are of first order where experts run fused.

    May be called more than once.

    Raises:
        ImportError: If ``transformers`` is not installed, or is older than 5.7.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> register_experts()
        >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 20}
        >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        >>> model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
        >>> before = model(torch.arange(6)[None]).logits
        >>> model.set_experts_implementation("moekit")
        >>> torch.allclose(model(torch.arange(6)[None]).logits, before, atol=1e-6)
        True
    """
    try:
        import transformers
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    except ImportError as error:
        raise ImportError(f"register_experts {_NEEDS}") from error
    installed = transformers.__version__
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        raise ImportError(f"register_experts {_NEEDS} Installed is {installed}.")
    from moekit.interop.transformers._experts import experts_forward

    ALL_EXPERTS_FUNCTIONS.register("moekit", experts_forward)
    # Experts report their decisions themselves.
    add_preparation(router_probabilities)


def fused_activation(experts: nn.Module) -> str | None:
    """Returns the activation by which ``experts_implementation="moekit"`` runs experts fused; None if unfused.

    Args:
        experts: A module of stacked experts, such as ``model.model.layers[0].mlp.experts``.

    Returns:
        A name of an activation of :class:`~moekit.experts.ffn.FFNExperts`, or None.

    Raises:
        ImportError: If ``transformers`` is not installed.

    Example:
        >>> from transformers import MixtralConfig
        >>> from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        >>> fused_activation(MixtralExperts(MixtralConfig(hidden_size=16, intermediate_size=8)))
        'swiglu'
    """
    try:
        from moekit.interop.transformers import _gates
    except ImportError as error:
        raise ImportError(f"fused_activation {_NEEDS}") from error
    return _gates.fused_activation(experts)


def from_transformers(block: nn.Module, *, impl: Impl = "auto") -> SparseMoE:
    """Copies a sparse block of ``transformers`` into a :class:`~moekit.layer.SparseMoE` that computes the same.

    Converted are the blocks of Mixtral, Qwen2-MoE, Qwen3-MoE, Qwen3-Next, Qwen3.5, OLMoE, FlexOlmo, DeepSeek-V2, V3 and
    V4 (this one without its hash layers), GLM4-MoE, dots1, Nemotron-H, Ernie 4.5, MiniMax-M2, Granite-MoE, Jamba, DBRX,
    LFM2-MoE, GPT-OSS, HunYuan, Aria, Llama 4, LongCat and PhiMoE (with ``input_jitter_noise`` above 0 in evaluation
    only, as the block multiplies the tokens of its experts by noise in training), and of models whose blocks are the
    same as one of these.
    Anything else is refused by name: every parameter, buffer, submodule, hook and setting of the block must be one
    that has a place in the layer, and a copy of the block with small random weights must give the layer's output and
    gradients. So a class that a later ``transformers`` changes is refused, not misread.

    Each part of the layer takes device, dtype and ``requires_grad`` of its weights, which are copies; the layer takes
    the block's mode. The layer computes router logits in float32 also in half-precision models, where many blocks
    round them: there, nearly equal experts may be ranked otherwise.

    Args:
        block: The block, e.g. ``model.model.layers[0].mlp``.
        impl: See :class:`~moekit.experts.ffn.FFNExperts`.

    Returns:
        The layer. What a block returns beside its output, as GPT-OSS its gates, is in :meth:`SparseMoE.route`.

    Raises:
        ValueError: If the block is of another class, or has anything that the layer would not have.

    Example:
        >>> from transformers import MixtralConfig
        >>> from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
        >>> block = MixtralSparseMoeBlock(MixtralConfig(hidden_size=8, intermediate_size=16))
        >>> for weight in block.parameters():
        ...     _ = torch.nn.init.normal_(weight, std=0.1)
        >>> x = torch.randn(1, 5, 8)
        >>> torch.allclose(from_transformers(block)(x).output, block(x), atol=1e-6)
        True
    """
    return build_layer(understand(block), impl).train(block.training)


def to_transformers(layer: SparseMoE, block: nn.Module) -> nn.Module:
    """Writes the weights of a layer into a block of ``transformers``: the way back of :func:`from_transformers`.

    Args:
        layer: A layer as :func:`from_transformers` makes it of such a block, trained since or not. Which code runs it
            (``impl``, ``recompute``) does not matter; any other difference does.
        block: A block of the class and sizes that the layer came from. Its weights are overwritten, in its dtypes and
            layout; its mode and what it freezes stay.

    Returns:
        The block.

    Raises:
        ValueError: If the block is refused by :func:`from_transformers`, or would become another layer than this: with
            other shapes, another rule, a capacity, a part that was wrapped or replaced.

    Example:
        >>> from transformers import OlmoeConfig
        >>> from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
        >>> block = OlmoeSparseMoeBlock(OlmoeConfig(hidden_size=8, intermediate_size=16))
        >>> moe = from_transformers(block)
        >>> _ = torch.nn.init.ones_(moe.experts.down_proj)
        >>> bool((to_transformers(moe, block).experts.down_proj == 1).all())
        True
    """
    if not isinstance(layer, SparseMoE):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"layer must be a SparseMoE, got a {type(layer).__name__}.")
    contents = understand(block)
    check_same_rule(layer, empty_layer(contents, "auto", "meta"))
    weights = dict(layer.named_parameters()) | dict(layer.named_buffers())
    for piece in contents.pieces:
        piece.write_from(weights[piece.name])
    return block


def swap_moe_blocks_(model: nn.Module) -> SwappedBlocks:
    """Lets moekit compute the sparse blocks of a model of ``transformers``, in place, with their own weights.

    In every block that :func:`from_transformers` understands, the router decides by a router of moekit and the experts
    are computed by moekit. Both modules stay the objects that they are, as do the block, its parameters, buffers and
    hooks and the names of all these: only their classes change, to subclasses of what they were. So a block returns
    what it returned, models record router logits, nothing is copied, optimisers keep their parameters, and checkpoints
    their keys; a model is saved as if it were not swapped, and one that was loaded is swapped anew.

    Either every block of the model is swapped or none. While they are, ``experts_implementation`` has no effect.
    Router logits are computed in float32 also in half-precision models, and returned in the dtype of the block's (those
    of DBRX and Llama 4 by their own routers). PhiMoE's router is computed by moekit in evaluation, and
    by itself in training, where it draws experts.

    Args:
        model: A model, or any part of one that holds sparse blocks.

    Returns:
        What was swapped, which lists the names of the blocks and swaps them back: by ``restore()``, or at the end of
        ``with swap_moe_blocks_(model):``.

    Raises:
        ValueError: If the model holds no sparse block, one that is not understood, or one that is swapped already.

    Example:
        >>> from transformers import OlmoeConfig, OlmoeForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_experts": 8}
        >>> heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 20, "eos_token_id": 1}
        >>> model = OlmoeForCausalLM(OlmoeConfig(**sizes, **heads, pad_token_id=0))
        >>> prompt = torch.arange(6)[None]
        >>> before = model(prompt).logits
        >>> with swap_moe_blocks_(model) as swapped:
        ...     print(swapped.names)
        ...     torch.allclose(model(prompt).logits, before, atol=1e-6)
        ('model.layers.0.mlp', 'model.layers.1.mlp')
        True
        >>> torch.equal(model(prompt).logits, before)
        True
    """
    return swap(model)


def save_transformers(
    model: nn.Module,
    like: Any,
    folder: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Saves a model of ``transformers`` whose sparse blocks are layers of moekit as the model that it was.

    The folder is what ``like.save_pretrained`` would write with the weights of the layers in its blocks: configuration
    and safetensors files with the names and the layout of ``transformers``, which its ``from_pretrained`` loads. The
    model may be divided among ranks (:func:`~moekit.distributed.expert_parallel_`, ``fully_shard``). All ranks call it
    then; each writes what it holds, every expert at its own place, and nothing is gathered. Needs the extra ``hub``.

    Args:
        model: The model. In the place of each sparse block it has a layer as :func:`from_transformers` makes it,
            trained since or not, or one module that holds such a layer.
        like: The model of ``transformers`` with blocks as they were; its weights are not read. On the meta device it
            takes no memory: ``with torch.device("meta"): like = AutoModelForCausalLM.from_config(config)``.
        folder: Where to write; it is made. Weights of an earlier saving are replaced. For a divided model it must be on
            a file system that all ranks share.
        max_shard_size: Largest size of one file of tensors; one tensor is never split.
        process_group: Of a divided model, all ranks that it is divided among; the default group if None.

    Raises:
        ValueError: If a block is refused by :func:`from_transformers`, its form in files is not understood, or the
            model has other tensors than ``like``. Nothing is written then.
        OSError: On all ranks, if a file cannot be written on one.
    """
    from moekit.interop.transformers._files import save

    save(model, like, Path(folder), max_shard_size, process_group)


def load_transformers_(
    model: nn.Module, like: Any, folder: str | Path, *, device: torch.device | str = "cpu"
) -> nn.Module:
    """Loads a checkpoint of ``transformers`` into a model whose sparse blocks are layers of moekit, in place.

    Of a model that is divided among ranks, each rank reads the experts and rows that it holds alone. Needs the extra
    ``hub``.

    Args:
        model: As of :func:`save_transformers`. Weights keep their dtype. They may be on the meta device, where a model
            is built and divided without memory.
        like: As of :func:`save_transformers`.
        folder: As ``transformers`` saves it, or :func:`save_transformers`, of the architecture of ``like``.
        device: Where weights that are on the meta device go.

    Returns:
        The model.

    Raises:
        ValueError: As :func:`save_transformers`, or if the folder has other tensors than ``like`` would save, or the
            model has a buffer without values that no file holds. Weights with values keep them then; those on the meta
            device may have got memory, without values.
    """
    from moekit.interop.transformers._files import load

    load(model, like, Path(folder), torch.device(device))
    return model
