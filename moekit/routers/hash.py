"""Hash routing: experts by the token's id, with constant or learned gates."""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moekit.checks import check_choice, check_positive, check_top_k
from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.gate import make_gate, router_logits
from moekit.routing import Routing
from moekit_kernels.routing.finite import finite_logits
from moekit_kernels.routing.options import SCORINGS, Scoring
from moekit_kernels.routing.scores import gates_of_chosen, probabilities, scores_of


class HashRouter(Router):
    """Chooses the experts of a token by its integer id alone: Hash Layers, Roller et al. 2021.

    https://arxiv.org/abs/2106.04426. A table from id to ``K`` different experts is drawn once from
    ``seed``: ids in random order are assigned to the experts in turn, so every expert gets the same number of ids
    (*random hash*), or, given ``frequencies``, each id in order of frequency goes to the expert with the
    least so far (*balanced hash*). The router input is a tensor of ids, ``moe(x, router_input=token_ids)``; ids beyond
    the table wrap around.

    Gates are ``1 / K`` in float32. Or, given ``dim``, they are learned: the id chooses the experts, and a gate of the
    token ``x`` weights them, by the scores of :class:`~moekit.routers.top_k.TopKRouter`. So the first layers of
    DeepSeek-V4 route, with ``scoring="sqrt_softplus"``. The layer hands over the tokens. Hash routing runs in plain
    PyTorch in every implementation of the layer: no kernel takes experts that were chosen before.

    Args:
        num_experts: ``E``.
        vocab_size: Number of ids, ``V``.
        top_k: ``K``.
        frequencies: ``(V,)``, how often each id occurs, for balanced hash.
        seed: Seed of the table.
        dim: Width of the tokens, ``D``, for learned gates; by default gates are constant, and the arguments that
            follow have no meaning.
        scoring: How scores come from logits; see :class:`~moekit.routers.top_k.TopKRouter`.
        renormalize: Whether a token's gates sum to ``scaling_factor``; by default True for ``top_k > 1``.
        scaling_factor: Multiplies the gates.
        gate_hidden_dim: Makes the gate a two-layer MLP of this hidden width.
        gate_bias: Whether the gate has biases.
        gate: Any module ``(T, D) -> (T, E)`` in place of the built-in one.
        init_scale: Variance of the gate's weights times their fan-in.
        device: Device of table and parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Example:
        >>> router = HashRouter(num_experts=4, vocab_size=100)
        >>> router(torch.arange(100)).expert_ids.flatten().bincount().tolist()
        [25, 25, 25, 25]
        >>> router = HashRouter(num_experts=4, vocab_size=100, top_k=2, dim=16)
        >>> router(torch.arange(10), tokens=torch.randn(10, 16)).gates.shape
        torch.Size([10, 2])
    """

    input_ndim = 0
    table: Int[Tensor, "V K"]
    gate: nn.Module | None
    _checked_settings = frozenset({"scoring", "_renormalize", "scaling_factor"})

    def __init__(
        self,
        num_experts: int,
        vocab_size: int,
        top_k: int = 1,
        *,
        frequencies: Tensor | None = None,
        seed: int = 0,
        dim: int | None = None,
        scoring: Scoring = "softmax",
        renormalize: bool | None = None,
        scaling_factor: float = 1.0,
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        gate: nn.Module | None = None,
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
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
        self.scoring: Scoring = scoring
        self._renormalize = renormalize
        self.scaling_factor = scaling_factor
        self.takes_tokens = dim is not None
        if dim is not None:
            self.gate = make_gate(
                gate,
                dim,
                num_experts,
                hidden_dim=gate_hidden_dim,
                bias=gate_bias,
                init_scale=init_scale,
                device=device,
                dtype=dtype,
            )
        elif gate is not None or gate_hidden_dim is not None or gate_bias:
            raise ValueError(
                "gate, gate_hidden_dim and gate_bias describe learned gates: give dim, the width of x, too."
            )
        else:
            self.gate = None
        self._check_settings()
        self._fill_table()
        self._make_read_only("num_experts", "top_k", "seed", "frequencies", "input_ndim", "takes_tokens")

    @property
    def renormalize(self) -> bool:
        """Whether learned gates of a token sum to ``scaling_factor``."""
        return self.top_k > 1 if self._renormalize is None else self._renormalize

    @renormalize.setter
    def renormalize(self, value: bool | None) -> None:
        self._renormalize = value

    def reset_parameters(self) -> None:
        """Fills the table again, from the seed and the frequencies, and draws the weights of a gate anew."""
        self._fill_table()
        if self.gate is not None:
            reset_parameters(self.gate)

    def _fill_table(self) -> None:
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

    def forward(
        self,
        x: Int[Tensor, "T"],
        mask: Bool[Tensor, "T"] | None = None,
        *,
        tokens: Float[Tensor, "T D"] | None = None,
    ) -> Routing:
        """Routes ``T`` ids; ``mask`` changes nothing.

        Args:
            x: Token ids ``(T,)``, of an integer dtype.
            mask: True for real tokens, ``(T,)``; all by default.
            tokens: ``(T, D)``, what learned gates are computed of; the layer passes them.

        Returns:
            Gates and ids ``(T, K)``, probabilities ``(T, E)``; logits of learned gates alone.

        Raises:
            ValueError: If ``x`` is not integer or not one-dimensional, or ``tokens`` are missing for learned gates, are
                given without such, or are not of these ids.
        """
        if x.ndim != 1 or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise ValueError(
                f"router_input must hold integer token ids, one per token, got {x.dtype} of shape {tuple(x.shape)}. "
                "Pass them as moe(x, router_input=token_ids)."
            )
        ids = self.table[x.long() % self.table.shape[0]]
        if self.gate is not None:
            return self._weighted(ids, _tokens_of(ids, tokens), self.gate)
        if tokens is not None:
            raise ValueError(
                "tokens serve learned gates alone, got some for constant gates: build HashRouter(dim=...)."
            )
        gates = torch.full(ids.shape, 1 / self.top_k, dtype=torch.float32, device=ids.device)
        probs = gates.new_zeros(ids.shape[0], self.num_experts).scatter(-1, ids, gates)
        valid = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
        return Routing(gates, ids, None, probs, valid)

    def extra_repr(self) -> str:
        """Shows the settings."""
        shown = f"num_experts={self.num_experts}, vocab_size={self.table.shape[0]}, top_k={self.top_k}"
        if self.gate is None:
            return shown
        return (
            f"{shown}, scoring={self.scoring!r}, renormalize={self.renormalize}, scaling_factor={self.scaling_factor}"
        )

    def _weighted(self, ids: Tensor, tokens: Tensor, gate: nn.Module) -> Routing:
        finite = finite_logits(router_logits(gate, tokens, self.num_experts))
        scores = scores_of(finite.logits, self.scoring)
        gates = gates_of_chosen(
            finite.logits,
            scores,
            ids,
            scoring=self.scoring,
            renormalize=self.renormalize,
            scaling_factor=self.scaling_factor,
        )
        probs = finite.clear(probabilities(finite.logits, scores, self.scoring))
        return Routing(finite.mark(gates), ids, finite.logits, probs, finite.valid)

    def _check_settings(self) -> None:
        check_choice("scoring", self.scoring, SCORINGS)
        if not self.takes_tokens:
            if self.scoring != "softmax" or self._renormalize is not None or self.scaling_factor != 1.0:
                raise ValueError(
                    "scoring, renormalize and scaling_factor describe learned gates: give dim, the width of x, too."
                )
        elif self.top_k == 1 and (self._renormalize or self.scoring == "topk_softmax"):
            raise ValueError(
                "top_k=1 with renormalised gates makes every gate 1, so no gradient reaches the router: leave "
                "renormalize out, or leave dim out for constant gates."
            )
        elif self.scoring == "topk_softmax" and self._renormalize is False:
            raise ValueError('scoring="topk_softmax" always renormalises: leave renormalize out, or use "softmax".')


def _tokens_of(ids: Tensor, tokens: Tensor | None) -> Tensor:
    if tokens is None:
        raise ValueError(
            "tokens must be given to a hash router with learned gates: call it in a layer, as "
            "moe(x, router_input=token_ids), or as router(token_ids, tokens=x)."
        )
    if tokens.ndim < 1 or tokens.shape[0] != ids.shape[0]:
        raise ValueError(f"tokens must be {ids.shape[0]}, one for each id, got shape {tuple(tokens.shape)}.")
    return tokens


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
