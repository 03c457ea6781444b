"""Sums over the calls of one layer, of bounded size whatever the number of calls.

Letters: T tokens, E experts, L labels, W windows of time.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moekit.inspect.windows import COLUMNS, halved, joined
from moekit.observers import RoutingEvent
from moekit.routing import entropy
from moekit_kernels.autocast import no_autocast


class LayerRecord:
    """What the calls of one layer add up to: in total, and over time in at most ``max_windows`` windows.

    A window is a number of consecutive calls. When all windows are in use, neighbours are added up in pairs, so each
    window then holds twice as many calls. The sums lie on the device of the layer; nothing is read on the host.

    Args:
        num_experts: ``E``.
        num_labels: ``L``, labels that tokens may have.
        max_windows: ``W``, an even number.
        device: Device of the sums.

    Attributes:
        num_experts: ``E``.
        top_k: Experts per token; 0 for expert choice and Soft MoE.
        max_windows: ``W``.
        width: Calls in a full window.
        prob_sum: ``(E,)`` sum of the router's probabilities.
        coactivation: ``(E, E)`` tokens that chose both experts; on the diagonal those that chose the one.
        by_label: ``(L + 1, E)`` slots of the tokens of each label; last those without a label. For Soft MoE, the sums
            of their weights.
    """

    prob_sum: Float[Tensor, "E"]
    coactivation: Float[Tensor, "E E"]
    by_label: Float[Tensor, "L+1 E"]
    _windows: Tensor

    def __init__(
        self, num_experts: int, *, num_labels: int = 0, max_windows: int = 64, device: torch.device | str = "cpu"
    ) -> None:
        check_max_windows(max_windows)
        self.num_experts = num_experts
        self.max_windows = max_windows
        self.top_k = 0
        self.width = 1
        self.prob_sum = _zeros(num_experts, device=device)
        self.coactivation = _zeros(num_experts, num_experts, device=device)
        self.by_label = _zeros(num_labels + 1, num_experts, device=device)
        self._windows = _zeros(max_windows, len(COLUMNS) + 2 * num_experts, device=device)
        self._num_windows = 0
        self._calls_in_last = 0

    @property
    def windows(self) -> Float[Tensor, "W columns"]:
        """The windows in use, one row each: the columns of ``COLUMNS``, loads and drops of the experts."""
        return self._windows[: self._num_windows]

    @property
    def load(self) -> Float[Tensor, "W E"]:
        """Slots of each expert before any is dropped, by window."""
        return self.windows[:, len(COLUMNS) : len(COLUMNS) + self.num_experts]

    @property
    def dropped(self) -> Float[Tensor, "W E"]:
        """Slots of each expert over its capacity, by window."""
        return self.windows[:, len(COLUMNS) + self.num_experts :]

    def column(self, name: str) -> Float[Tensor, "W"]:
        """Returns one of ``COLUMNS``, by window."""
        return self.windows[:, COLUMNS.index(name)]

    def add(self, event: RoutingEvent, labels: Int[Tensor, "T"] | None = None) -> None:
        """Adds one call.

        Args:
            event: The call.
            labels: ``(T,)`` in ``[0, L]``, where ``L`` marks a token without a label; none by default.
        """
        # Sums made under inference_mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), no_autocast(self._windows.device.type):
            self._add(event, labels)

    def _add(self, event: RoutingEvent, labels: Tensor | None) -> None:
        device = self._windows.device
        # Layers may compute on several devices in turn.
        moved = {name: each.to(device) for name, each in event._asdict().items() if isinstance(each, Tensor)}
        event = event._replace(**moved)
        if event.expert_ids is not None:
            self.top_k = event.expert_ids.shape[1]
        counted_T, nonfinite = _counted(event)
        chosen_TE = _chosen(event, counted_T)
        load_E, weights_TE, unrouted = event.tokens_per_expert, event.probs, _zeros(device=device)
        if chosen_TE is not None:
            load_E = chosen_TE.sum(0) if load_E is None else load_E
            self.coactivation += chosen_TE.T @ chosen_TE
            unrouted = (counted_T & (chosen_TE.sum(-1) == 0)).sum()
            weights_TE = chosen_TE
        if load_E is None or weights_TE is None:
            raise ValueError("event must have expert_ids, token_ids, or probs and tokens_per_expert, got none.")
        tokens = counted_T.sum()
        scalars = [torch.ones_like(tokens), tokens, nonfinite, unrouted, *self._add_probs(event, counted_T, tokens)]
        dropped_E = torch.zeros_like(load_E) if event.dropped_per_expert is None else event.dropped_per_expert
        row = torch.cat([torch.stack([each.double() for each in scalars]), load_E.double(), dropped_E.double()])
        window = self._next_window()  # may replace the windows
        self._windows[window] += row
        if labels is None:
            self.by_label[-1] += weights_TE.double().mul(counted_T.unsqueeze(-1)).sum(0)
        else:
            weights_TE = torch.where(counted_T.unsqueeze(-1), weights_TE, 0).double()
            self.by_label.index_add_(0, labels.to(device), weights_TE)

    def _add_probs(self, event: RoutingEvent, counted: Tensor, tokens: Tensor) -> list[Tensor]:
        """Adds the probabilities, and returns the rest of the columns."""
        none = torch.zeros_like(tokens)
        if event.probs is not None:
            probs_TE = torch.where(counted.unsqueeze(-1), event.probs, 0).float()
            self.prob_sum += probs_TE.double().sum(0)
            confidence = probs_TE.amax(-1).double().sum() if probs_TE.numel() else none
            return [tokens, entropy(probs_TE).double().sum(), tokens, confidence]
        if event.prob_sum is not None and event.entropy_sum is not None:
            self.prob_sum += event.prob_sum
            return [tokens, event.entropy_sum, none, none]
        return [none] * 4

    def _next_window(self) -> int:
        """Returns the window of the next call, and makes room for it."""
        if self._num_windows == 0 or self._calls_in_last >= self.width:
            if self._num_windows == self.max_windows:
                self._set_windows(halved(self.windows))
                self.width *= 2
            self._num_windows += 1
            self._calls_in_last = 0
        self._calls_in_last += 1
        return self._num_windows - 1

    def _set_windows(self, rows: Tensor) -> None:
        self._num_windows = rows.shape[0]
        self._windows = F.pad(rows, (0, 0, 0, self.max_windows - rows.shape[0]))

    def fill(self, windows: Tensor, *, top_k: int, width: int) -> None:
        """Sets the windows in use, at most ``max_windows``, as a file or a merge gives them."""
        self.top_k = top_k
        self.width = width
        self._set_windows(windows)
        self._calls_in_last = int(windows[-1, 0]) if len(windows) else 0

    def to(self, device: torch.device | str) -> None:
        """Moves the sums."""
        for name in ("prob_sum", "coactivation", "by_label", "_windows"):
            setattr(self, name, cast(Tensor, getattr(self, name)).to(device))

    def merged(self, other: "LayerRecord", *, parallel: bool = False) -> "LayerRecord":
        """Returns the record of both; see :meth:`moekit.inspect.RoutingRecord.merged`.

        Raises:
            ValueError: If they are of another number of experts or labels; in parallel, also of calls.
        """
        if (self.num_experts, len(self.by_label)) != (other.num_experts, len(other.by_label)):
            raise ValueError(
                f"records must have one number of experts and labels, got {self.num_experts} and {other.num_experts} "
                f"experts, {len(self.by_label) - 1} and {len(other.by_label) - 1} labels."
            )
        result = LayerRecord(
            self.num_experts, num_labels=len(self.by_label) - 1, max_windows=max(self.max_windows, other.max_windows)
        )
        for name in ("prob_sum", "coactivation", "by_label"):
            setattr(result, name, getattr(self, name).cpu() + getattr(other, name).cpu())
        top_k, width = max(self.top_k, other.top_k), max(self.width, other.width)
        mine, theirs = self.windows.cpu(), other.windows.cpu()
        if parallel:
            if mine.shape != theirs.shape or not torch.equal(mine[:, 0], theirs[:, 0]):
                raise ValueError(
                    "records merged in parallel must have as many calls in each window, got "
                    f"{int(mine[:, 0].sum())} and {int(theirs[:, 0].sum())} calls: merge them one after the other."
                )
            total = mine + theirs
            total[:, 0] = mine[:, 0]
        else:
            total, times = joined(mine, theirs, result.max_windows)
            width *= times
        result.fill(total, top_k=top_k, width=width)
        return result


def check_max_windows(max_windows: int) -> None:
    """Raises ``ValueError`` unless ``max_windows`` is even and at least 2."""
    if max_windows < 2 or max_windows % 2:
        raise ValueError(f"max_windows must be even and at least 2 (they are added up in pairs), got {max_windows}.")


def _zeros(*shape: int, device: torch.device | str) -> Tensor:
    """Returns zeros in float64, in which counts below 2^53 are exact."""
    with torch.inference_mode(False):
        return torch.zeros(shape, dtype=torch.float64, device=device)


def _counted(event: RoutingEvent) -> tuple[Bool[Tensor, "T"], Int[Tensor, ""]]:
    """Returns which tokens count, and how many were left out because their logits were not finite."""
    example: Any = event.expert_ids if event.expert_ids is not None else event.probs
    if event.valid is None:
        valid = torch.ones(example.shape[0], dtype=torch.bool, device=example.device)
    else:
        valid = event.valid
    counted = valid if event.mask is None else valid & event.mask
    real = valid.numel() if event.mask is None else event.mask.sum()
    return counted, real - counted.sum()


def _chosen(event: RoutingEvent, counted: Tensor) -> Float[Tensor, "T E"] | None:
    """Returns 1 where a token has a slot at an expert, else 0; ``None`` for a layer without decisions."""
    if event.expert_ids is not None:
        # Ids of E and above mark slots that are computed elsewhere: they fall into the last column.
        chosen = torch.zeros(len(counted), event.num_experts + 1, device=counted.device, dtype=torch.float32)
        chosen.scatter_(1, event.expert_ids.long().clamp(max=event.num_experts), 1.0)
        chosen = chosen[:, :-1]
    elif event.token_ids is not None:
        kept = torch.ones_like(event.token_ids, dtype=torch.bool) if event.kept is None else event.kept
        by_expert = torch.zeros(event.num_experts, len(counted), device=counted.device, dtype=torch.float32)
        chosen = by_expert.scatter_(1, event.token_ids, kept.float()).T
    else:
        return None
    return chosen * counted.unsqueeze(-1)
