"""Token choice: every token takes its ``top_k`` best experts."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moekit.checks import check_choice, check_counts, check_top_k
from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.gate import Gate, make_gate, plain_linear, router_logits
from moekit.routers.noise import add_noise, check_jitter, jittered, smooth_load
from moekit.routing import FusedSums, Routing
from moekit_kernels.impl import KERNEL_DTYPES, Impl, check_sizes, resolve_impl
from moekit_kernels.routing import Routed
from moekit_kernels.routing.checks import LIMITS, MAX_LINEAR_EXPERTS, check_groups
from moekit_kernels.routing.finite import finite_logits
from moekit_kernels.routing.op import route_by
from moekit_kernels.routing.op_linear import route_linear_by
from moekit_kernels.routing.options import SCORINGS, GroupScore, RouteOptions, Scoring

_LOGITS = ("logits", torch.float32)


class TopKRouter(Router):
    """Sends every token to the ``top_k`` experts of largest score; ties go to the lowest id.

    | scoring | score of expert e | gate of a chosen expert | used by |
    |---|---|---|---|
    | ``"softmax"`` | ``softmax(logits)_e`` | its score | Switch, Mixtral, Qwen-MoE, DeepSeek-V2 |
    | ``"topk_softmax"`` | ``logits_e`` | softmax over the chosen logits | Shazeer 2017, GPT-OSS |
    | ``"sigmoid"`` | ``sigmoid(logits_e)`` | its score | DeepSeek-V3, Llama 4 |
    | ``"sqrt_softplus"`` | ``sqrt(softplus(logits_e))`` | its score | DeepSeek-V4 |

    With ``renormalize`` the gates of a token are divided by their sum, then multiplied by
    ``scaling_factor``. Selection has no gradient, gates have. Everything is computed in float32 or wider.
    Without selection bias and sums of groups experts are ranked by their logits: the order of the scores, but for
    scores that rounding makes equal, so every device and implementation chooses alike.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        top_k: ``K``.
        scoring: See the table.
        renormalize: Whether a token's gates sum to ``scaling_factor``. By default True for ``top_k > 1``
            and False for ``top_k = 1``, where it would make the only gate constant and leave the router without
            gradient.
        scaling_factor: Multiplies the gates.
        jitter: In training, multiplies the router input by uniform noise from ``[1 - jitter, 1 + jitter]``
            (Switch Transformers, section 2.2).
        noisy: In training, adds trainable normal noise to the logits (Shazeer 2017, equation 4);
            weights of noise and (linear) gate then start at zero, as there. Not with ``num_groups`` or
            ``selection_bias``.
        num_groups: Splits the experts into equal groups of neighbours (DeepSeek-V2 and V3).
        topk_groups: Chooses within the best ``topk_groups`` groups only.
        group_score: What groups are ranked by: ``"top2_sum"``, the sum of their two largest scores (DeepSeek-V3), or
            ``"max"``, their largest (DeepSeek-V2).
        selection_bias: Keeps a buffer that is added to the scores for selection but not to the gates,
            for balancing without an auxiliary loss; see :meth:`update_bias_`.
        gate_hidden_dim: Makes the gate a two-layer MLP of this hidden width.
        gate_bias: Whether the gate has biases.
        gate: Any module ``(T, ...) -> (T, E)`` in place of the built-in one.
        return_logits: Whether the routing has logits and probabilities. Without, they are not written, and their
            memory is not needed where no gradient is; the statistics are those of the routing as returned, under the
            mask of the call. Not with ``noisy``, nor where tokens share a decision. May be set later.
        impl: ``"reference"`` and ``"torch"`` are plain PyTorch; ``"triton"`` fuses everything after the gate and the
            sums of :func:`~moekit.router_stats` into one kernel, on a GPU, with first-order gradients, for float32
            logits, up to 4096 experts and ``top_k`` up to 64; the product of the gate too where that is one plain
            linear layer of up to 256 experts and no noise is drawn. See :mod:`moekit_kernels.impl`.
        init_scale: Variance of the gate's weights times their fan-in.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Example:
        >>> router = TopKRouter(16, num_experts=4, top_k=2)
        >>> routing = router(torch.randn(10, 16))
        >>> routing.gates.sum(-1).allclose(torch.ones(10))
        True
    """

    selection_bias: Float[Tensor, "E"] | None
    _checked_settings = frozenset(
        {"top_k", "scoring", "_renormalize", "scaling_factor", "jitter", "return_logits", "impl"}
    )

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        scoring: Scoring = "softmax",
        renormalize: bool | None = None,
        scaling_factor: float = 1.0,
        jitter: float = 0.0,
        noisy: bool = False,
        num_groups: int | None = None,
        topk_groups: int | None = None,
        group_score: GroupScore = "top2_sum",
        selection_bias: bool = False,
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        gate: nn.Module | None = None,
        return_logits: bool = True,
        impl: Impl = "auto",
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.scoring: Scoring = scoring
        self._renormalize = renormalize
        self.scaling_factor = scaling_factor
        self.return_logits = return_logits
        self.impl: Impl = impl
        self.jitter = jitter
        self._noisy = noisy
        self.num_groups = num_groups
        self.topk_groups = topk_groups
        self.group_score: GroupScore = group_score
        self._check_settings()
        if noisy and (selection_bias or num_groups is not None):
            raise ValueError(
                "noisy=True does not go with selection_bias or num_groups: the smooth load that balances a noisy "
                "router would not be the probability of being selected."
            )
        self.gate = make_gate(
            gate,
            dim,
            num_experts,
            hidden_dim=gate_hidden_dim,
            bias=gate_bias,
            init_scale=0.0 if noisy and gate_hidden_dim is None else init_scale,
            device=device,
            dtype=dtype,
        )
        self.noise_gate = Gate(dim, num_experts, init_scale=0.0, device=device, dtype=dtype) if noisy else None
        bias = torch.zeros(num_experts, device=device, dtype=torch.float32) if selection_bias else None
        self.register_buffer("selection_bias", bias)
        self._make_read_only("num_experts", "num_groups", "topk_groups", "group_score", "input_ndim")

    @property
    def renormalize(self) -> bool:
        """Whether a token's gates sum to ``scaling_factor``."""
        return self.top_k > 1 if self._renormalize is None else self._renormalize

    @renormalize.setter
    def renormalize(self, value: bool | None) -> None:
        self._renormalize = value

    def reset_parameters(self) -> None:
        """Draws the gates' weights anew and sets the selection bias to zero."""
        for gate in (self.gate, self.noise_gate):
            if gate is not None:
                reset_parameters(gate)
        if self.selection_bias is not None:
            self.selection_bias.zero_()

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens; each decision depends on its own token only, so ``mask`` changes none.

        Args:
            x: Router input ``(T, D)``.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates and ids ``(T, K)``; logits and probabilities ``(T, E)`` unless ``return_logits=False``.

        Raises:
            ValueError: If ``x`` has the wrong width, dtype or device, the gate gives another number of
                logits, or ``impl="triton"`` cannot take them.
        """
        if self.training and self.jitter > 0:
            x = jittered(x, self.jitter)
        elif not (self.training and self._noisy):
            plain = self._plain_gate(x)
            if plain is not None:
                return self._routing(route_linear_by(self.route_options(), x, *plain, mask, *self._returned()), mask)
        logits = router_logits(self.gate, x, self.num_experts)
        if self.training and self.noise_gate is not None:
            return self._route_noisy(logits, x, self.noise_gate)
        return self._routing(route_by(self.route_options(), logits, mask, *self._returned()), mask)

    @torch.no_grad()
    def update_bias_(self, tokens_per_expert: Int[Tensor, "E"], rate: float = 1e-3) -> None:
        """Raises the selection bias of underloaded experts by ``rate`` and lowers that of overloaded ones.

        ``bias += rate * sign(mean(tokens_per_expert) - tokens_per_expert)``: loss-free balancing, Wang et
        al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1. Call it once per optimiser step with the
        counts of the whole batch (``stats.tokens_per_expert``, added over micro-batches and ranks).

        Args:
            tokens_per_expert: Slots routed to each expert, ``(E,)``.
            rate: Step, in units of the score.

        Raises:
            ValueError: If the router has no selection bias, or the counts are not a tensor ``(E,)``.
        """
        if self.selection_bias is None:
            raise ValueError("update_bias_ needs a router built with selection_bias=True.")
        check_counts(tokens_per_expert, self.num_experts)
        self.selection_bias = self.selection_bias.float()
        counts = tokens_per_expert.to(self.selection_bias)
        self.selection_bias.add_((counts.mean() - counts).sign(), alpha=rate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TopKRouter":
        """Keeps the selection bias in float32: half precision would swallow its small steps."""
        before = self.selection_bias
        super()._apply(fn, recurse)
        if before is not None and self.selection_bias is not None and self.selection_bias.dtype != before.dtype:
            self.selection_bias = before.to(self.selection_bias.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the selection bias in float32 where ``assign=True`` would load another dtype."""
        super()._load_from_state_dict(*args, **kwargs)
        if self.selection_bias is not None:
            self.selection_bias = self.selection_bias.float()

    def extra_repr(self) -> str:
        """Shows the settings."""
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, scoring={self.scoring!r}, "
            f"renormalize={self.renormalize}, scaling_factor={self.scaling_factor}, {self._groups()}"
            f"jitter={self.jitter}, "
            f"return_logits={self.return_logits}, impl={self.impl!r}"
        )

    def _groups(self) -> str:
        if self.num_groups is None:
            return ""
        return f"num_groups={self.num_groups}, topk_groups={self.topk_groups}, group_score={self.group_score!r}, "

    def _route_noisy(self, logits: Tensor, x: Tensor, noise_gate: nn.Module) -> Routing:
        """Decides by noisy logits; the routing keeps the clean ones, of which statistics are made."""
        logits, valid, _ = finite_logits(logits)
        raw_std = torch.where(valid.unsqueeze(-1), noise_gate(x).to(logits.dtype), 0)
        noise = add_noise(logits, raw_std)
        marked = torch.where(valid.unsqueeze(-1), noise.noisy, torch.nan)
        routed = route_by(self.route_options(), marked, mask=None, with_sums=False, with_logits=True, impl=self.impl)
        load_probs = smooth_load(logits, noise, self.top_k)
        return Routing(routed.gates, routed.ids, logits, routed.probs, routed.valid, load_probs)

    def _plain_gate(self, x: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Returns weight and bias of the gate where a kernel multiplies by them, else None; never calls the gate."""
        num_experts, top_k = self.num_experts, self.top_k
        if resolve_impl(self.impl, LIMITS, x.device, _LOGITS, num_experts=num_experts, top_k=top_k) != "triton":
            return None
        if num_experts > MAX_LINEAR_EXPERTS or x.dtype not in KERNEL_DTYPES:
            return None
        plain = plain_linear(self.gate, x, num_experts)
        return plain if plain is not None and plain[0].dtype in KERNEL_DTYPES else None

    def _returned(self) -> tuple[bool | None, bool, Impl]:
        """Returns whether sums and logits are asked for, and the implementation."""
        # A routing without logits and probabilities leaves no other way to the sums.
        return None if self.return_logits else True, self.return_logits, self.impl

    def _routing(self, routed: Routed, mask: Tensor | None) -> Routing:
        routing = Routing(routed.gates, routed.ids, routed.logits, routed.probs, routed.valid)
        if routed.sums is None or routed.counts is None:
            return routing
        return routing._replace(sums=FusedSums(routed.sums, routed.counts, mask, routing[:5]))

    def route_options(self) -> RouteOptions:
        """Returns how experts are chosen and weighted, for the operations of :mod:`moekit_kernels.routing`."""
        bias = self.selection_bias
        # Float32 already, unless a function (torch.func.functional_call) put another tensor in its place.
        return self._unbiased_options if bias is None else self._unbiased_options._replace(selection_bias=bias.float())

    def _check_settings(self) -> None:
        check_top_k(self.top_k, self.num_experts)
        check_choice("scoring", self.scoring, SCORINGS)
        check_sizes(self.impl, LIMITS, num_experts=self.num_experts, top_k=self.top_k)
        check_jitter(self.jitter)
        if self._noisy and not self.return_logits:
            raise ValueError(
                "return_logits=False does not go with noisy=True: the statistics of noisy routing are made of the "
                "logits without noise."
            )
        if self.top_k == 1 and (self._renormalize or self.scoring == "topk_softmax"):
            raise ValueError(
                "top_k=1 with renormalised gates makes every gate 1, so no gradient reaches the router: "
                'use scoring="softmax", "sigmoid" or "sqrt_softplus" with renormalize=False, '
                'or HardRouter(gradient="straight_through").'
            )
        if self.scoring == "topk_softmax" and self._renormalize is False:
            raise ValueError('scoring="topk_softmax" always renormalises: leave renormalize out, or use "softmax".')
        check_groups(self.num_experts, self.top_k, self.num_groups, self.topk_groups, self.group_score)
        self._unbiased_options = RouteOptions(
            self.top_k,
            self.scoring,
            self.renormalize,
            self.scaling_factor,
            num_groups=self.num_groups,
            topk_groups=self.topk_groups,
            group_score=self.group_score,
        )
