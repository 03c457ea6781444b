"""Compares the rules of a block with those of the layer that it becomes, on small copies of both."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moekit.interop._transformers_read import BlockContents, read_block

TOKENS = 5
DIM, HIDDEN, SHARED = 6, 4, 3
# The block takes its softmax in float32 in every dtype: a few roundings of 6e-8.
TOLERANCE = 1e-5


def check_small_copy(block: nn.Module, contents: BlockContents, build: Callable[[BlockContents], nn.Module]) -> None:
    """Checks that a small copy of a block gives the output and gradients of the layer built of it.

    The copy has the block's classes, experts and settings, and random float64 weights of small widths on CPU, so the
    check costs the same whatever the block's size, device and dtype, also for a block on the meta device. It takes
    no random numbers from the default generators.

    Raises:
        ValueError: If they differ, in training or evaluation mode.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        small = _small_copy(block, contents)
        layer = build(read_block(small))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, TOKENS, DIM, generator=generator, dtype=torch.float64, device="cpu")
        for training in (True, False):
            theirs = _output_and_gradients(small.train(training), x)
            mine = _output_and_gradients(layer.train(training), x)
            for name, their, my in zip(("output", "gradient of the input"), theirs, mine, strict=True):
                difference = (their - my).abs().max().item()
                if not difference <= TOLERANCE * max(1.0, their.abs().max().item()):
                    raise ValueError(
                        f"block must compute what its weights and settings say, got a {type(block).__name__} whose "
                        f"{name} in {'training' if training else 'evaluation'} differs by {difference:.2g} from the "
                        "layer's on small random weights: its class has a rule that is not understood."
                    )


def _small_copy(block: nn.Module, contents: BlockContents) -> nn.Module:
    """Returns a copy of the block with random weights, whose widths are those above."""
    generator = torch.Generator().manual_seed(0)
    num_experts = contents.down_proj.shape[0]

    def random(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu"))

    replaced: dict[int, object] = {
        id(contents.gate): random(num_experts, DIM),
        id(contents.gate_up_proj): random(num_experts, 2 * HIDDEN, DIM),
        id(contents.down_proj): random(num_experts, DIM, HIDDEN),
    }
    widths = {"hidden_dim": DIM, "hidden_size": DIM, "intermediate_dim": HIDDEN, "intermediate_size": SHARED}
    if contents.shared is not None:
        shapes = ((SHARED, DIM), (SHARED, DIM), (DIM, SHARED), (1, DIM))
        for weight, shape in zip(contents.shared, shapes, strict=True):
            replaced[id(weight)] = random(*shape)
    # deepcopy takes what its memo holds in place of a copy.
    small = copy.deepcopy(block, replaced)
    for module in small.modules():
        for name, width in widths.items():
            if name in vars(module):
                setattr(module, name, width)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        if "config" in vars(module):
            # The plain loop over experts, which runs on CPU in float64.
            vars(module)["config"]._experts_implementation = "eager"
    return small


def _output_and_gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    output = module(x.clone())  # a copy, because a block may write into its input
    output = output if isinstance(output, Tensor) else output[0]
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
    (gradient,) = torch.autograd.grad((output * weight).sum(), x)
    return output.detach(), gradient
