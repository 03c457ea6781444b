"""Routers of rules that some blocks of ``transformers`` have, beyond those of moekit's own."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from moekit.checks import check_top_k
from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.gate import Gate, router_logits
from moekit.routers.top_k import TopKRouter
from moekit.routing import Routing
from moekit_kernels.routing.checks import check_groups
from moekit_kernels.routing.finite import finite_logits
from moekit_kernels.routing.selection import top_k_ids


class NormalizedTopKRouter(TopKRouter):
    """Divides the gates of a token by ``epsilon`` more than their sum, as LFM2-MoE does; also a single gate.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        top_k: ``K``.
        epsilon: See above.
        scaling_factor: Multiplies the gates after that.
        options: Others of :class:`~moekit.routers.top_k.TopKRouter`.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        epsilon: float,
        scaling_factor: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, renormalize=False, **options)
        self.epsilon = epsilon
        self.scaling_after = scaling_factor

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """See :meth:`moekit.routers.top_k.TopKRouter.forward`."""
        routing = super().forward(x, mask)
        gates = routing.gates / (routing.gates.sum(-1, keepdim=True) + self.epsilon)
        return routing._replace(gates=gates * self.scaling_after, sums=None)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"{super().extra_repr()}, epsilon={self.epsilon}, scaling_after={self.scaling_after}"


class _LogitsRouter(Router):
    """A router whose rule is written in plain PyTorch, on logits in float32 or wider."""

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        self.num_experts = num_experts
        self.top_k = top_k
        self.gate: nn.Module = Gate(dim, num_experts, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws the gate's weights anew."""
        reset_parameters(self.gate)

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens; each decision depends on its own token only, so ``mask`` changes nothing."""
        finite = finite_logits(router_logits(self.gate, x, self.num_experts))
        gates, ids = self._decide(finite.logits)
        probs = finite.clear(F.softmax(finite.logits, dim=-1))
        return Routing(finite.mark(gates), ids, finite.logits, probs, finite.valid)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}"

    @abstractmethod
    def _decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns gates and ids ``(T, K)``."""


class GroupMaxRouter(_LogitsRouter):
    """Chooses within the groups of experts whose best one is best, by softmax: DeepSeek-V2's device-limited routing.

    Section 2.2.2 of https://arxiv.org/abs/2405.04434. Gates are not renormalised.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        top_k: ``K``.
        num_groups: Splits the experts into equal groups of neighbours.
        topk_groups: Number of groups that are chosen.
        scaling_factor: Multiplies the gates.
        place: Device and dtype of the parameters.

    Raises:
        ValueError: If the groups chosen hold fewer than ``top_k`` experts, or the groups are not equal.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        num_groups: int,
        topk_groups: int,
        scaling_factor: float = 1.0,
        **place: Any,
    ) -> None:
        super().__init__(dim, num_experts, top_k, **place)
        check_groups(num_experts, top_k, num_groups, topk_groups)
        self.num_groups = num_groups
        self.topk_groups = topk_groups
        self.scaling_factor = scaling_factor

    def extra_repr(self) -> str:
        """Shows the settings."""
        return (
            f"{super().extra_repr()}, num_groups={self.num_groups}, topk_groups={self.topk_groups}, "
            f"scaling_factor={self.scaling_factor}"
        )

    def _decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        best = logits.detach().reshape(logits.shape[0], self.num_groups, -1).amax(-1)
        chosen = torch.zeros_like(best, dtype=torch.bool).scatter(-1, top_k_ids(best, self.topk_groups), True)
        allowed = chosen.repeat_interleave(self.num_experts // self.num_groups, dim=-1)
        ids = top_k_ids(logits.detach().masked_fill(~allowed, -torch.inf), self.top_k)
        return logits.softmax(-1).gather(-1, ids) * self.scaling_factor, ids


class SparseMixerRouter(_LogitsRouter):
    """Chooses two experts, each weighted among those nearly as good: PhiMoE's sparse mixer, in evaluation.

    The gate of the best expert is its softmax over the experts whose logit is less than ``2 * epsilon`` below the best,
    relative to the larger of the best logit and their own magnitude; that of the second is the same without the best.
    See https://arxiv.org/abs/2409.12136. In training, the sparse mixer samples experts and estimates gradients by its
    own rule: that is refused.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        epsilon: See above.
        place: Device and dtype of the parameters.
    """

    def __init__(self, dim: int, num_experts: int, *, epsilon: float, **place: Any) -> None:
        super().__init__(dim, num_experts, 2, **place)
        self.epsilon = epsilon

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"{super().extra_repr()}, epsilon={self.epsilon}"

    def _decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            raise ValueError(
                "the sparse mixer of PhiMoE is understood in evaluation only, got a router in training mode: call "
                "eval(), or take another router for training."
            )
        first_gate, first = self._best(logits, logits)
        second_gate, second = self._best(logits, logits.scatter(-1, first, -torch.inf))
        return torch.cat([first_gate, second_gate], -1), torch.cat([first, second], -1)

    def _best(self, logits: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Returns gate and id of the best expert that is left."""
        with torch.no_grad():
            best, expert = left.max(-1, keepdim=True)
            far = (best - logits) / logits.abs().clamp(min=best) > 2 * self.epsilon
        return left.masked_fill(far, -torch.inf).softmax(-1).gather(-1, expert), expert
