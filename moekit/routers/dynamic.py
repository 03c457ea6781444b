"""Token choice with a number of experts of each token's own: as many as reach a probability mass."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.top_k import TopKRouter
from moekit.routing import FusedSums, Routing
from moekit_kernels.impl import Impl
from moekit_kernels.mass import limit_to_mass


class DynamicTopKRouter(Router):
    """Sends every token to as many experts as reach a probability mass together, at most to ``top_k``.

    Experts are ranked by ``softmax(logits)``; a token takes the next one as long as those that it has add up to less
    than ``mass``: few where the router is certain, many where it is not. Slots that a token does not use are False in
    ``routing.kept`` and have a gate of zero. The plan leaves them out, so experts compute nothing for them.

    The gates are the probabilities, which sum to at least ``mass`` (or are the ``top_k`` largest); with ``renormalize``
    they sum to 1. The gate of a token with one expert is then constant, and its router learns from losses alone.

    Nothing but the losses keeps a router from using many experts: add both terms of
    :func:`~moekit.dynamic_routing_losses`.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        top_k: Most experts of a token, ``K``. The layer's capacity counts with it.
        mass: Probability that the chosen experts reach together, in (0, 1]; 1 means all ``top_k``. May be set later.
        renormalize: Whether the gates of a token are divided by their sum. May be set later.
        jitter: As in :class:`~moekit.TopKRouter`. May be set later.
        gate_hidden_dim: Makes the gate a two-layer MLP of this hidden width.
        gate_bias: Whether the gate has biases.
        gate: Any module ``(T, ...) -> (T, E)`` in place of the built-in one.
        impl: As in :class:`~moekit.TopKRouter`, whose kernel ranks the experts; ``"triton"`` limits them to the mass in
            one more. May be set later.
        init_scale: Variance of the gate's weights times their fan-in.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Huang et al. 2024, Harder Tasks Need More Experts, https://arxiv.org/abs/2403.07652, section 3. Here a token
        takes at most ``top_k`` experts; with ``top_k=num_experts`` as there.

    Example:
        >>> router = DynamicTopKRouter(16, num_experts=4, top_k=3, mass=0.5)
        >>> kept = router(torch.randn(10, 16)).kept
        >>> bool((kept.sum(-1) >= 1).all() and (kept.sum(-1) <= 3).all())
        True
    """

    _checked_settings = frozenset({"mass", "renormalize", "jitter", "impl"})

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        *,
        mass: float = 0.4,
        renormalize: bool = False,
        jitter: float = 0.0,
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        gate: nn.Module | None = None,
        impl: Impl = "auto",
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.mass = mass
        self.renormalize = renormalize
        self.jitter = jitter
        self.impl: Impl = impl
        self.ranking = TopKRouter(
            dim,
            num_experts,
            top_k,
            renormalize=False,
            jitter=jitter,
            gate_hidden_dim=gate_hidden_dim,
            gate_bias=gate_bias,
            gate=gate,
            impl=impl,
            init_scale=init_scale,
            device=device,
            dtype=dtype,
        )
        self._check_settings()
        self._make_read_only("num_experts", "top_k", "input_ndim")

    @property
    def gate(self) -> nn.Module:
        """The gate, from router input to logits."""
        return self.ranking.gate

    def reset_parameters(self) -> None:
        """Draws the gate's weights anew."""
        reset_parameters(self.ranking)

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens; each decision depends on its own token only, so ``mask`` changes none.

        Args:
            x: Router input ``(T, D)``.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates, ids and ``kept`` ``(T, K)``, best expert first, logits and probabilities ``(T, E)``.

        Raises:
            ValueError: If ``x`` has the wrong width, dtype or device, the gate gives another number of logits, or
                ``impl="triton"`` cannot take them.
        """
        ranked: Routing = self.ranking(x, mask)
        limited = limit_to_mass(ranked.gates, self.mass, renormalize=self.renormalize, impl=self.impl)
        routing = ranked._replace(gates=limited.gates, kept=limited.kept, sums=None)
        return routing if ranked.sums is None else routing._replace(sums=_sums(ranked.sums, routing, mask))

    def extra_repr(self) -> str:
        """Shows the settings."""
        return (
            f"num_experts={self.num_experts}, top_k={self.top_k}, mass={self.mass}, renormalize={self.renormalize}, "
            f"jitter={self.jitter}, impl={self.impl!r}"
        )

    def _check_settings(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass must lie in (0, 1], got {self.mass}.")
        self.ranking.jitter = self.jitter
        self.ranking.impl = self.impl


def _sums(ranked: FusedSums, routing: Routing, mask: Tensor | None) -> FusedSums:
    """Returns the sums of a routing from those of all its ranked slots: what depends on the slots is made anew."""
    assert routing.kept is not None
    counted = routing.valid if mask is None else routing.valid & mask
    kept = routing.kept & counted.unsqueeze(-1)
    prob_sum, ids = ranked.sums.prob_sum, routing.expert_ids.flatten()
    nothing = torch.zeros_like(prob_sum)
    gates = torch.where(kept, routing.gates, 0).to(prob_sum.dtype)
    slots = nothing.index_add(0, ids, kept.flatten().to(prob_sum.dtype))
    sums = ranked.sums._replace(gate_sum=nothing.index_add(0, ids, gates.flatten()))
    counts = ranked.counts._replace(tokens_per_expert=slots.long(), load=slots)
    return FusedSums(sums, counts, mask, routing[:5])
