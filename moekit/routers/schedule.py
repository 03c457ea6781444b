"""The rate of loss-free balancing over a training."""


def bias_update_rate(step: int, *, start: float = 1e-2, end: float = 1e-3, num_steps: int = 1000) -> float:
    """Computes a rate for :meth:`~moekit.TopKRouter.update_bias_` that starts large and falls to its final value.

    ``rate = start * (end / start) ** min(step / num_steps, 1)``. A step of the bias is in units of the score, whatever
    the imbalance: at the constant rate of the paper, 1e-3, a bias gets no further than 0.2 in 200 steps. With a
    rate that stays large the biases keep oscillating around balance.

    Args:
        step: Optimiser steps so far, at least 0.
        start: Rate of the first step.
        end: Rate from ``num_steps`` on; Wang et al. 2024, https://arxiv.org/abs/2408.15664, use 1e-3 throughout.
        num_steps: Steps from the one to the other; 0 for ``end`` at once.

    Returns:
        The rate.

    Raises:
        ValueError: If ``step`` or ``num_steps`` is negative, or a rate is not positive.

    Example:
        >>> [round(bias_update_rate(step), 4) for step in (0, 500, 1000, 5000)]
        [0.01, 0.0032, 0.001, 0.001]
    """
    for name, value in (("step", step), ("num_steps", num_steps)):
        if value < 0:
            raise ValueError(f"{name} must be at least 0, got {value}.")
    for name, rate in (("start", start), ("end", end)):
        if not 0 < rate < float("inf"):
            raise ValueError(f"{name} must be a positive rate, got {rate}.")
    progress = min(step / num_steps, 1.0) if num_steps else 1.0
    return start * (end / start) ** progress
