"""Soft MoE: experts get mixtures of tokens, tokens get mixtures of the experts' outputs."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from moekit.checks import check_floating, check_mask, check_positive, check_same_device, check_width
from moekit.experts.base import Experts
from moekit.init import scaled_normal_
from moekit.layer import MoEOutput
from moekit.observers import RoutingEvent, notify, observed
from moekit.parts import ExpertsPart, experts_part
from moekit.plan import DispatchPlan
from moekit.routing import RouterStats, entropy
from moekit.settings import SettingsModule
from moekit_kernels.autocast import no_autocast


class SoftMoE(SettingsModule):
    """Soft MoE: fully differentiable, balanced by construction, nothing dropped.

    Each expert has ``P`` slots. A slot's input is a convex combination of all tokens of the sequence
    (softmax over tokens), a token's output one of all slots' outputs (softmax over slots):
    ``D = softmax_tokens(X Phi)``, ``Y = softmax_slots(X Phi) expert(D^T X)``. With ``normalize``, ``X`` and
    ``Phi`` are first scaled to unit length and ``Phi`` by a learned scalar (section 2.3). Puigcerver et al.
    2023, https://arxiv.org/abs/2308.00951, algorithms 1 and 2. Every output depends on every token: not for causal
    models.

    Tokens whose logits are not finite get NaN as output and do not affect the other tokens' outputs. Whatever stands
    in ``experts`` is called, so a wrapper may replace them.

    Args:
        dim: Width of the tokens, ``D``.
        experts: The experts, over feature vectors (``token_ndim`` 1).
        slots_per_expert: ``P``.
        normalize: Whether ``X`` and ``Phi`` are scaled to unit length.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If a number is below 1 or the experts do not take feature vectors.

    Example:
        >>> from moekit import FFNExperts
        >>> moe = SoftMoE(16, FFNExperts(16, 32, num_experts=4), slots_per_expert=2)
        >>> moe(torch.randn(3, 10, 16)).output.shape
        torch.Size([3, 10, 16])
    """

    _experts_part: ExpertsPart

    def __init__(
        self,
        dim: int,
        experts: Experts,
        *,
        slots_per_expert: int = 1,
        normalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("dim", dim)
        check_positive("slots_per_expert", slots_per_expert)
        self.dim = dim
        self.slots_per_expert = slots_per_expert
        self.normalize = normalize
        self.experts = experts
        num_experts = self._experts_part.num_experts
        self.phi = nn.Parameter(torch.empty(dim, num_experts, slots_per_expert, device=device, dtype=dtype))
        # Not a scalar, which FSDP cannot shard.
        self.scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if normalize else None
        self.reset_parameters()
        self._make_read_only("dim", "slots_per_expert", "normalize")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; of experts, reads what the layer needs to know."""
        if name == "experts":
            known = self.__dict__.get("_experts_part")
            part = experts_part(value, self._modules.get(name), known)
            if part.token_ndim != 1 or part.takes_pyramid:
                raise ValueError(f"experts must take feature vectors (token_ndim 1), got token_ndim {part.token_ndim}.")
            if known is not None and part.num_experts != known.num_experts:
                raise ValueError(
                    f"experts must be {known.num_experts}, as the slots were built for, got {part.num_experts}: "
                    "build another SoftMoE with them."
                )
            self._experts_part = part
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Draws the slots' parameters anew (variance ``1 / D``) and sets the scale to 1."""
        scaled_normal_(self.phi, self.dim, 1.0)
        if self.scale is not None:
            nn.init.ones_(self.scale)

    def forward(
        self, x: Float[Tensor, "*B S D"], *, mask: Bool[Tensor, "*B S"] | None = None, stats: bool = True
    ) -> MoEOutput:
        """Mixes, computes and mixes back.

        Args:
            x: Sequences of tokens; mixing is within a sequence.
            mask: True for real tokens. Others are left out and have zero output.
            stats: Whether to compute statistics; without them ``MoEOutput.stats`` is None.

        Returns:
            Output of the shape of ``x``. In the statistics, probabilities are a token's combine weights
            summed over an expert's slots, and ``tokens_per_expert`` counts slots.

        Raises:
            ValueError: If ``x`` has the wrong rank, width, dtype or device, or ``mask`` another shape.
        """
        check_floating("x", x)
        if x.ndim < 2:
            raise ValueError(f"x must have shape (..., S, D), got shape {tuple(x.shape)}.")
        check_width("x", x, self.dim)
        check_same_device("x", x, "the layer's parameters", self.phi)
        lead = x.shape[:-2]
        sequences = x.reshape(math.prod(lead), *x.shape[-2:])  # lead.numel() would fix the batch in torch.export
        if mask is None:
            real = torch.ones(sequences.shape[:2], dtype=torch.bool, device=x.device)
        else:
            check_mask("mask", mask, x.shape[:-1])
            check_same_device("mask", mask, "x", x)
            real = mask.reshape(sequences.shape[:2])
            # What padding holds, NaN included, would reach the gradient of phi as 0 * NaN.
            sequences = torch.where(real.unsqueeze(-1), sequences, 0)
        logits = self._logits(sequences)
        finite = logits.isfinite().all(-1).all(-1)
        part = real & finite
        sequences = torch.where(part.unsqueeze(-1), sequences, 0)
        logits = torch.where(part[..., None, None], logits, 0)
        weights = F.softmax(logits.masked_fill(~part[..., None, None], torch.finfo(logits.dtype).min), dim=1)
        weights = torch.where(part[..., None, None], weights, 0)
        combine_weights = F.softmax(logits.flatten(-2), dim=-1).view_as(logits)
        slots = torch.einsum("bsep,bsd->ebpd", weights.to(x.dtype), sequences)
        outputs = self._run(slots)
        out = torch.einsum("bsep,ebpd->bsd", combine_weights.to(outputs.dtype), outputs)
        out = torch.where(part.unsqueeze(-1), out, torch.where(real, torch.nan, 0.0).unsqueeze(-1).to(out.dtype))
        out = out.reshape(*x.shape[:-1], out.shape[-1])
        if observed():
            self._notify(combine_weights, part, real)
        return MoEOutput(out, self._stats(combine_weights, logits, part, real) if stats else None)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"dim={self.dim}, slots_per_expert={self.slots_per_expert}, normalize={self.normalize}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Loads states in which the scale is a scalar too."""
        scale = state_dict.get(f"{prefix}scale")
        if scale is not None and scale.ndim == 0:
            state_dict[f"{prefix}scale"] = scale.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _logits(self, x: Tensor) -> Tensor:
        """Computes ``(B, S, D) -> (B, S, E, P)`` in float32 or wider."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.phi.dtype), torch.float32)
        with no_autocast(x.device.type):
            x, phi = x.to(dtype), self.phi.to(dtype)
            if self.scale is not None:
                x = F.normalize(x, dim=-1)
                phi = F.normalize(phi, dim=0) * self.scale.to(dtype)
            return torch.einsum("bsd,dep->bsep", x, phi)

    def _run(self, slots: Tensor) -> Tensor:
        """Computes ``(E, B, P, D) -> (E, B, P, D2)``: the slots are rows sorted by expert already."""
        rows = slots.flatten(0, 2)
        count = rows.shape[0]
        index = torch.arange(count, device=rows.device)
        per_expert = torch.full((slots.shape[0],), count // slots.shape[0], device=rows.device)
        offsets = torch.arange(slots.shape[0] + 1, device=rows.device) * (count // slots.shape[0])
        plan = DispatchPlan(index, index, offsets, index.unsqueeze(-1), per_expert, torch.zeros_like(per_expert), count)
        gates = torch.ones(count, 1, dtype=rows.dtype, device=rows.device)
        return self.experts(rows, plan, gates).unflatten(0, slots.shape[:3])

    def _notify(self, weights: Tensor, part: Tensor, real: Tensor) -> None:
        """Reports the combine weights to the observers; there are no decisions."""
        num_experts = weights.shape[-2]
        slots = torch.full((num_experts,), part.shape[0] * self.slots_per_expert, device=part.device)
        probs = torch.where(part.unsqueeze(-1), weights.sum(-1), 0).reshape(-1, num_experts)
        valid = part | ~real
        notify(
            RoutingEvent(
                self,
                num_experts,
                probs=probs,
                valid=valid.reshape(-1),
                mask=real.reshape(-1),
                tokens_per_expert=slots,
            )
        )

    def _stats(self, weights: Tensor, logits: Tensor, part: Tensor, real: Tensor) -> RouterStats:
        probs = torch.where(part.unsqueeze(-1), weights.sum(-1), 0)
        prob_sum = probs.sum((0, 1))
        slots = torch.full_like(prob_sum, part.shape[0] * self.slots_per_expert, dtype=torch.int64)
        logsumexp_sq = torch.where(part, logits.flatten(-2).logsumexp(-1).square(), 0)
        return RouterStats(
            tokens_per_expert=slots,
            dropped_per_expert=torch.zeros_like(slots),
            prob_sum=prob_sum,
            gate_sum=prob_sum,
            load=slots.to(prob_sum.dtype),
            logsumexp_sq_sum=logsumexp_sq.sum(),
            entropy_sum=entropy(probs).sum(),
            num_tokens=part.sum(),
            nonfinite_tokens=(real & ~part).sum(),
        )
