"""Feed-forward experts with stacked weights."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import (
    check_choice,
    check_positive,
    check_rank,
    check_same_device,
    check_same_dtype,
    check_width,
)
from moekit.experts.activation import ActivationLike, check_same_rows, is_gated, why_not_fused
from moekit.experts.base import Experts, check_plan_experts
from moekit.init import scaled_normal_
from moekit.plan import DispatchPlan
from moekit_kernels.activations.activation import label
from moekit_kernels.impl import Impl, check_impl
from moekit_kernels.moe_ffn import ExpertWeights, Recompute, moe_ffn
from moekit_kernels.moe_ffn.checks import RECOMPUTE


class FFNExperts(Experts):
    """``E`` two-layer feed-forward networks of equal shape, their weights stacked as ``(E, out, in)``.

    ``y = W_down act(W_up x + b_up) + b_down``; for a gated activation the rows of ``W_up`` are ``F`` gate
    rows, then ``F`` value rows (``transformers``' ``gate_up_proj``), or with ``"..._interleaved"`` one of each in
    turn (:func:`~moekit.experts.glu_layout.interleave_glu` converts). Weights start from a
    truncated normal of variance ``init_scale / fan_in``, biases at zero: Switch Transformers, section 2.4,
    https://arxiv.org/abs/2101.03961, with a scale of 0.1 there against instability.

    Args:
        dim: Width of the tokens, ``D``.
        hidden_dim: Hidden width, ``F``.
        num_experts: ``E``.
        activation: An :class:`~moekit.activations.Activation` or its name: ``"gelu"``, ``"gelu_tanh"``, ``"relu"``,
            ``"relu2"``, ``"silu"``, ``"situ"``; gated ``"swiglu"``, ``"geglu"``, ``"geglu_tanh"``,
            ``"clamped_swiglu"`` (GPT-OSS), ``"situ_glu"``, each also with ``"_interleaved"``. Or a function
            ``(N, F) -> (N, F)``, which runs as an operation of its own.
        bias: Whether both layers have biases.
        out_dim: Width of the output; ``dim`` by default.
        impl: ``"reference"`` is the readable form (every expert on every row), ``"torch"`` the fast one without Triton,
            ``"triton"`` the fused kernels for GPUs (bfloat16, float16 and float32);
            ``"auto"`` is that of the plan, by default the best that can run. See :mod:`moekit_kernels.impl` and
            :func:`moekit_kernels.moe_ffn.moe_ffn`.
        recompute: What the backward pass computes again, to keep less until then: ``"activation"`` (kept are
            the tokens and the pre-activations), ``"none"`` (kept is the hidden layer too) or ``"all"`` (kept
            are the tokens only). Another than the first needs an activation that runs fused, and the Triton kernels
            or a CPU.
        init_scale: See above.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a width is below 1, ``activation``, ``impl`` or ``recompute`` is unknown, or two of them
            exclude each other.
    """

    _checked_settings = frozenset({"activation", "impl", "recompute"})

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_experts: int,
        *,
        activation: ActivationLike = "swiglu",
        bias: bool = False,
        out_dim: int | None = None,
        impl: Impl = "auto",
        recompute: Recompute = "activation",
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        out_dim = dim if out_dim is None else out_dim
        for name, value in (
            ("dim", dim),
            ("hidden_dim", hidden_dim),
            ("num_experts", num_experts),
            ("out_dim", out_dim),
        ):
            check_positive(name, value)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.num_experts = num_experts
        self.out_dim = out_dim
        self.activation: ActivationLike = activation
        self.impl: Impl = impl
        self.recompute: Recompute = recompute
        self.init_scale = init_scale
        self._gated = is_gated(activation)
        up_rows = 2 * hidden_dim if self._gated else hidden_dim
        self._check_settings()

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.up_proj = empty(num_experts, up_rows, dim)
        self.down_proj = empty(num_experts, out_dim, hidden_dim)
        self.up_bias = empty(num_experts, up_rows) if bias else None
        self.down_bias = empty(num_experts, out_dim) if bias else None
        self.reset_parameters()
        self._make_read_only("dim", "hidden_dim", "num_experts", "out_dim", "token_ndim", "takes_pyramid")

    def reset_parameters(self) -> None:
        """Draws the weights anew and sets the biases to zero."""
        scaled_normal_(self.up_proj, self.dim, self.init_scale)
        scaled_normal_(self.down_proj, self.hidden_dim, self.init_scale)
        for bias in (self.up_bias, self.down_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "T D"], plan: DispatchPlan, gates: Float[Tensor, "A B"]
    ) -> Float[Tensor, "T D2"]:
        """Computes the gate-weighted sum of every token's experts.

        Args:
            x: Tokens ``(T, D)``.
            plan: Which rows belong to which expert.
            gates: Weights, whose flat index is the slot.

        Returns:
            One output per token, ``(T, out_dim)``; zero for a token without an expert.

        Raises:
            ValueError: If ``x``, ``plan`` and ``gates`` do not fit each other or the weights.
        """
        self._check_input(x, plan)
        # "auto" follows the plan, so that a layer's choice reaches its experts.
        impl = None if self.impl == "auto" else self.impl
        return moe_ffn(x, gates, plan, self._weights(), self.activation, recompute=self.recompute, impl=impl)

    def extra_repr(self) -> str:
        """Shows the settings."""
        recompute = "" if self.recompute == "activation" else f", recompute={self.recompute!r}"
        return (
            f"dim={self.dim}, hidden_dim={self.hidden_dim}, num_experts={self.num_experts}, "
            f"activation={label(self.activation)}, bias={self.up_bias is not None}, impl={self.impl!r}"
            f"{recompute}"
        )

    def _weights(self) -> ExpertWeights:
        """Returns the weights of the experts that this process holds."""
        return ExpertWeights(self.up_proj, self.down_proj, self.up_bias, self.down_bias)

    def _check_input(self, x: Tensor, plan: DispatchPlan) -> None:
        """Checks what the operation does not; and where this fails, the messages say it in terms of the layer."""
        check_rank("x", x, 2, "T, D")
        check_width("x", x, self.dim)
        check_same_device("x", x, "the experts' weights", self.up_proj)
        check_same_dtype("x", x, "the experts' weights", self.up_proj)
        check_plan_experts(plan, len(self.local_experts))

    def _check_settings(self) -> None:
        check_impl(self.impl)
        check_choice("recompute", self.recompute, RECOMPUTE)
        check_same_rows(self.activation, gated=self._gated)
        _check_together(self.impl, self.activation, self.recompute)


def _check_together(impl: Impl, activation: ActivationLike, recompute: Recompute) -> None:
    why = why_not_fused(activation, triton=True)
    if impl == "triton" and why is not None:
        raise ValueError(
            f'impl="triton" needs an activation with Triton functions, got {why}: use impl="auto" or "torch".'
        )
    why = 'impl="reference"' if impl == "reference" else why_not_fused(activation, triton=False)
    if recompute != "activation" and why is not None:
        raise ValueError(
            f"recompute={recompute!r} needs the fused kernels, got {why}, with which autograd keeps what it needs: "
            'leave recompute at "activation".'
        )
