"""Blocks of Hugging Face ``transformers`` as :class:`~moekit.layer.SparseMoE`. Does not import it."""

import torch
from torch import Tensor, nn

from moekit.experts.ffn import FFNExperts, Impl
from moekit.layer import SparseMoE
from moekit.routers.gate import Gate
from moekit.routers.hard import HardRouter
from moekit.routers.top_k import TopKRouter


def from_transformers(block: nn.Module, *, impl: Impl = "auto") -> SparseMoE:
    """Copies a ``MixtralSparseMoeBlock`` or ``Qwen3MoeSparseMoeBlock`` into a :class:`~moekit.layer.SparseMoE`.

    Both hold ``gate.weight (E, D)``, ``experts.gate_up_proj (E, 2F, D)`` (gate rows first) and
    ``experts.down_proj (E, D, F)``, with SiLU; Mixtral always renormalises the gates, Qwen3 as its
    ``norm_topk_prob`` says. The layer takes device and dtype of the block; weights are copies.

    Args:
        block: The block.
        impl: See :class:`~moekit.experts.ffn.FFNExperts`.

    Raises:
        ValueError: If the block is not laid out like this, or has ``router_jitter_noise``.

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
    gate = _tensor(block, "gate.weight")
    up, down = _tensor(block, "experts.gate_up_proj"), _tensor(block, "experts.down_proj")
    num_experts, dim, hidden_dim = down.shape
    if gate.shape != (num_experts, dim) or up.shape != (num_experts, 2 * hidden_dim, dim):
        raise ValueError(
            f"block must hold gate (E, D), gate_up_proj (E, 2F, D) and down_proj (E, D, F), got "
            f"{tuple(gate.shape)}, {tuple(up.shape)} and {tuple(down.shape)}."
        )
    hidden_act = getattr(getattr(block, "experts", None), "act_fn", None)
    if type(hidden_act).__name__ not in ("SiLUActivation", "SiLU"):
        raise ValueError(f"block must use SiLU in its experts, got {hidden_act!r}.")
    if float(getattr(block, "jitter_noise", 0.0) or 0.0) > 0:
        raise ValueError(
            "block must have router_jitter_noise=0, got "
            f"{block.jitter_noise}: in transformers it also perturbs what the experts see, in moekit only the router."
        )
    router = getattr(block, "gate")  # noqa: B009 (its type is unknown here)
    top_k = int(router.top_k)
    renormalize = bool(getattr(router, "norm_topk_prob", True))
    options: dict[str, torch.device | torch.dtype] = {"device": down.device, "dtype": down.dtype}
    if renormalize and top_k == 1:  # a single gate divided by itself: 1, without a gradient
        new_router = HardRouter(dim, num_experts, gradient="none", **options)  # pyright: ignore[reportArgumentType]
    else:
        new_router = TopKRouter(dim, num_experts, top_k, renormalize=renormalize, **options)  # pyright: ignore[reportArgumentType]
    moe = SparseMoE(
        new_router,
        FFNExperts(dim, hidden_dim, num_experts, activation="swiglu", impl=impl, **options),  # pyright: ignore[reportArgumentType]
    )
    assert isinstance(new_router.gate, Gate)
    with torch.no_grad():
        for mine, theirs in (
            (new_router.gate.layers[0].weight, gate),
            (moe.experts.up_proj, up),
            (moe.experts.down_proj, down),
        ):
            assert isinstance(mine, Tensor)
            mine.copy_(theirs)
    return moe.train(block.training)


def _tensor(block: nn.Module, name: str) -> Tensor:
    try:
        return block.get_parameter(name)
    except AttributeError:
        raise ValueError(f"block must hold the parameter {name!r}, got a {type(block).__name__} without it.") from None
