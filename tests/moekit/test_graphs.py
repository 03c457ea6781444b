"""CUDA graphs of a layer: on a GPU, replays on other data and routings; without one, everything but the capture."""

import copy

import pytest
import torch
from torch import Tensor, nn

from moekit import MoEOutput, SparseMoE, graphed, load_balancing_loss, router_z_loss
from moekit.graphs import _Graphed

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def _in_place(module: nn.Module, sample: tuple[Tensor, ...], num_warmup_iters: int, allow_unused_input: bool):
    """Stands for ``torch.cuda.make_graphed_callables``: each call writes where the last one did."""
    forward, training = module.forward, module.training
    parameters = tuple(module.parameters())
    places: dict[str, list[Tensor | None]] = {}

    def write(name: str, values) -> tuple[Tensor | None, ...]:
        static = places.setdefault(name, [None if each is None else each.detach().clone() for each in values])
        for place, value in zip(static, values, strict=True):
            if place is not None:
                place.copy_(value.detach())
        return tuple(None if place is None else place.detach() for place in static)

    class Static(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *surface: Tensor):
            with torch.enable_grad():
                ctx.leaves = [
                    each.detach().requires_grad_(each.requires_grad and each.is_floating_point())
                    for each in surface[: len(sample)]
                ]
                ctx.outputs = forward(*ctx.leaves)
            return write("outputs", ctx.outputs)

        @staticmethod
        def backward(ctx, *grads: Tensor | None):
            surface = (*ctx.leaves, *parameters)
            inputs = [each for each in surface if each.requires_grad]
            pairs = [(o, g) for o, g in zip(ctx.outputs, grads, strict=True) if o.requires_grad]
            outputs, output_grads = zip(*pairs, strict=True)
            computed = iter(torch.autograd.grad(outputs, inputs, output_grads, allow_unused=allow_unused_input))
            return write("gradients", [next(computed) if each.requires_grad else None for each in surface])

    def replay(*inputs: Tensor):
        return Static.apply(*inputs, *parameters) if module.training == training else forward(*inputs)

    module.forward = replay
    return module


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch):
    """Captures on a GPU, and otherwise by what stands for it."""
    if torch.cuda.is_available():
        return graphed
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", _in_place)
    return lambda module, *sample, **keywords: _Graphed(
        module, {**{str(i): each for i, each in enumerate(sample)}, **keywords}, len(sample), 3
    )


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _layer(**options) -> SparseMoE:
    torch.manual_seed(0)
    return SparseMoE.ffn(16, 24, num_experts=4, top_k=2, device=DEVICE, **options)


