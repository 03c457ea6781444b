"""All layers that can run here compute the same function; those that cannot give the reason."""

import pytest
import torch

from benchmarks.check import agreement, disagreement, expected_of, relative_error
from benchmarks.peers import PEERS, peers_named
from benchmarks.peers.base import first_line, not_importable
from benchmarks.runner import CaseOptions, run_case
from benchmarks.shapes import Shape
from benchmarks.workload import draw
from tests.oracles import naive_experts, stacked_expert

CPU = torch.device("cpu")
ON_CPU = ["moekit-torch", "expert-loop", "grouped_mm", "transformers-eager", "transformers-grouped_mm"]
GPU_ONLY = ["liger", "scattermoe", "megablocks", "sonicmoe", "tutel"]


def test_the_formulas_are_the_layer_token_by_token():
    """Outputs against a loop over tokens; gradients against autograd through it."""
    workload = draw(Shape(9, 6, 5, 4, 2), "zipf", CPU, torch.float64)
    leaves = [t.requires_grad_() for t in (workload.x, workload.gates, workload.up, workload.down)]
    expert = stacked_expert(workload.up, workload.down, None, None, "swiglu")
    output = naive_experts(workload.x, workload.gates, workload.ids, None, expert, 6)
    gradients = torch.autograd.grad(output, leaves, workload.grad)
    for actual, expected in zip(expected_of(workload), (output, *gradients), strict=True):
        assert relative_error(actual, expected) < 1e-12


