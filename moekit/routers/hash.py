"""Hash routing: experts by the token's id, without learned weights."""

from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moekit.checks import check_positive, check_top_k
from moekit.routers.base import Router
from moekit.routing import Routing


class HashRouter(Router):
    """Chooses the experts of a token by its integer id alone: Hash Layers, Roller et al. 2021.

    https://arxiv.org/abs/2106.04426. A table from id to ``K`` different experts is drawn once from
    ``seed``: ids in random order are assigned to the experts in turn, so every expert gets the same number of ids
    (*random hash*), or, given ``frequencies``, each id in order of frequency goes to the expert with the
    least so far (*balanced hash*). Gates are ``1 / K`` in float32. The router input is a tensor of ids,
    ``moe(x, router_input=token_ids)``; ids beyond the table wrap around.

    Args:
        num_experts: ``E``.
        vocab_size: Number of ids, ``V``.
        top_k: ``K``.
        frequencies: ``(V,)``, how often each id occurs, for balanced hash.
        seed: Seed of the table.
        device: Device of the table.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> router = HashRouter(num_experts=4, vocab_size=100)
        >>> router(torch.arange(100)).expert_ids.flatten().bincount().tolist()
        [25, 25, 25, 25]
    """

    input_ndim = 0
    table: Int[Tensor, "V K"]

    def __init__(
        self,
        num_experts: int,
        vocab_size: int,
        top_k: int = 1,
        *,
        frequencies: Tensor | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_top_k(top_k, num_experts)
        check_positive("vocab_size", vocab_size)
        if frequencies is not None and frequencies.shape != (vocab_size,):
            raise ValueError(f"frequencies must have shape ({vocab_size},), got {tuple(frequencies.shape)}.")
        self.num_experts = num_experts
        self.top_k = top_k
        self.seed = seed
        self.frequencies = None if frequencies is None else _checked(frequencies.detach().cpu())
        self.register_buffer("table", torch.empty(vocab_size, top_k, dtype=torch.int64, device=device))
        self.reset_parameters()
        self._make_read_only("num_experts", "top_k", "seed", "frequencies", "input_ndim")

    def reset_parameters(self) -> None:
        """Fills the table again, from the seed and the frequencies."""
        vocab_size, num_experts, top_k = self.table.shape[0], self.num_experts, self.top_k
        frequencies = self.frequencies
        generator = torch.Generator().manual_seed(self.seed)
        if frequencies is None:
            first = torch.randperm(vocab_size, generator=generator) % num_experts
        else:
            first = _balanced(frequencies, num_experts)
        # Further experts follow the first at random distances, all different. The dtype is fixed: that of
        # torch.set_default_dtype would draw another table.
        noise = torch.rand(vocab_size, num_experts - 1, generator=generator, dtype=torch.float32)
        steps = noise.argsort(-1)[:, : top_k - 1] + 1
        table = torch.cat([first.unsqueeze(-1), (first.unsqueeze(-1) + steps) % num_experts], dim=-1)
        self.table.copy_(table)

    def forward(self, x: Int[Tensor, "T"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` ids; ``mask`` changes nothing.

        Args:
            x: Token ids ``(T,)``, of an integer dtype.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates and ids ``(T, K)``, probabilities ``(T, E)``; no logits.

        Raises:
            ValueError: If ``x`` is not integer or not one-dimensional.
        """
        if x.ndim != 1 or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ValueError(
                f"router_input must hold integer token ids, one per token, got {x.dtype} of shape {tuple(x.shape)}. "
                "Pass them as moe(x, router_input=token_ids)."
            )
        ids = self.table[x.long() % self.table.shape[0]]
        gates = torch.full(ids.shape, 1 / self.top_k, dtype=torch.float32, device=ids.device)
        probs = gates.new_zeros(ids.shape[0], self.num_experts).scatter(-1, ids, gates)
        valid = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
        return Routing(gates, ids, None, probs, valid)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, vocab_size={self.table.shape[0]}, top_k={self.top_k}"


def _checked(frequencies: Tensor) -> Tensor:
    """Returns the frequencies, which are on the host.

    Raises:
        ValueError: If one is negative or not finite: NaN would compare with no load.
    """
    if not bool((frequencies >= 0).all()) or not bool(frequencies.isfinite().all()):
        raise ValueError(
            f"frequencies must be finite and at least 0, got values from {frequencies.min().item()} to "
            f"{frequencies.max().item()}."
        )
    return frequencies


def _balanced(frequencies: Tensor, num_experts: int) -> Tensor:
    load = [0.0] * num_experts
    table = torch.empty(len(frequencies), dtype=torch.int64)
    values = cast(list[float], frequencies.tolist())
    for token in sorted(range(len(values)), key=values.__getitem__, reverse=True):
        expert = min(range(num_experts), key=load.__getitem__)
        table[token] = expert
        load[expert] += values[token]
    return table
