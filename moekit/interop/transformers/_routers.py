"""Routers of rules that some blocks of ``transformers`` have, beyond those of moekit's own."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from moekit.routers.sparse_mixer import SparseMixerRouter
from moekit.routers.top_k import TopKRouter
from moekit.routing import Routing


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


class EvaluationSparseMixerRouter(SparseMixerRouter):
    """The sparse mixer of a block that multiplies its tokens by noise in training, which a layer does not."""

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """See :meth:`moekit.routers.sparse_mixer.SparseMixerRouter.forward`.

        Raises:
            ValueError: In training.
        """
        if self.training:
            raise ValueError(
                "a block with input_jitter_noise above 0 is understood in evaluation only, as it multiplies the tokens "
                "of its experts by noise in training, got a router in training mode: call eval(), or convert a block "
                "with input_jitter_noise=0."
            )
        return super().forward(x, mask)