@pytest.mark.parametrize("skew", ["uniform", "zipf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*ON_CPU, "transformers-batched_mm"])
def test_a_peer_gives_the_output_and_gradients_of_the_formulas(name, dtype, skew):
    """Same weights, same routing."""
    workload = draw(Shape(24, 16, 24, 6, 2), skew, CPU, dtype)
    peer = peers_named([name])[0]
    assert peer.absent(workload) is None
    errors = agreement(peer.build(workload), workload, expected_of(workload))
    assert set(errors) == {"output", "x", "gates", "up", "down"}
    assert disagreement(errors, dtype) is None, errors


BLOCKS = [f"transformers-block-{way}" for way in ("eager", "grouped_mm", "batched_mm")]


@pytest.mark.parametrize("name", ["dense", "moekit-layer", "st-moe", "st-moe-dropping", *BLOCKS])
def test_a_layer_of_its_own_runs_and_trains(name):
    """Ceilings and whole layers: an output of the right shape and a gradient for every leaf."""
    workload = draw(Shape(16, 16, 24, 4, 2), "uniform", CPU, torch.float32)
    peer = peers_named([name])[0]
    reason = peer.absent(workload)
    if reason is not None and reason.endswith("not installed"):
        pytest.skip(reason)
    assert reason is None
    layer = peer.build(workload)
    x = workload.x.detach().requires_grad_()
    out = layer.forward(x)
    assert out.shape == x.shape
    gradients = torch.autograd.grad(out, [x, *layer.leaves.values()], workload.grad)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].abs().sum() > 0


def test_the_dense_ceiling_does_as_many_operations():
    """Its weights take part in ``6 T D F K`` operations."""
    shape = Shape(8, 16, 24, 4, 3)
    layer = peers_named(["dense"])[0].build(draw(shape, "uniform", CPU, torch.float32))
    weights = sum(weight.numel() for weight in layer.leaves.values())
    assert 2 * shape.tokens * weights == shape.flops("forward")


def test_every_peer_gives_a_record_and_the_absent_say_why():
    """Nothing is dropped in silence."""
    workload = draw(Shape(8, 16, 16, 4, 2), "uniform", CPU, torch.float32)
    case_options = CaseOptions(["forward"], seconds=0.0)
    records = list(run_case("tiny", workload, "fp32", PEERS, case_options))
    assert [record.name for record in records] == [peer.name for peer in PEERS]
    by_name = {record.name: record for record in records}
    for name in GPU_ONLY:
        assert by_name[name].status == "absent"
        assert "runs on a GPU only" in by_name[name].reason
    for name in ON_CPU:
        assert by_name[name].status == "ok"
        assert by_name[name].disagrees is None
        assert by_name[name].median_ms is not None
        assert by_name[name].saved_bytes is not None


def test_a_peer_that_is_wrong_is_marked_and_one_that_breaks_is_reported(monkeypatch):
    """A planted error in the weights, and a planted exception."""
    workload = draw(Shape(8, 16, 16, 4, 2), "uniform", CPU, torch.float32)
    wrong, broken = peers_named(["expert-loop", "moekit-torch"])
    build = type(wrong).build
    monkeypatch.setattr(type(wrong), "build", lambda self, w: build(self, w._replace(down=w.down * 1.5)))

    def fail(self, workload):
        raise RuntimeError("planted\nsecond line")

    monkeypatch.setattr(type(broken), "build", fail)
    case_options = CaseOptions(["forward"], seconds=0.0, memory=False)
    records = list(run_case("tiny", workload, "fp32", [wrong, broken], case_options))
    assert records[0].disagrees == pytest.approx(0.5, rel=0.1)
    assert records[0].median_ms is not None
    assert (records[1].status, records[1].reason) == ("failed", "RuntimeError: planted")


def test_peers_take_turns_and_one_that_breaks_is_left_out(monkeypatch):
    """Repetition by repetition, and each still has its errors and its memory."""
    workload = draw(Shape(8, 16, 16, 4, 2), "uniform", CPU, torch.float32)
    seen: list[str] = []
    good, other, broken = peers_named(["expert-loop", "moekit-torch", "grouped_mm"])
    for peer in (good, other, broken):
        build = type(peer).build

        def watched(self, workload, build=build):
            layer = build(self, workload)

            def forward(x):
                if self is broken and not torch.is_grad_enabled():
                    raise RuntimeError("planted")
                seen.append(self.name)
                return layer.forward(x)

            return layer._replace(forward=forward)

        monkeypatch.setattr(type(peer), "build", watched)
    case_options = CaseOptions(["forward"], seconds=0.0, in_turn=True, least=3)
    records = list(run_case("tiny", workload, "fp32", [good, broken, other], case_options))
    assert [(r.name, r.status) for r in records] == [("grouped_mm", "failed"), (good.name, "ok"), (other.name, "ok")]
    assert all({*seen[start : start + 2]} == {good.name, other.name} for start in range(len(seen) - 6, len(seen), 2))
    assert all(r.disagrees is None and r.errors and r.saved_bytes and r.median_ms for r in records[1:])


def test_what_cannot_be_imported_gives_a_reason():
    """Missing, or present and broken."""
    assert not_importable("torch", "torch") is None
    assert not_importable("no_such_package_at_all.part", "that") == "that is not installed"
    assert first_line(ValueError()) == "ValueError"


def test_grouped_mm_is_absent_where_it_would_raise():
    """Its rows must be a multiple of 16 bytes."""
    grouped = peers_named(["grouped_mm"])[0]
    odd = draw(Shape(4, 15, 16, 2, 1), "uniform", CPU, torch.float32)
    assert grouped.absent(odd) == "F.grouped_mm needs rows of a multiple of 16 bytes"
    wide = draw(Shape(4, 16, 16, 2, 1), "uniform", CPU, torch.float64)
    assert grouped.absent(wide) == "F.grouped_mm does not take float64"


def test_batched_mm_is_absent_where_its_copies_would_not_fit():
    """It copies an expert's weights for every slot."""
    shape = Shape(4096, 256, 512, 2, 2)
    reason = peers_named(["transformers-batched_mm"])[0].absent(draw(shape, "uniform", CPU, torch.float32))
    assert reason is not None
    assert "12 GiB" in reason


def test_unknown_peers_are_named():
    """The message lists those that exist."""
    with pytest.raises(ValueError, match=r"peers must be among dense, .*, got 'faster'"):
        peers_named(["faster"])


def test_infinite_errors_are_not_hidden():
    """NaN in an output is the worst error, not none."""
    assert relative_error(torch.tensor([[float("nan")]]), torch.ones(1, 1)) == float("inf")
