"""Convolutional experts over feature pyramids, routed per sample.

Shape letters: B samples, L scales, K experts here, D width of the output, H and W its size.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_choice, check_positive
from moekit.experts.base import Experts, check_plan
from moekit.experts.cross_scale_expert import CrossScaleExpert, Norm
from moekit.experts.cross_scale_fixed import fixed_outputs, fixed_weights, take_samples
from moekit.fusion.checks import check_maps
from moekit.fusion.cross_scale import LogitsAt
from moekit.plan import DispatchPlan, combine

Impl = Literal["auto", "loop", "fixed"]
IMPLS = ("auto", "loop", "fixed")


class CrossScaleExperts(Experts):
    """``K`` experts over feature pyramids, of which a sample meets only the ones it was sent to.

    ``out[b] = sum over the slots s of sample b of gates[s] * expert_of_s(maps[b])``. After a
    :class:`~moekit.HardRouter` that is one expert, at the cost of one, whatever ``K`` is. The output of a sample
    that was sent nowhere (masked, non-finite) is zero, NaN where its gate is.

    Two implementations give the same numbers, running statistics included:

    - ``"loop"`` reads the plan's offsets on the host once, and gives every expert that has samples these together.
      An expert without samples is not touched: its parameters have no gradient (``None``, so optimisers skip
      them), its running statistics stay. With DDP set ``find_unused_parameters=True``.
    - ``"fixed"`` has static shapes: every row gets its expert's weights (a copy each) and all rows run in one
      grouped convolution, still one expert per row. Statistics of batch normalisation are sums by expert.
      Parameters of experts without samples have zero gradients, by which an optimiser may still move them (by
      momentum, weight decay). Hooks on submodules of the experts do not run.

    ``"auto"`` takes ``"fixed"`` under ``torch.compile`` and ``torch.export`` (dynamic batch sizes too) and on the
    meta device, where nothing can be read, ``"loop"`` otherwise.

    Batch normalisation sees the samples of its own expert only; few of them make its statistics noisy, with one
    and ``"batch"`` see :class:`CrossScaleExpert`. It is a thing of each rank: do not convert it to
    ``SyncBatchNorm``, since the ranks do not all run the same experts.

    Args:
        channels: Channels of the maps.
        dim: Width of the output, ``D``.
        num_experts: ``K``.
        depth: See :class:`CrossScaleExpert`; so are the following.
        norm: ``"batch"`` or ``"group"``.
        groups: Groups of ``"group"``.
        align_to: Index of the map whose size the output has.
        logits_at: Where the scales are scored.
        hidden_dim: Hidden width of the heads that score.
        kernel_size: Of the convolutions.
        impl: See above.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        MedMoE, section 4.3. The public release runs all experts for every sample; :meth:`run_all` does so.

    Example:
        >>> experts = CrossScaleExperts((8, 16), 12, num_experts=3)
        >>> moe = SparseMoE(HardRouter(5, 3), experts)
        >>> maps = [torch.randn(4, 8, 8, 8), torch.randn(4, 16, 4, 4)]
        >>> moe(maps, router_input=torch.randn(4, 5)).output.shape
        torch.Size([4, 12, 4, 4])
    """

    token_ndim = 3
    takes_pyramid = True

    def __init__(
        self,
        channels: Sequence[int],
        dim: int,
        num_experts: int,
        *,
        depth: int = 3,
        norm: Norm = "batch",
        groups: int | None = None,
        align_to: int = 1,
        logits_at: LogitsAt = "own",
        hidden_dim: int | None = None,
        kernel_size: int = 3,
        impl: Impl = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("num_experts", num_experts)
        check_choice("impl", impl, IMPLS)
        self.channels = tuple(channels)
        self.dim = dim
        self.num_experts = num_experts
        self.align_to = align_to
        self.impl: Impl = impl
        self.experts = nn.ModuleList(
            CrossScaleExpert(
                channels,
                dim,
                depth=depth,
                norm=norm,
                groups=groups,
                align_to=align_to,
                logits_at=logits_at,
                hidden_dim=hidden_dim,
                kernel_size=kernel_size,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_experts)
        )

    def reset_parameters(self) -> None:
        """Draws the weights of all experts anew."""
        for expert in self._all():
            expert.reset_parameters()

    def forward(
        self, maps: Sequence[Float[Tensor, "..."]], plan: DispatchPlan, gates: Float[Tensor, "A B"]
    ) -> Float[Tensor, "B D H W"]:
        """Computes the gate-weighted sum of every sample's experts.

        Args:
            maps: One map for each scale, ``(B, C_l, H_l, W_l)``.
            plan: Which samples go to which expert.
            gates: Weights, whose flat index is the slot.

        Returns:
            Maps ``(B, D, H, W)`` of the size of ``maps[align_to]``.

        Raises:
            ValueError: If ``maps``, ``plan`` and ``gates`` do not fit each other or the weights.
        """
        self._check_maps(maps)
        check_plan(maps[0], plan, gates, self.num_experts)
        if self._fixed(plan):
            rows = fixed_outputs(self._all(), maps, plan)
        else:
            rows = self._loop(maps, plan, self.dim, lambda expert, samples: expert(samples))
        if rows.is_contiguous():
            return combine(rows, plan, gates)
        return combine(rows.movedim(1, -1), plan, gates).movedim(-1, 1)  # channels last stays so

    def scale_weights(self, maps: Sequence[Float[Tensor, "..."]], plan: DispatchPlan) -> Float[Tensor, "B L H W"]:
        """Gives the weights of the scales in the expert of each sample; zeros for a sample without one.

        Args:
            maps: As in :meth:`forward`.
            plan: A plan of one slot per sample.

        Raises:
            ValueError: If ``maps`` and ``plan`` do not fit each other or the weights, or ``plan`` has several slots
                per sample.
        """
        self._check_maps(maps)
        if plan.row is None or plan.row.shape[1] != 1:
            raise ValueError(
                "plan must have one slot per sample for scale_weights, "
                f"got {plan.slot.shape[0]} slots for {plan.num_tokens} samples."
            )
        check_plan(maps[0], plan, plan.row, self.num_experts)
        if self._fixed(plan):
            rows = fixed_weights(self._all(), maps, plan)
        else:

            def weights(expert: CrossScaleExpert, samples: list[Tensor]) -> Tensor:
                return expert.attention(samples, need_weights=True).weights

            rows = self._loop(maps, plan, len(self.channels), weights)
        return rows.index_select(0, plan.row.flatten())

    def run_all(self, maps: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B K D H W"]:
        """Runs every expert on every sample, ``K`` times the work: what the public release does, to compare with.

        In training batch normalisation sees (and keeps statistics of) all samples in every expert.

        Raises:
            ValueError: If the maps do not fit.
        """
        self._check_maps(maps)
        return torch.stack([expert(maps) for expert in self._all()], dim=1)

    def extra_repr(self) -> str:
        """Names the settings that the experts do not show."""
        return f"num_experts={self.num_experts}, impl={self.impl!r}"

    def _all(self) -> list[CrossScaleExpert]:
        return [expert for expert in self.experts if isinstance(expert, CrossScaleExpert)]

    def _check_maps(self, maps: Sequence[Tensor]) -> None:
        check_maps(maps, self.channels, self._all()[0].attention.projection(0).weight)

    def _fixed(self, plan: DispatchPlan) -> bool:
        if self.impl == "auto":
            return torch.compiler.is_compiling() or plan.offsets.is_meta
        return self.impl == "fixed"

    def _loop(
        self,
        maps: Sequence[Tensor],
        plan: DispatchPlan,
        width: int,
        run: Callable[[CrossScaleExpert, list[Tensor]], Tensor],
    ) -> Tensor:
        """``run`` for each expert that has samples, on these: one row ``(width, H, W)`` per row of the plan."""
        bounds = cast(list[int], plan.offsets.tolist())
        counts = [end - start for start, end in pairwise(bounds)]
        # split, not slices: the gradient of a slice is a whole tensor of zeros around it, for every expert and map.
        token = plan.token[: bounds[-1]]
        grouped = [cast(tuple[Tensor, ...], take_samples(x, token).split(counts)) for x in maps]
        parts = [
            run(expert, [x[number] for x in grouped])
            for number, (expert, count) in enumerate(zip(self._all(), counts, strict=True))
            if count
        ]
        nowhere = plan.token.shape[0] - bounds[-1]
        if nowhere or not parts:
            like = parts[0] if parts else maps[0]
            parts.append(like.new_zeros(nowhere, width, *maps[self.align_to].shape[-2:]))
        return torch.cat(parts)
