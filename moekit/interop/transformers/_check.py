"""Compares a block with the layer that it becomes, or with itself swapped, on small copies."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moekit.interop.transformers._parts import modules_of, size_of, tensor_at
from moekit.interop.transformers._read import BlockContents, read_block
from moekit.layer import MoEOutput

TOKENS = 5
# Of the widths; numbers of experts stay.
SMALL = {"D": 6, "L": 5, "F": 4, "S": 3}
# The block takes its softmax in float32 in every dtype: a few roundings of 6e-8.
TOLERANCE = 1e-5


def check_small_copy(
    block: nn.Module, contents: BlockContents, become: Callable[[nn.Module, BlockContents], nn.Module]
) -> None:
    """Checks that a small copy of a block gives the outputs and gradient of what it becomes.

    The copy has the block's classes, experts and settings, and random float64 weights of small widths on CPU, so the
    check costs the same whatever the block's size, device and dtype, also for a block on the meta device. It takes
    no random numbers from the default generators.

    Args:
        block: The block.
        contents: What was read of it.
        become: Returns what a copy and its contents become; it may change the copy.

    Raises:
        ValueError: If they differ, in training or evaluation mode, or the copy does not run.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, TOKENS, SMALL["D"], generator=generator, dtype=torch.float64, device="cpu")
        # Noise on the tokens of a block is refused in training.
        for training in (False,) if contents.rule.input_jitter > 0.0 else (True, False):
            mode = "training" if training else "evaluation"
            try:
                small = _small_copy(block, contents).train(training)
                theirs = _outputs_and_gradient(small, x)
                mine = _outputs_and_gradient(become(small, read_block(small)).train(training), x)
            except ValueError:
                raise
            except Exception as error:
                raise ValueError(
                    f"block must be one of which a copy with small weights runs, got a {type(block).__name__} that "
                    f"raises in {mode}: {error}. Its class has a rule that is not understood."
                ) from error
            # A layer returns its output alone, a block maybe more.
            for (name, their), (_, my) in zip(theirs.items(), mine.items(), strict=False):
                difference = (their - my.view(their.shape)).abs().max().item()
                if not difference <= TOLERANCE * max(1.0, their.abs().max().item()):
                    raise ValueError(
                        f"block must compute what its weights and settings say, got a {type(block).__name__} whose "
                        f"{name} in {mode} differs by {difference:.2g} from the layer's on small random weights: its "
                        "class has a rule that is not understood."
                    )


def _small_copy(block: nn.Module, contents: BlockContents) -> nn.Module:
    """Returns a copy of the block with random weights, whose widths are those above."""
    generator = torch.Generator().manual_seed(0)
    sizes = contents.sizes | {letter: size for letter, size in SMALL.items() if letter in contents.sizes}
    replaced: dict[int, object] = {}
    for path, letters in contents.parts.shapes.items():
        shape = [size_of(each, sizes) or 0 for each in letters]
        weight = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")
        tensor = tensor_at(block, path)
        replaced[id(tensor)] = nn.Parameter(weight) if isinstance(tensor, nn.Parameter) else weight
    # deepcopy takes what its memo holds in place of a copy.
    small = copy.deepcopy(block, replaced)
    for path, module in modules_of(small).items():
        for name, known in contents.parts.settings.get(path, {}).items():
            if isinstance(known, str) and name in vars(module):
                setattr(module, name, size_of(known, sizes))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        if "config" in vars(module):
            # The plain loop over experts, which runs on CPU in float64.
            vars(module)["config"]._experts_implementation = "eager"
    return small


def _outputs_and_gradient(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Returns the gradient of the input, and all outputs."""
    x = x.clone().requires_grad_()
    torch.default_generator.manual_seed(0)  # the sparse mixer draws experts in training; forked by the caller
    returned = module(x.clone())  # a copy, because a block may write into its input
    if isinstance(returned, MoEOutput):
        returned = returned.output
    outputs = (returned,) if isinstance(returned, Tensor) else returned
    output = outputs[0].view(x.shape)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape)
    (gradient,) = torch.autograd.grad((output * weight).sum(), x)
    others = {f"output {place + 2}": each.detach() for place, each in enumerate(outputs[1:])}
    return {"output": output.detach(), "gradient of the input": gradient} | others
