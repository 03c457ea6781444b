"""Token choice: every token takes its ``top_k`` best experts."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moekit.checks import check_choice, check_rank, check_top_k
from moekit.routers.base import Router, finite_logits, mark_invalid
from moekit.routers.gate import Gate
from moekit.routers.noise import NoisyLogits, add_noise, smooth_load
from moekit.routers.selection import limit_to_groups, top_k_ids
from moekit.routing import Routing

Scoring = Literal["softmax", "topk_softmax", "sigmoid"]
SCORINGS = ("softmax", "topk_softmax", "sigmoid")


class TopKRouter(Router):
    """Sends every token to the ``top_k`` experts of largest score; ties go to the lowest id.

    | scoring | score of expert e | gate of a chosen expert | used by |
    |---|---|---|---|
    | ``"softmax"`` | ``softmax(logits)_e`` | its score | Switch, Mixtral, Qwen-MoE, DeepSeek-V2 |
    | ``"topk_softmax"`` | ``logits_e`` | softmax over the chosen logits | Shazeer 2017, GPT-OSS |
    | ``"sigmoid"`` | ``sigmoid(logits_e)`` | its score | DeepSeek-V3, Llama 4 |

    With ``renormalize`` the gates of a token are divided by their sum, then multiplied by
    ``scaling_factor``. Selection has no gradient, gates have. Everything is computed in float32 or wider.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        top_k: ``K``.
        scoring: See the table.
        renormalize: Whether a token's gates sum to ``scaling_factor``. By default True for ``top_k > 1``
            and False for ``top_k = 1``, where it would make the only gate constant and the router deaf.
        scaling_factor: Multiplies the gates.
        jitter: In training, multiplies the router input by uniform noise from ``[1 - jitter, 1 + jitter]``
            (Switch Transformers, section 2.2).
        noisy: In training, adds trainable normal noise to the logits (Shazeer 2017, equation 4);
            weights of noise and (linear) gate then start at zero, as there. Not with ``num_groups`` or
            ``selection_bias``.
        num_groups: Splits the experts into equal groups of neighbours (DeepSeek-V3).
        topk_groups: Chooses within the best ``topk_groups`` groups only.
        selection_bias: Keeps a buffer that is added to the scores for selection but not to the gates,
            for balancing without an auxiliary loss; see :meth:`update_bias_`.
        gate_hidden_dim: Makes the gate a two-layer MLP of this hidden width.
        gate_bias: Whether the gate has biases.
        gate: Any module ``(T, ...) -> (T, E)`` in place of the built-in one.
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
        selection_bias: bool = False,
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        gate: nn.Module | None = None,
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        check_choice("scoring", scoring, SCORINGS)
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be in [0, 1), got {jitter}.")
        if top_k == 1 and (renormalize or scoring == "topk_softmax"):
            raise ValueError(
                "top_k=1 with renormalised gates makes every gate 1, so no gradient reaches the router: "
                'use scoring="softmax" or "sigmoid" with renormalize=False, '
                'or HardRouter(gradient="straight_through").'
            )
        if scoring == "topk_softmax" and renormalize is False:
            raise ValueError('scoring="topk_softmax" always renormalises: leave renormalize out, or use "softmax".')
        if noisy and (selection_bias or num_groups is not None):
            raise ValueError(
                "noisy=True does not go with selection_bias or num_groups: the smooth load that balances a noisy "
                "router would not be the probability of being selected."
            )
        _check_groups(num_experts, top_k, num_groups, topk_groups)
        self.num_experts = num_experts
        self.top_k = top_k
        self.scoring: Scoring = scoring
        self.renormalize = top_k > 1 if renormalize is None else renormalize
        self.scaling_factor = scaling_factor
        self.jitter = jitter
        self.num_groups = num_groups
        self.topk_groups = topk_groups
        self.init_scale = 0.0 if noisy else init_scale
        if gate is None:
            gate = Gate(
                dim,
                num_experts,
                hidden_dim=gate_hidden_dim,
                bias=gate_bias,
                init_scale=self.init_scale if gate_hidden_dim is None else init_scale,
                device=device,
                dtype=dtype,
            )
        elif gate_hidden_dim is not None or gate_bias:
            raise ValueError("gate_hidden_dim and gate_bias describe the built-in gate; give them or gate, not both.")
        self.gate = gate
        self.noise_gate = Gate(dim, num_experts, init_scale=0.0, device=device, dtype=dtype) if noisy else None
        bias = torch.zeros(num_experts, device=device, dtype=torch.float32) if selection_bias else None
        self.register_buffer("selection_bias", bias)

    def reset_parameters(self) -> None:
        """Draws the gates' weights anew and sets the selection bias to zero."""
        for gate in (self.gate, self.noise_gate):
            if isinstance(gate, Gate):
                gate.reset_parameters()
        if self.selection_bias is not None:
            self.selection_bias.zero_()

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens; each decision depends on its own token only, so ``mask`` changes nothing.

        Raises:
            ValueError: If ``x`` has the wrong width, dtype or device, or the gate gives another number
                of logits.
        """
        if self.training and self.jitter > 0:
            # In bfloat16 the bounds would be rounded and the noise would not average to 1.
            jitter = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
            x = (x * jitter.uniform_(1 - self.jitter, 1 + self.jitter)).to(x.dtype)
        logits, valid = self._logits(x)
        clean, noise, load_probs = logits, None, None
        if self.training and self.noise_gate is not None:
            noise = self._noise(logits, x, valid)
            logits = noise.noisy
        scores = self._scores(logits)
        ids = self._select(logits if self.scoring == "topk_softmax" else scores)
        if noise is not None:
            load_probs = smooth_load(clean, noise, self.top_k)
        gates = mark_invalid(self._gates(logits, scores, ids), valid)
        probs = _normalised_sigmoid(logits) if self.scoring == "sigmoid" else scores
        return Routing(gates, ids, clean, torch.where(valid.unsqueeze(-1), probs, 0), valid, load_probs)

    @torch.no_grad()
    def update_bias_(self, tokens_per_expert: Int[Tensor, "E"], rate: float = 1e-3) -> None:
        """Raises the selection bias of underloaded experts by ``rate`` and lowers that of overloaded ones.

        ``bias += rate * sign(mean(tokens_per_expert) - tokens_per_expert)``: loss-free balancing, Wang et
        al. 2024, https://arxiv.org/abs/2408.15664, algorithm 1. Call it once per optimiser step with the
        counts of the whole batch (``stats.tokens_per_expert``, added over micro-batches and ranks).

        Args:
            tokens_per_expert: Slots routed to each expert.
            rate: Step, in units of the score.

        Raises:
            ValueError: If the router has no selection bias, or the shape is not ``(E,)``.
        """
        if self.selection_bias is None:
            raise ValueError("update_bias_ needs a router built with selection_bias=True.")
        if tokens_per_expert.shape != (self.num_experts,):
            raise ValueError(
                f"tokens_per_expert must have shape ({self.num_experts},), got {tuple(tokens_per_expert.shape)}."
            )
        counts = tokens_per_expert.to(self.selection_bias)
        self.selection_bias.add_((counts.mean() - counts).sign(), alpha=rate)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TopKRouter":
        """Keeps the selection bias in float32: half precision would swallow its small steps."""
        before = self.selection_bias
        super()._apply(fn, recurse)
        if before is not None and self.selection_bias is not None and self.selection_bias.dtype != before.dtype:
            self.selection_bias = before.to(self.selection_bias.device)
        return self

    def extra_repr(self) -> str:
        """Names the settings."""
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, scoring={self.scoring!r}, "
            f"renormalize={self.renormalize}, scaling_factor={self.scaling_factor}, jitter={self.jitter}"
        )

    def _logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.gate(x)
        check_rank("router logits", logits, 2, "T, E")
        if logits.shape[-1] != self.num_experts:
            raise ValueError(f"gate must give num_experts={self.num_experts} logits, got shape {tuple(logits.shape)}.")
        return finite_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def _noise(self, logits: Tensor, x: Tensor, valid: Tensor) -> NoisyLogits:
        assert self.noise_gate is not None
        raw_std = torch.where(valid.unsqueeze(-1), self.noise_gate(x).to(logits.dtype), 0)
        return add_noise(logits, raw_std)

    def _scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.scoring == "sigmoid" else F.softmax(logits, dim=-1)

    def _select(self, scores: Tensor) -> Tensor:
        scores = scores.detach()
        if self.selection_bias is not None:
            scores = scores + self.selection_bias
        if self.num_groups is not None and self.topk_groups is not None:
            scores = limit_to_groups(scores, self.num_groups, self.topk_groups)
        return top_k_ids(scores, self.top_k)

    def _gates(self, logits: Tensor, scores: Tensor, ids: Tensor) -> Tensor:
        chosen = logits.gather(-1, ids)
        if self.scoring == "sigmoid" and self.renormalize:
            gates = _normalised_sigmoid(chosen)
        elif self.scoring == "topk_softmax" or self.renormalize:
            gates = F.softmax(chosen, dim=-1)  # also the softmax over all, renormalised, but never 0/0
        else:
            gates = scores.gather(-1, ids)
        return gates if self.scaling_factor == 1.0 else gates * self.scaling_factor


def _normalised_sigmoid(logits: Tensor) -> Tensor:
    """``sigmoid(logits)`` over its sum, without the 0/0 of logits so low that every sigmoid is zero."""
    return F.softmax(F.logsigmoid(logits), dim=-1)


def _check_groups(num_experts: int, top_k: int, num_groups: int | None, topk_groups: int | None) -> None:
    if num_groups is None and topk_groups is None:
        return
    if num_groups is None or topk_groups is None:
        raise ValueError(f"num_groups and topk_groups go together, got {num_groups} and {topk_groups}.")
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(f"num_groups must divide num_experts={num_experts}, got {num_groups}.")
    if not 1 <= topk_groups <= num_groups:
        raise ValueError(f"topk_groups must be between 1 and num_groups={num_groups}, got {topk_groups}.")
    if topk_groups * (num_experts // num_groups) < top_k:
        raise ValueError(
            f"topk_groups={topk_groups} groups of {num_experts // num_groups} experts hold fewer than top_k={top_k}."
        )