def _tokens(seed: int, requires_grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(12, 16, generator=generator).to(DEVICE).requires_grad_(requires_grad)


def _loss(output: MoEOutput) -> Tensor:
    return output.output.square().sum() + load_balancing_loss(output.stats) + router_z_loss(output.stats)


def test_replays_on_other_data_and_routings_equal_the_layer(capture):
    layer = _layer()
    reference = copy.deepcopy(layer)
    replayed = capture(layer, _tokens(0))
    counts = set()
    for seed in range(1, 4):
        x, y = _tokens(seed), _tokens(seed)
        output, expected = replayed(x), reference(y)
        assert isinstance(output, MoEOutput)
        torch.testing.assert_close(output, expected)
        counts.add(tuple(expected.stats.tokens_per_expert.tolist()))
        _loss(output).backward()
        _loss(expected).backward()
        torch.testing.assert_close(x.grad, y.grad)
    assert len(counts) > 1, "the routings must differ"
    for mine, theirs in zip(layer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)  # of three calls, accumulated


def test_new_values_of_parameters_are_used(capture):
    layer = _layer()
    replayed = capture(layer, _tokens(0))
    before = replayed(_tokens(1)).output.clone()
    with torch.no_grad():
        layer.experts.down_proj.mul_(2)
    torch.testing.assert_close(replayed(_tokens(1)).output, 2 * before)


def test_inputs_by_name_and_outputs_that_are_no_tensors(capture):
    layer = _layer()
    mask = torch.ones(12, dtype=torch.bool, device=DEVICE)
    replayed = capture(layer, _tokens(0), mask=mask)
    other = mask.clone()
    other[5:] = False
    torch.testing.assert_close(replayed(_tokens(1), mask=other), layer(_tokens(1), mask=other))

    class WithoutStats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> MoEOutput:
            return self.layer(x, stats=False)

    assert capture(WithoutStats(), _tokens(0))(_tokens(1)).stats is None


def test_another_mode_runs_the_layer_itself(capture):
    layer = _layer()
    replayed = capture(layer, _tokens(0))
    replayed.eval()
    assert not layer.training
    torch.testing.assert_close(replayed(_tokens(1)), layer(_tokens(1)))


def test_frozen_layers_and_inference(capture):
    layer = _layer().requires_grad_(False)
    replayed = capture(layer, _tokens(0, requires_grad=False))
    with torch.no_grad():
        torch.testing.assert_close(replayed(_tokens(1)), layer(_tokens(1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x[1:], r"input 0 must be as in the sample, \(12, 16\) of torch.float32 on .*got \(11, 16\)"),
        (lambda x: x.double(), "got .*torch.float64.*capture one graph for each shape"),
    ],
    ids=["shape", "dtype"],
)
def test_inputs_unlike_the_sample_are_an_error(capture, make, message):
    replayed = capture(_layer(), _tokens(0))
    with pytest.raises(ValueError, match=message):
        replayed(make(_tokens(1)))


def test_a_gradient_that_the_graph_does_not_compute_is_an_error(capture):
    replayed = capture(_layer(), _tokens(0, requires_grad=False))
    with pytest.raises(ValueError, match="input 0 requires a gradient, which the graph does not compute: give a samp"):
        replayed(_tokens(1))


def test_other_inputs_than_the_samples_are_an_error(capture):
    replayed = capture(_layer(), _tokens(0))
    mask = torch.ones(12, dtype=torch.bool, device=DEVICE)
    with pytest.raises(ValueError, match=r"1 by position and \[\] by name, got 1 and \['mask'\]"):
        replayed(_tokens(1), mask=mask)
    with pytest.raises(ValueError, match=r"got 2 and \[\]"):
        replayed(_tokens(1), _tokens(2))


def test_samples_must_be_tensors_on_a_gpu():
    with pytest.raises(ValueError, match="sample must be the inputs of the module, got none"):
        graphed(_layer())
    with pytest.raises(ValueError, match=r"sample 0 must be a tensor on a GPU, where graphs are captured, got on cpu"):
        graphed(_layer(), torch.zeros(12, 16))
    with pytest.raises(ValueError, match=r"sample mask must be a tensor on a GPU.*got a list"):
        graphed(_layer(), mask=[True])


@needs_gpu
@pytest.mark.parametrize("tokens", [32, 1024])
def test_kernels_replay_right_in_bf16(tokens: int):
    layer = SparseMoE.ffn(256, 512, num_experts=8, top_k=2, impl="triton", device="cuda", dtype=torch.bfloat16)
    options = {"device": "cuda", "dtype": torch.bfloat16, "requires_grad": True}
    replayed = graphed(layer, torch.randn(tokens, 256, **options))
    for _ in range(3):
        x = torch.randn(tokens, 256, **options)
        y = x.detach().clone().requires_grad_()
        grad = torch.randn_like(x)
        output, expected = replayed(x), layer(y)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        layer.zero_grad()
        output.output.backward(grad)
        gradients = [parameter.grad.clone() for parameter in layer.parameters()]
        layer.zero_grad()
        expected.output.backward(grad)
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)
        for gradient, parameter in zip(gradients, layer.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=0)
