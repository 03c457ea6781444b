"""Convolutional experts over feature pyramids, routed per sample.

Shape letters: B samples, L scales, K experts here, D width of the output, H and W its size.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moekit.checks import check_choice, check_positive
from moekit.experts.base import Experts, check_plan
from moekit.experts.cross_scale_expert import CrossScaleExpert, Norm
from moekit.experts.cross_scale_fixed import fixed_outputs, fixed_weights, readable, take_samples
from moekit.fusion.checks import check_maps
from moekit.fusion.cross_scale import LogitsAt
from moekit.init import reset_parameters
from moekit.plan import DispatchPlan, combine
from moekit_kernels.transforms import is_traced

Batching = Literal["auto", "loop", "fixed"]
BATCHINGS = ("auto", "loop", "fixed")


class CrossScaleExperts(Experts):
    """``K`` experts over feature pyramids, of which each sample is computed by the chosen ones only.

    ``out[b] = sum over the slots s of sample b of gates[s] * expert_of_s(maps[b])``. After a
    :class:`~moekit.HardRouter` that is one expert, at the cost of one, whatever ``K`` is. The output of a sample
    without an expert (masked, non-finite) is zero, NaN where its gate is.

    Two ways of batching give the same numbers, running statistics included:

    - ``"loop"`` reads the plan's offsets on the host once, and gives every expert that has samples these together.
      An expert without samples does not run: its parameters have no gradient (``None``, so optimisers skip
      them), its running statistics stay. With DDP set ``find_unused_parameters=True``. Whatever stands in ``experts``
      is called, so a wrapper may replace an expert or a layer of one.
    - ``"fixed"`` has static shapes: every row gets its expert's weights (a copy each) and all rows run in one
      grouped convolution, still one expert per row. Statistics of batch normalisation are sums by expert.
      Parameters of experts without samples have zero gradients, by which an optimiser may still move them (by
      momentum, weight decay). Weights are read, not layers called: hooks on submodules of the experts do not run, and
      a wrapper in place of an expert or a layer is an error.

    ``"auto"`` takes ``"fixed"`` where a graph is made (``torch.compile``, ``torch.export``, ``make_fx``) and on the
    meta device, where nothing can be read, ``"loop"`` otherwise.

    Batch normalisation is computed over the samples of its own expert only; with few of them its statistics are noisy,
    for a single one see :class:`CrossScaleExpert`. Each rank has its own statistics: do not convert it to
    ``SyncBatchNorm``, since the ranks do not all run the same experts.

    Args:
        channels: Channels of the maps.
        dim: Width of the output, ``D``.
        num_experts: ``K``.
        depth: See :class:`CrossScaleExpert`; so are the following.
        norm: ``"batch"`` or ``"group"``.
        groups: Groups of ``"group"``.
        align_to: Index of the map that sets the size of the output; one of ``scales``.
        logits_at: Where the scales are scored.
        hidden_dim: Hidden width of the heads that score.
        kernel_size: Of the convolutions.
        scales: Indices of the maps that the experts read, such as ``(0, 1)`` for the two finest of a pyramid from fine
            to coarse; all by default. A location of a coarse map has seen most of the image, so features mixed with
            it say what is in the image and not where. Maps that are left out get no weights and no gradients.
        batching: See above.
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
    _checked_settings = frozenset({"batching"})

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
        scales: Sequence[int] | None = None,
        batching: Batching = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("num_experts", num_experts)
        self.channels = tuple(channels)
        self.dim = dim
        self.num_experts = num_experts
        self.align_to = align_to
        self.scales = _checked_scales(scales, len(self.channels), align_to)
        self.batching: Batching = batching
        self._check_settings()
        self.experts = nn.ModuleList(
            CrossScaleExpert(
                [self.channels[scale] for scale in self.scales],
                dim,
                depth=depth,
                norm=norm,
                groups=groups,
                align_to=self._align_to_read,
                logits_at=logits_at,
                hidden_dim=hidden_dim,
                kernel_size=kernel_size,
                device=device,
                dtype=dtype,
            )
            for _ in range(num_experts)
        )
        self._make_read_only("channels", "dim", "num_experts", "align_to", "scales", "token_ndim", "takes_pyramid")

    def reset_parameters(self) -> None:
        """Draws the weights of all experts anew."""
        for expert in self.experts:
            reset_parameters(expert)

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
        maps = self._read(maps)
        check_plan(maps[0], plan, gates, len(self.local_experts))
        if self._fixed(plan):
            rows = fixed_outputs(self._readable(maps), maps, plan)
        else:
            rows = self._loop(maps, plan, self.dim)
        if rows.is_contiguous():
            return combine(rows, plan, gates)
        return combine(rows.movedim(1, -1), plan, gates).movedim(-1, 1)  # channels last stays so

    def scale_weights(self, maps: Sequence[Float[Tensor, "..."]], plan: DispatchPlan) -> Float[Tensor, "B L H W"]:
        """Computes the weights of the scales in the expert of each sample; zeros for a sample without one.

        Args:
            maps: As in :meth:`forward`.
            plan: A plan of one slot per sample.

        Returns:
            Weights that sum to 1 over the scales, ``(B, L, H, W)``, in float32 or wider; L are those of ``scales``.

        Raises:
            ValueError: If ``maps`` and ``plan`` do not fit each other or the weights, or ``plan`` has several slots
                per sample.
        """
        maps = self._read(maps)
        if plan.row_of_slot is None or plan.row_of_slot.shape[1] != 1:
            raise ValueError(
                "plan must have one slot per sample for scale_weights, "
                f"got {plan.slot_of_row.shape[0]} slots for {plan.num_tokens} samples."
            )
        check_plan(maps[0], plan, plan.row_of_slot, len(self.local_experts))
        if self._fixed(plan):
            rows = fixed_weights(self._readable(maps), maps, plan)
        else:
            rows = self._loop(maps, plan, len(self.scales), scale_weights=True)
        return rows.index_select(0, plan.row_of_slot.flatten())

    def run_all(self, maps: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "B K D H W"]:
        """Runs every expert on every sample, ``K`` times the work: what the public release does, to compare with.

        In training batch normalisation is computed over (and keeps statistics of) all samples in every expert.

        Args:
            maps: As in :meth:`forward`.

        Returns:
            Maps of all experts, ``(B, K, D, H, W)``.

        Raises:
            ValueError: If the maps do not fit.
        """
        maps = self._read(maps)
        return torch.stack([expert(maps) for expert in self.experts], dim=1)

    def extra_repr(self) -> str:
        """Shows the settings that the experts do not show."""
        all_scales = len(self.scales) == len(self.channels)
        return f"num_experts={self.num_experts}, batching={self.batching!r}" + (
            "" if all_scales else f", scales={self.scales}"
        )

    def _check_settings(self) -> None:
        check_choice("batching", self.batching, BATCHINGS)

    @property
    def _align_to_read(self) -> int:
        """Index of the map that sets the size of the output, among those that are read."""
        return self.scales.index(self.align_to % len(self.channels))

    def _read(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Checks a pyramid and returns the maps of it that the experts read."""
        check_maps(maps, self.channels)
        return [maps[scale] for scale in self.scales]

    def _readable(self, maps: Sequence[Tensor]) -> list[CrossScaleExpert]:
        """Returns the experts, after checking that their layers are the ones whose weights will be read."""
        experts = [readable(expert, f"experts[{index}]") for index, expert in enumerate(self.experts)]
        check_maps(maps, experts[0].attention.channels, experts[0].attention.projection(0))
        return experts

    def _fixed(self, plan: DispatchPlan) -> bool:
        if self.batching == "auto":
            return is_traced() or plan.offsets.is_meta
        return self.batching == "fixed"

    def _loop(self, maps: Sequence[Tensor], plan: DispatchPlan, width: int, *, scale_weights: bool = False) -> Tensor:
        """Runs each expert that has samples on these: one row ``(width, H, W)`` per row of the plan."""
        bounds = cast(list[int], plan.offsets.tolist())
        counts = [end - start for start, end in pairwise(bounds)]
        # split, not slices: the gradient of a slice is a whole tensor of zeros around it, for every expert and map.
        token = plan.token_of_row[: bounds[-1]]
        grouped = [cast(tuple[Tensor, ...], take_samples(x, token).split(counts)) for x in maps]
        # Without the option in the common case, for wrappers that pass the maps alone.
        options = {"scale_weights": True} if scale_weights else {}
        parts = [
            cast(Tensor, expert([x[number] for x in grouped], **options))
            for number, (expert, count) in enumerate(zip(self.experts, counts, strict=True))
            if count
        ]
        unassigned = plan.token_of_row.shape[0] - bounds[-1]
        if unassigned or not parts:
            like = parts[0] if parts else maps[0]
            parts.append(like.new_zeros(unassigned, width, *maps[self._align_to_read].shape[-2:]))
        return torch.cat(parts)


def _checked_scales(scales: Sequence[int] | None, count: int, align_to: int) -> tuple[int, ...]:
    """Returns the indices of the maps that are read, after checking them and that ``align_to`` is among them."""
    if not -count <= align_to < count:
        raise ValueError(f"align_to must be the index of one of the {count} maps, got {align_to}.")
    chosen = tuple(range(count)) if scales is None else tuple(scales)
    if not chosen or list(chosen) != sorted(set(chosen)) or not 0 <= chosen[0] <= chosen[-1] < count:
        raise ValueError(f"scales must be ascending indices of the {count} maps, at least one, got {chosen}.")
    if align_to % count not in chosen:
        raise ValueError(f"align_to must be one of scales={chosen}, got {align_to}.")
    return chosen
