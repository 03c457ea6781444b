"""Expert choice: every expert takes its best tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from moekit.capacity import Capacity
from moekit.checks import check_positive
from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.gate import Gate, router_logits
from moekit.routing import Routing
from moekit_kernels.routing.finite import finite_logits


class ExpertChoiceRouter(Router):
    """Lets every expert take the ``C = ceil(capacity_factor * T / E)`` tokens that score highest for it.

    ``T`` counts real tokens only, so padding changes nothing for them. Shapes are those without a mask: places that
    an expert leaves empty are False in ``kept``.

    Scores are ``softmax(logits)`` over experts, gates are the scores of the chosen tokens; load is
    balanced by construction, while a token may get any number of experts, also none. Zhou et al. 2022,
    https://arxiv.org/abs/2202.09368. A token's route depends on the other tokens of the call, later ones
    too: not for autoregressive decoding.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        capacity_factor: Experts per token on average; may be set later.
        gate_hidden_dim: Makes the gate a two-layer MLP of this hidden width.
        gate_bias: Whether the gate has biases.
        init_scale: Variance of the gate's weights times their fan-in.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> router = ExpertChoiceRouter(16, num_experts=4, capacity_factor=2.0)
        >>> router(torch.randn(10, 16)).token_ids.shape
        torch.Size([4, 5])
    """

    _checked_settings = frozenset({"capacity_factor"})

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        capacity_factor: float = 2.0,
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("num_experts", num_experts)
        self.num_experts = num_experts
        self.top_k = 0
        self.capacity_factor = capacity_factor
        self._check_settings()
        self.gate = Gate(
            dim,
            num_experts,
            hidden_dim=gate_hidden_dim,
            bias=gate_bias,
            init_scale=init_scale,
            device=device,
            dtype=dtype,
        )
        self._make_read_only("num_experts", "top_k", "input_ndim")

    def reset_parameters(self) -> None:
        """Draws the gate's weights anew."""
        reset_parameters(self.gate)

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens, of which those outside ``mask`` are never taken.

        Args:
            x: Router input ``(T, D)``.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates, ``token_ids`` and ``kept`` ``(E, C)``, logits and probabilities ``(T, E)``.

        Raises:
            ValueError: If ``x`` has the wrong width, dtype or device.
        """
        finite = finite_logits(router_logits(self.gate, x, self.num_experts))
        logits, valid = finite.logits, finite.valid
        eligible = valid if mask is None else valid & mask
        probs = F.softmax(logits, dim=-1)
        capacity = self._capacity(x.shape[0], self.num_experts)
        ranked = torch.where(eligible.unsqueeze(-1), probs.detach(), -1.0).T
        # Contiguous, because the compiler assumes other strides than indexing by a transposed tensor gives.
        token_ids = ranked.sort(dim=-1, descending=True, stable=True).indices[:, :capacity].contiguous()
        kept = eligible[token_ids]
        if mask is not None:
            # The number of places is that of T tokens, which is known on the host; the real tokens fill fewer.
            places = torch.arange(capacity, device=x.device)
            kept = kept & (places < self._capacity(mask.sum(), self.num_experts))
        gates = torch.where(kept, probs.T.gather(-1, token_ids), 0)
        expert_ids = torch.arange(self.num_experts, device=x.device).unsqueeze(-1).expand_as(token_ids)
        return Routing(gates, expert_ids, logits, finite.clear(probs), valid, token_ids=token_ids, kept=kept)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, capacity_factor={self.capacity_factor}"

    def _check_settings(self) -> None:
        if not 0 < self.capacity_factor <= self.num_experts:
            raise ValueError(
                f"capacity_factor must be in (0, num_experts={self.num_experts}], got {self.capacity_factor}."
            )
        self._capacity = Capacity(self.capacity_factor)
