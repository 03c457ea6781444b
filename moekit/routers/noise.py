"""Noise of routers in training: on their input, and the trainable one of noisy top-k gating with its smooth load.

The latter: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538, equations 4, 9 and 10.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moekit.checks import check_floating


class NoisyLogits(NamedTuple):
    """Logits with noise on them, and the standard deviation of that noise."""

    noisy: Float[Tensor, "T E"]
    std: Float[Tensor, "T E"]


def check_jitter(jitter: float) -> None:
    """Raises ``ValueError`` unless the bounds of the noise on the router input are positive."""
    if not 0 <= jitter < 1:
        raise ValueError(f"jitter must be in [0, 1), got {jitter}.")


def jittered(x: Float[Tensor, "T D"], jitter: float) -> Float[Tensor, "T D"]:
    """Multiplies a router input by uniform noise from ``[1 - jitter, 1 + jitter]``: Switch Transformers, section 2.2.

    Raises:
        ValueError: If ``x`` is not floating.
    """
    check_floating("router_input (x unless given) under jitter", x)
    # In bfloat16 the bounds would be rounded and the noise would not average to 1.
    noise = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    return (x * noise.uniform_(1 - jitter, 1 + jitter)).to(x.dtype)


def add_noise(logits: Float[Tensor, "T E"], raw_std: Float[Tensor, "T E"]) -> NoisyLogits:
    """Computes ``H = logits + normal * (softplus(raw_std) + 0.01)``: equation 4, with a least deviation of 0.01.

    The least deviation is not in the paper; without it, equation 9 would divide by a vanishing number.
    """
    std = F.softplus(raw_std) + 1e-2
    return NoisyLogits(logits + torch.randn_like(logits) * std, std)


def smooth_load(logits: Float[Tensor, "T E"], noise: NoisyLogits, top_k: int) -> Float[Tensor, "T E"]:
    """Computes ``P(expert e is among the top k)`` if only the noise of ``e`` were drawn anew (equation 9).

    ``Phi((logits_e - k-th largest noisy logit of the others) / std_e)``; 1 where ``K = E``.
    """
    num_experts = logits.shape[-1]
    if top_k == num_experts:
        return torch.ones_like(logits)
    largest = noise.noisy.topk(top_k + 1, dim=-1).values
    kth, next_one = largest[:, top_k - 1 : top_k], largest[:, top_k:]
    # Without e, the k-th largest is the (k+1)-th of all if e itself is among the k largest.
    threshold = torch.where(noise.noisy >= kth, next_one, kth)
    return cast(Tensor, torch.special.ndtr((logits - threshold) / noise.std))
