"""Hugging Face ``transformers``: its blocks as :class:`~moekit.layer.SparseMoE`, its experts computed by moekit.

Importing this module does not import it.
"""

from typing import TypedDict

import torch
from torch import Tensor, nn

from moekit.experts.dense import FFN
from moekit.experts.ffn import FFNExperts
from moekit.interop._transformers_check import check_small_copy
from moekit.interop._transformers_read import BlockContents, read_block
from moekit.layer import SparseMoE
from moekit.routers.hard import HardRouter
from moekit.routers.top_k import TopKRouter
from moekit_kernels.impl import Impl

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
    from moekit.interop._transformers_experts import experts_forward

    ALL_EXPERTS_FUNCTIONS.register("moekit", experts_forward)


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
        from moekit.interop import _transformers_gates
    except ImportError as error:
        raise ImportError(f"fused_activation {_NEEDS}") from error
    return _transformers_gates.fused_activation(experts)


def from_transformers(block: nn.Module, *, impl: Impl = "auto") -> SparseMoE:
    """Copies a sparse block of ``transformers`` into a :class:`~moekit.layer.SparseMoE` that computes the same.

    Converted are ``MixtralSparseMoeBlock``, ``Qwen2MoeSparseMoeBlock`` and ``Qwen3MoeSparseMoeBlock``: softmax top-k
    routing with or without renormalised gates (``norm_topk_prob``), gated experts with SiLU or GELU, and Qwen2-MoE's
    shared expert with its sigmoid gate. Anything else is refused by name: every parameter, buffer, submodule, hook
    and setting of the block must be one that has a place in the layer, and a copy of the block with small random
    weights must give the layer's output and gradients. So a class that a later ``transformers`` changes is refused,
    not misread.

    Each part of the layer takes device, dtype and ``requires_grad`` of its weights, which are copies; the layer takes
    the block's mode. The layer computes router logits in float32 also in half-precision models, where the block
    rounds them: there, nearly equal experts may be ranked otherwise.

    Args:
        block: The block, e.g. ``model.model.layers[0].mlp``.
        impl: See :class:`~moekit.experts.ffn.FFNExperts`.

    Returns:
        The layer.

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
    contents = read_block(block)
    check_small_copy(block, contents, lambda small: _build(small, "reference"))
    return _build(contents, impl).train(block.training)


class _Place(TypedDict):
    device: torch.device
    dtype: torch.dtype


def _place(weight: Tensor) -> _Place:
    return {"device": weight.device, "dtype": weight.dtype}


def _build(contents: BlockContents, impl: Impl) -> SparseMoE:
    gate, up, down, shared = contents.gate, contents.gate_up_proj, contents.down_proj, contents.shared
    num_experts, dim, hidden_dim = down.shape
    if contents.renormalize and contents.top_k == 1:  # a single gate divided by itself: 1, without a gradient
        router = HardRouter(dim, num_experts, gradient="none", **_place(gate))
    else:
        router = TopKRouter(dim, num_experts, contents.top_k, renormalize=contents.renormalize, **_place(gate))
    experts = FFNExperts(dim, hidden_dim, num_experts, activation=contents.activation, impl=impl, **_place(down))
    pairs = [(next(router.parameters()), gate), (experts.up_proj, up), (experts.down_proj, down)]
    shared_expert = None
    if shared is not None:
        hidden = shared.down_proj.shape[1]
        shared_expert = FFN(dim, hidden, activation=contents.activation, gated=True, **_place(shared.down_proj))
        assert shared_expert.gate is not None
        both = torch.cat([shared.gate_proj, shared.up_proj]).requires_grad_(shared.up_proj.requires_grad)
        pairs += [
            (shared_expert.up_proj.weight, both),
            (shared_expert.down_proj.weight, shared.down_proj),
            (shared_expert.gate.weight, shared.gate),
        ]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
            mine.requires_grad_(theirs.requires_grad)
    return SparseMoE(router, experts, shared=shared_expert)
