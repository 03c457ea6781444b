"""Reads the rule of a block's router, and the activations of its experts."""

from typing import Literal, NamedTuple

from torch import nn

from moekit.interop.transformers._forms import Form
from moekit.interop.transformers._parts import PartsOfBlock, activation_path
from moekit_kernels.activations import activation_of, clamped_swiglu
from moekit_kernels.routing.options import GroupScore, Scoring


class Rule(NamedTuple):
    """How a router chooses experts and weights them; see :class:`~moekit.routers.top_k.TopKRouter`.

    Attributes:
        top_k: ``K``.
        scoring: See there.
        renormalize: Whether the gates of a token are divided by their sum.
        epsilon: Added to that sum; of the sparse mixer its own.
        scaling_factor: Multiplies the gates.
        num_groups: Groups of experts, or None.
        topk_groups: Groups chosen, or None.
        group_score: What groups are ranked by.
        input_jitter: Half the width of the noise by which the block multiplies its tokens in training.
    """

    top_k: int
    scoring: Scoring | Literal["sparse_mixer"]
    renormalize: bool
    epsilon: float = 0.0
    scaling_factor: float = 1.0
    num_groups: int | None = None
    topk_groups: int | None = None
    group_score: GroupScore = "top2_sum"
    input_jitter: float = 0.0


def rule_of(block: nn.Module, form: Form, num_experts: int) -> Rule:
    """Returns the rule of a block's router.

    Raises:
        ValueError: If the block does not say what the rule is, or has groups of one expert.
    """
    of_block, of_router = vars(block), vars(block.get_submodule(form.router))
    settings = of_block | of_router
    if form.scoring == "sqrt_softplus":
        _check_score(block, form.router)
    renormalize = form.renormalize
    if renormalize is None:
        if "norm_topk_prob" not in settings and "moe_normalize_expert_weights" not in settings:
            raise ValueError(
                "block must say by norm_topk_prob whether the gates of a token are divided by their sum, got a "
                f"{type(block).__name__} without."
            )
        of_norm = settings.get("moe_normalize_expert_weights")
        renormalize = settings.get("norm_topk_prob", of_norm is not None)
    num_groups, topk_groups = settings.get("num_group"), settings.get("topk_group")
    by_max = settings.get("topk_method") == "group_limited_greedy"
    if settings.get("topk_method") == "greedy" or num_groups == 1:
        num_groups = topk_groups = None
    if num_groups is not None and not by_max and (num_experts % num_groups or num_experts // num_groups < 2):
        raise ValueError(
            f"block must have groups of at least 2 experts each, got {num_experts} experts with "
            f"{form.router}.num_group={num_groups}."
        )
    return Rule(
        settings["top_k"],
        form.scoring,
        renormalize,
        form.epsilon if renormalize else float(settings.get("router_jitter_noise", 0.0)),
        float(settings.get("routed_scaling_factor", 1.0)),
        num_groups,
        topk_groups,
        "max" if by_max and num_groups is not None else "top2_sum",
        float(settings.get("input_jitter_noise", 0.0)),
    )


def _check_score(block: nn.Module, router: str) -> None:
    score = block.get_submodule(router).get_submodule("score_fn")
    if type(score).__name__ != "SqrtSoftplusActivation":
        raise ValueError(
            f"block must score experts by sqrtsoftplus, the default of its configuration's scoring_func, got "
            f"{router}.score_fn={score!r}."
        )


def activations_of(block: nn.Module, form: Form, parts: PartsOfBlock) -> tuple[str, str | None]:
    """Returns the names of the activations of the experts and of the shared expert, if there is one.

    Raises:
        ValueError: If one is not known, or contradicts how gate and value lie.
    """
    # The block is one of transformers, so it is installed; whoever imports moekit need not have it.
    from moekit.interop.transformers._gates import activation_name, fused_activation

    experts = block.get_submodule("experts")
    if form.experts == "split":
        activation = activation_name(experts.get_submodule("mlp.activation_fn"), gated=True)
    elif form.experts != "stacked":
        activation = activation_name(getattr(experts, "act_fn", None), gated=True)
    else:
        activation = fused_activation(experts)
        concatenated = vars(experts).get("is_concatenated", True)
        if activation is not None and concatenated == activation_of(activation).interleaved:
            raise ValueError(
                f"block must say how gate and value lie, got a {type(block).__name__} with "
                f"experts.is_concatenated={concatenated}, whose experts compute {activation}."
            )
    of_shared = None
    if form.shared is not None and form.shared in parts.settings:
        gated = f"{form.shared}.gate_proj.weight" in parts.shapes
        path = activation_path(block.get_submodule(form.shared), form.shared)
        of_shared = activation_name(block.get_submodule(path), gated=gated)
        if form.clamped_shared:
            limit = float(vars(block.get_submodule(form.shared))["limit"])
            of_shared = clamped_swiglu(1.0, limit, False, offset=0.0).name if of_shared == "swiglu" else None
        if of_shared is None:
            raise ValueError(_unknown_activation(block, path))
    if activation is None:
        path = "experts.mlp.activation_fn" if form.experts == "split" else "experts.act_fn"
        raise ValueError(_unknown_activation(block, path))
    return activation, of_shared


def _unknown_activation(block: nn.Module, path: str) -> str:
    owner, _, name = path.rpartition(".")
    got = getattr(block.get_submodule(owner), name, None)
    return (
        "block must use an activation of moekit in its experts (SiLU, GELU, its tanh form, or the clamped SwiGLU of "
        f"GPT-OSS; without a gate also ReLU and its square), got {path}={got!r}."
    )
