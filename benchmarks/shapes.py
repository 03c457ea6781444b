"""The workloads: their sizes, how many operations and bytes they take at least, and the presets.

Letters: T tokens, D model width, F expert hidden width, E experts, K experts per token, N = T K slots.
"""

from typing import Literal, NamedTuple

import torch

Direction = Literal["forward", "backward", "forward+backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward", "forward+backward")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


class Shape(NamedTuple):
    """The sizes of a layer of SwiGLU experts, and the number of tokens of a call."""

    tokens: int
    dim: int
    hidden_dim: int
    num_experts: int
    top_k: int

    @property
    def slots(self) -> int:
        """N, rows that the experts compute."""
        return self.tokens * self.top_k

    def flops(self, direction: Direction) -> int:
        """Returns the operations of the experts' products: ``6 T D F K`` forward, twice that backward."""
        forward = 6 * self.slots * self.dim * self.hidden_dim
        return {"forward": forward, "backward": 2 * forward, "forward+backward": 3 * forward}[direction]

    def weight_bytes(self, experts: int, itemsize: int) -> int:
        """Returns the bytes of the weights of ``experts`` experts."""
        return 3 * experts * self.dim * self.hidden_dim * itemsize

    def least_bytes(self, direction: Direction, touched: int, itemsize: int, training: bool = True) -> int:
        """Returns the bytes that must cross the memory bus at least, if every cache were unbounded within one kernel.

        Forward reads the tokens and the weights of the ``touched`` experts once and writes the output, and
        when ``training`` the pre-activations. Backward reads the gradient of the output, the tokens, the
        pre-activations and the weights, and writes the gradients of tokens and of all weights.
        """
        tokens = self.tokens * self.dim * itemsize
        pre = 2 * self.slots * self.hidden_dim * itemsize
        weights = self.weight_bytes(touched, itemsize)
        forward = 2 * tokens + weights
        backward = 3 * tokens + pre + weights + self.weight_bytes(self.num_experts, itemsize)
        if direction == "forward":
            return forward + (pre if training else 0)
        return backward if direction == "backward" else forward + pre + backward

    def kept_floor(self, itemsize: int) -> int:
        """Returns the least that is kept for backward: input and pre-activations, ``2TD + 4TKF`` bytes in bf16."""
        return itemsize * (self.tokens * self.dim + 2 * self.slots * self.hidden_dim)

    def __str__(self) -> str:
        return f"T={self.tokens} D={self.dim} F={self.hidden_dim} E={self.num_experts} K={self.top_k}"


PRESETS: dict[str, Shape] = {
    "mixtral": Shape(8192, 4096, 14336, 8, 2),
    "olmoe": Shape(32768, 2048, 1024, 64, 8),
    "qwen3-30b-a3b": Shape(32768, 2048, 768, 128, 8),
    "deepseek-v3": Shape(8192, 7168, 2048, 256, 8),
    # The grid of SonicMoE: the same active work cut into ever more experts.
    "sonic-1.4b-256": Shape(24576, 1536, 256, 128, 8),
    "sonic-1.4b-512": Shape(24576, 1536, 512, 64, 4),
    "sonic-1.4b-1024": Shape(24576, 1536, 1024, 32, 2),
    "sonic-30b-256": Shape(32768, 4096, 256, 256, 16),
    "sonic-30b-512": Shape(32768, 4096, 512, 128, 8),
    "sonic-30b-1024": Shape(32768, 4096, 1024, 64, 4),
    # One fused vector of two modalities per study: width 2d, as recipes.medvlmoe builds it.
    "medvlmoe-paper": Shape(32, 1024, 4096, 8, 2),
    "medvlmoe-tiny": Shape(32, 256, 256, 8, 2),
    # Steps that Python may take longer to start than a GPU to run.
    "step-4096": Shape(4096, 1024, 1024, 16, 2),
    "step-16384": Shape(16384, 1024, 1024, 16, 2),
    "decode-mixtral-1": Shape(1, 4096, 14336, 8, 2),
    "decode-mixtral-32": Shape(32, 4096, 14336, 8, 2),
    "decode-qwen3-1": Shape(1, 2048, 768, 128, 8),
    "decode-qwen3-32": Shape(32, 2048, 768, 128, 8),
    "cpu": Shape(4096, 512, 1024, 8, 2),
    "cpu-olmoe": Shape(1024, 512, 256, 64, 8),
    "cpu-small-1": Shape(1, 64, 128, 8, 2),
    "cpu-small-16": Shape(16, 256, 512, 8, 2),
    "cpu-small-128": Shape(128, 256, 512, 8, 2),
}
"""Every workload that has a name."""

GROUPS: dict[str, tuple[str, ...]] = {
    "models": ("mixtral", "olmoe", "qwen3-30b-a3b", "deepseek-v3"),
    "sonic": tuple(name for name in PRESETS if name.startswith("sonic-")),
    "recipes": ("medvlmoe-paper", "medvlmoe-tiny"),
    "decode": ("medvlmoe-paper", *(name for name in PRESETS if name.startswith("decode-"))),
    "on-cpu": ("cpu", "cpu-olmoe", "medvlmoe-paper"),
    "cpu-small": tuple(name for name in PRESETS if name.startswith("cpu-small-")),
}
"""Names for several presets at once."""


def named_shapes(names: list[str]) -> dict[str, Shape]:
    """Returns the presets of ``names``, in which names of groups stand for their members.

    Raises:
        ValueError: If a name is neither a preset nor a group.
    """
    shapes: dict[str, Shape] = {}
    for name in names:
        if name not in PRESETS and name not in GROUPS:
            raise ValueError(f"preset must be one of {', '.join((*PRESETS, *GROUPS))}, got {name!r}.")
        for member in GROUPS.get(name, (name,)):
            shapes[member] = PRESETS[member]
    return shapes
