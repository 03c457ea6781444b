"""Auxiliary losses: pure functions of router statistics, in nats, without coefficients.

Each docstring gives the value at *balance* (every expert equally likely, every token undecided) and at *collapse*
(every token certain of one and the same expert). Statistics add up, so give the sum over micro-batches
and ranks, never a mean of losses. Logits and statistics of half precision are computed with in float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moekit.checks import check_counts, check_floating, check_integer, check_same_device
from moekit.routing import RouterStats, Routing, check_stats, entropy


def load_balancing_loss(stats: RouterStats, *, tokens_per_expert: Int[Tensor, "E"] | None = None) -> Float[Tensor, ""]:
    """Computes ``E * sum_e f_e P_e``: share of slots times mean probability.

    1 at balance, ``E`` at collapse, 0 without tokens. ``f`` sums to 1 whatever ``K`` is, so the value is
    that of ``transformers``' ``load_balancing_loss_func`` divided by ``K``. Only ``P`` has a gradient.

    Args:
        stats: Statistics of one layer.
        tokens_per_expert: Counts to take ``f`` from instead, such as those of all micro-batches so far:
            the global batch is then balanced, not each micro-batch (https://arxiv.org/abs/2501.11873).

    Returns:
        The loss, a scalar in float32 or wider.

    Raises:
        ValueError: If ``stats`` is not a :class:`~moekit.RouterStats`, or ``tokens_per_expert`` is for another number
            of experts.

    Reference:
        Switch Transformers, equations 4 to 6, https://arxiv.org/abs/2101.03961; GShard,
        https://arxiv.org/abs/2006.16668.

    Example:
        >>> from moekit import SparseMoE
        >>> stats = SparseMoE.ffn(8, 8, num_experts=4, top_k=2)(torch.randn(32, 8)).stats
        >>> bool(1e-6 < load_balancing_loss(stats) <= 4)
        True
    """
    check_stats(stats)
    counts = stats.tokens_per_expert if tokens_per_expert is None else tokens_per_expert
    check_counts(counts, stats.prob_sum.shape[0])
    prob_sum = _wide(stats.prob_sum)
    share = counts.to(prob_sum.dtype) / counts.sum().clamp(min=1)
    mean_prob = prob_sum / stats.num_tokens.clamp(min=1)
    return counts.shape[0] * (share * mean_prob).sum()


def importance_loss(stats: RouterStats) -> Float[Tensor, ""]:
    """Computes ``CV(importance)**2``, importance being the sum of an expert's gates over the batch.

    0 at balance, ``E - 1`` at collapse. The variance is that of the population.

    Args:
        stats: Statistics of one layer.

    Returns:
        The loss, a scalar in float32 or wider.

    Raises:
        ValueError: If ``stats`` is not a :class:`~moekit.RouterStats`.

    Reference:
        Shazeer et al. 2017, equations 6 and 7, https://arxiv.org/abs/1701.06538.
    """
    check_stats(stats)
    return _squared_cv(_wide(stats.gate_sum))


def load_loss(stats: RouterStats) -> Float[Tensor, ""]:
    """Computes ``CV(load)**2``, load being the expected number of an expert's tokens under the router's noise.

    0 at balance, ``E - 1`` at collapse. Has a gradient only where noise was drawn, that is with
    ``TopKRouter(noisy=True)`` in training; otherwise load is the plain count.

    Args:
        stats: Statistics of one layer.

    Returns:
        The loss, a scalar in float32 or wider.

    Raises:
        ValueError: If ``stats`` is not a :class:`~moekit.RouterStats`.

    Reference:
        Shazeer et al. 2017, equations 8 to 11, https://arxiv.org/abs/1701.06538.
    """
    check_stats(stats)
    return _squared_cv(_wide(stats.load))


def router_z_loss(stats: RouterStats | Float[Tensor, "... E"]) -> Float[Tensor, ""]:
    """Computes the mean over tokens of ``logsumexp(logits)**2``, which keeps router logits small.

    ``(ln E)**2`` for zero logits; grows with the square of the logits at collapse.

    Args:
        stats: Statistics of one layer, or router logits ``(..., E)``.

    Returns:
        The loss, a scalar in float32 or wider; 0 without tokens.

    Raises:
        ValueError: If ``stats`` is neither.

    Reference:
        ST-MoE, equation 5, https://arxiv.org/abs/2202.08906.
    """
    if isinstance(stats, Tensor):
        return _mean(_logits(stats).logsumexp(-1).square())
    check_stats(stats, _OR_LOGITS)
    return _wide(stats.logsumexp_sq_sum) / stats.num_tokens.clamp(min=1)


def router_entropy(stats: RouterStats | Float[Tensor, "... E"]) -> Float[Tensor, ""]:
    """Computes the mean over tokens of the entropy of the router's probabilities, in nats.

    ``ln E`` at balance (undecided), 0 at collapse (certain). Also 0 when every token is certain of its own
    expert: it measures how decided the router is, not how balanced.

    Args:
        stats: Statistics of one layer, or router logits ``(..., E)``.

    Returns:
        The entropy, a scalar in float32 or wider; 0 without tokens.

    Raises:
        ValueError: If ``stats`` is neither.
    """
    if isinstance(stats, Tensor):
        return _mean(entropy(F.softmax(_logits(stats), dim=-1)))
    check_stats(stats, _OR_LOGITS)
    return _wide(stats.entropy_sum) / stats.num_tokens.clamp(min=1)


def mutual_information_loss(
    stats: RouterStats | Sequence[RouterStats] | Float[Tensor, "... E"],
) -> Float[Tensor, ""]:
    """Computes minus the mutual information of experts and tokens (or groups), in nats.

    ``-I = H(expert | token) - H(expert)``: 0 at balance as well as at collapse, ``-ln E`` when every token
    is certain and the experts are used equally, which is the minimum. Given one statistic per group (task,
    modality), ``-I = H(expert | group) - H(expert)``, groups weighted by their tokens.

    Args:
        stats: Statistics of one layer; or a sequence, one per group; or router logits ``(..., E)``.

    Returns:
        The loss, a scalar in float32 or wider; 0 without tokens.

    Raises:
        ValueError: If ``stats`` is none of these, or the sequence is empty.

    Reference:
        Mod-Squad, equation 5, https://arxiv.org/abs/2212.08066 (there with groups as tasks).
    """
    if isinstance(stats, Tensor):
        probs = F.softmax(_logits(stats), dim=-1).reshape(-1, stats.shape[-1])
        return _mean(entropy(probs)) - entropy(probs.sum(0) / max(probs.shape[0], 1))
    if isinstance(stats, RouterStats):
        marginal = _wide(stats.prob_sum) / stats.num_tokens.clamp(min=1)
        return router_entropy(stats) - entropy(marginal)
    # A MoEOutput, a tuple too, has statistics; None is neither.
    if not isinstance(stats, Sequence) or hasattr(stats, "stats"):  # pyright: ignore[reportUnnecessaryIsInstance]
        check_stats(stats, f"{_OR_LOGITS}, or a sequence of statistics")
    if not stats:
        raise ValueError("stats must hold the statistics of at least one group, got an empty sequence.")
    for index, group in enumerate(stats):
        check_stats(group, name=f"stats[{index}]")
    sums = _wide(torch.stack([group.prob_sum for group in stats]))
    tokens = torch.stack([group.num_tokens for group in stats]).to(sums.dtype)
    total = tokens.sum().clamp(min=1)
    conditional = (tokens * entropy(sums / tokens.clamp(min=1).unsqueeze(-1))).sum() / total
    return conditional - entropy(sums.sum(0) / total)


def router_label_loss(
    logits: Float[Tensor, "... E"] | Routing, labels: Int[Tensor, "..."], *, ignore_index: int = -100
) -> Float[Tensor, ""]:
    """Computes the cross-entropy of the router's logits with known experts, a mean over the labelled tokens, in nats.

    ``ln E`` for zero logits, 0 for certain and right ones; 0, with a zero gradient, where nothing is labelled.
    Tokens whose logits were not finite do not count in a :class:`Routing`.

    It takes the *logits*: cross-entropy of probabilities, a softmax of a softmax, can go no lower than
    ``ln(1 + (E - 1) / e)`` and has no gradient where the router is certain, also of the wrong expert.

    Args:
        logits: Router logits ``(..., E)``, or a routing.
        labels: The right expert of each token, in ``[0, E)``, or ``ignore_index``; of the leading shape of the logits.
        ignore_index: Marks tokens without a label.

    Returns:
        The loss, a scalar in float32 or wider.

    Raises:
        ValueError: If ``logits`` is neither logits nor a routing with logits, or ``labels`` is not of an integer dtype,
            not of the shape of ``logits`` without its last dimension, or on another device.

    Reference:
        MedMoE, section 4.5, supervises a head of its own, ``W_c t_g``, with the labels and routes by
        ``argmax softmax(W_2 relu(W_1 t_g))``. The argmax has no gradient and ``W_c`` shares no weight with ``W_1``
        and ``W_2``, so these are never trained as printed. Here the router's own logits are that head.

    Example:
        >>> logits = torch.zeros(3, 4)
        >>> router_label_loss(logits, torch.tensor([2, -100, 0])) == torch.tensor(4.0).log()
        tensor(True)
    """
    check_integer("labels", labels)
    if isinstance(logits, Routing):
        if logits.logits is None:
            raise ValueError(
                "logits must be those of a router that computes and returns some, got a Routing without logits: "
                "use TopKRouter(..., return_logits=True); for a HashRouter, which has no weights, leave this loss out."
            )
        if labels.shape == logits.valid.shape:
            labels = torch.where(logits.valid, labels, ignore_index)
        logits = logits.logits
    elif not isinstance(logits, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"logits must be router logits or a Routing, got a {type(logits).__name__}: pass moe.route(x)."
        )
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels must have one value per token, {tuple(logits.shape[:-1])}, got shape {tuple(labels.shape)}."
        )
    check_same_device("labels", labels, "logits", logits)
    wide = _logits(logits, "logits").reshape(-1, logits.shape[-1])
    flat = labels.reshape(-1).long()
    total = F.cross_entropy(wide, flat, ignore_index=ignore_index, reduction="sum")
    return total / (flat != ignore_index).sum().clamp(min=1)


_OR_LOGITS = "RouterStats or router logits"


def _logits(logits: Tensor, name: str = "stats") -> Tensor:
    check_floating(name, logits)
    return _wide(logits)


def _wide(x: Tensor) -> Tensor:
    """Converts half precision, in which sums over many tokens and squares overflow, to float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(per_token: Tensor) -> Tensor:
    """Computes the mean, 0 without tokens."""
    return per_token.sum() / max(per_token.numel(), 1)


def _squared_cv(x: Tensor) -> Tensor:
    """Computes the population variance over the squared mean, 0 where the mean is 0."""
    mean = x.mean()
    return x.var(correction=0) / mean.square().clamp(min=torch.finfo(x.dtype).tiny)
