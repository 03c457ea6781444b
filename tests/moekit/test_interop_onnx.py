"""Layers give the same in ONNX Runtime as here, also for other numbers of tokens than they were exported with."""

import sys

import pytest
import torch
from torch import nn

from moekit import (
    FFN,
    ExpertChoiceRouter,
    FFNExperts,
    HardRouter,
    ModuleExperts,
    SoftMoE,
    SparseMixerRouter,
    SparseMoE,
    TopKRouter,
    ZeroComputationExperts,
    ZeroExpert,
)
from moekit.interop.onnx import translation_table
from tests.oracles import assert_close

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# torch's exporter and what it calls, under some versions
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DIM, HIDDEN, EXPERTS, TOP_K = 8, 6, 4, 2
DYNAMIC = torch.export.Dim.DYNAMIC


class _Exported:
    """A module as ONNX Runtime computes it."""

    def __init__(self, path, module, args, dynamic):
        program = torch.onnx.export(
            module.eval(), args, dynamo=True, dynamic_shapes=dynamic, verbose=False,
            custom_translation_table=translation_table(),
        )  # fmt: skip
        program.save(str(path / "module.onnx"))
        self.session = onnxruntime.InferenceSession(str(path / "module.onnx"), providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        names = [each.name for each in self.session.get_inputs()]
        feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in self.session.run(None, feed)]


def _router(**options) -> TopKRouter:
    return TopKRouter(DIM, EXPERTS, TOP_K, impl="reference", **options)


def _experts(**options) -> FFNExperts:
    return FFNExperts(DIM, HIDDEN, EXPERTS, impl="reference", **options)


LAYERS = {
    "softmax": lambda: SparseMoE.ffn(DIM, HIDDEN, EXPERTS, TOP_K, impl="reference"),
    "shared expert, biases, capacity": lambda: SparseMoE.ffn(
        DIM, HIDDEN, EXPERTS, TOP_K, impl="reference", bias=True, activation="gelu", shared_hidden_dim=5,
        capacity_factor=0.7,
    ),
    "largest gates": lambda: SparseMoE(_router(), _experts(), capacity_factor=1.0, drop_policy="gate"),
    "groups of sigmoid": lambda: SparseMoE(
        _router(scoring="sigmoid", selection_bias=True, num_groups=2, topk_groups=1), _experts()
    ),
    "sqrt-softplus beside identity experts": lambda: SparseMoE(
        TopKRouter(
            DIM, EXPERTS + 2, TOP_K, impl="reference", scoring="sqrt_softplus", num_groups=2, topk_groups=1,
            group_score="max",
        ),
        ZeroComputationExperts(_experts(), num_zero=1, num_identity=1),
    ),
    "sparse mixer": lambda: SparseMoE(SparseMixerRouter(DIM, EXPERTS, TOP_K, epsilon=0.3), _experts()).eval(),
    "one expert": lambda: SparseMoE(HardRouter(DIM, EXPERTS), _experts()),
    "expert choice": lambda: SparseMoE(ExpertChoiceRouter(DIM, EXPERTS), _experts()),
    "modules": lambda: SparseMoE(
        _router(), ModuleExperts([nn.Linear(DIM, DIM), nn.Identity(), ZeroExpert(), FFN(DIM, HIDDEN)])
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if "capacity" in name else pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
)
def test_output_and_statistics_agree_at_any_number_of_tokens(name, tmp_path):
    moe = LAYERS[name]()
    for parameter in moe.parameters():  # logits far apart, so that rounding ranks nothing otherwise
        nn.init.normal_(parameter)
    exported = _Exported(tmp_path, moe, (torch.randn(10, DIM),), ({0: DYNAMIC},))
    for num_tokens in (1, 2, 3, 7, 64):
        x = torch.randn(num_tokens, DIM)
        output, stats = moe(x)
        theirs, *their_stats = exported(x)
        assert_close(theirs, output.detach())
        assert output.abs().max() > 0.01
        for field, their in zip(stats, their_stats, strict=True):
            torch.testing.assert_close(their, field.detach(), rtol=1e-5, atol=1e-5 if field.is_floating_point() else 0)


@pytest.mark.slow
def test_two_dynamic_dimensions_and_a_mask(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.moe = SparseMoE.ffn(DIM, HIDDEN, EXPERTS, TOP_K, impl="reference", capacity_factor=1.0)

        def forward(self, x, mask):
            return self.moe(x, mask=mask).output

    module = Masked()
    dynamic = ({0: DYNAMIC, 1: DYNAMIC}, {0: DYNAMIC, 1: DYNAMIC})
    exported = _Exported(tmp_path, module, (torch.randn(2, 5, DIM), torch.rand(2, 5) > 0.3), dynamic)
    for shape in ((1, 1), (3, 4), (4, 9)):
        x, mask = torch.randn(*shape, DIM), torch.rand(shape) > 0.4
        assert_close(exported(x, mask)[0], module(x, mask).detach())


@pytest.mark.slow
def test_soft_moe(tmp_path):
    module = SoftMoE(DIM, _experts(), slots_per_expert=2)
    exported = _Exported(tmp_path, module, (torch.randn(2, 5, DIM),), ({0: DYNAMIC, 1: DYNAMIC},))
    x = torch.randn(3, 11, DIM)
    assert_close(exported(x)[0], module(x).output.detach())


class _Sorts(nn.Module):
    def forward(self, x, y):
        options = [{"dim": dim, "descending": descending} for dim in (0, -1) for descending in (False, True)]
        return [each.sort(stable=True, **option) for each in (x, y) for option in options]


def test_equal_values_keep_their_order(tmp_path):
    module, dynamic = _Sorts(), ({0: DYNAMIC, 1: DYNAMIC},) * 2
    exported = _Exported(tmp_path, module, (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(3, 5)), dynamic)
    x = torch.randint(0, 3, (4, 50))
    expected = [field for sorted_and_order in module(x, x.float()) for field in sorted_and_order]
    for theirs, mine in zip(exported(x, x.float()), expected, strict=True):
        assert torch.equal(theirs, mine)


class _Searches(nn.Module):
    def forward(self, boundaries, values):
        options = [{}, {"right": True}, {"side": "right"}, {"out_int32": True}]
        one = [torch.searchsorted(boundaries[0], values, **option) for option in options]
        return one + [torch.searchsorted(boundaries, values, **option) for option in options]


def test_values_among_equal_boundaries(tmp_path):
    module, dynamic = _Searches(), ({1: DYNAMIC}, {1: DYNAMIC})
    exported = _Exported(tmp_path, module, (torch.zeros(3, 4), torch.zeros(3, 5)), dynamic)
    inputs = torch.randint(0, 4, (3, 9)).float().sort().values, torch.randint(-1, 5, (3, 20)).float()
    for theirs, mine in zip(exported(*inputs), module(*inputs), strict=True):
        assert theirs.dtype == mine.dtype
        assert torch.equal(theirs, mine)


def test_a_sorter_is_refused():
    with pytest.raises(ValueError, match="searchsorted with a sorter has no translation: sort the boundaries first"):
        translation_table()[torch.ops.aten.searchsorted.Tensor](None, None, sorter=object())


def test_without_onnxscript_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'translation_table needs onnxscript: pip install "moekit\[onnx\]"'):
        translation_table()
