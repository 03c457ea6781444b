"""The counting sort, the comparison of few slots and the count of all of them, held bit for bit to the sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit_kernels import configs, targets
from moekit_kernels.plan import launches, launches_few, plan_dispatch, plan_dispatch_reference, schedule
from tests.oracles import poisoned_empty

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

quick = settings(max_examples=14, deadline=None, derandomize=True, database=None)


def _case(num_tokens, top_k, num_experts, skew, seed, left_out=None):
    generator = torch.Generator().manual_seed(seed)
    if skew == "one":
        ids = torch.full((num_tokens, top_k), num_experts // 2)
    elif skew == "zipf":
        ids = (num_experts ** torch.rand(num_tokens, top_k, generator=generator)).long() - 1
    else:
        ids = torch.randint(num_experts, (num_tokens, top_k), generator=generator)
    kept = None
    if left_out is not None:
        kept = torch.rand(num_tokens, top_k if left_out == "slots" else 1, generator=generator) > 0.3
        kept = kept.to(DEVICE)
    gates = (torch.rand(num_tokens, top_k, generator=generator) * 4).round()  # with ties
    gates[torch.rand(num_tokens, top_k, generator=generator) < 0.1] = float("nan")
    gates[torch.rand(num_tokens, top_k, generator=generator) < 0.1] = float("inf")
    gates[torch.rand(num_tokens, top_k, generator=generator) < 0.1] = -float("inf")
    return ids.to(DEVICE), kept, gates.to(DEVICE)


def _same(ids, num_experts, **options):
    with poisoned_empty():
        actual = plan_dispatch(ids, num_experts, impl="triton", **options)
    expected = plan_dispatch_reference(ids, num_experts, **options)
    assert actual.num_tokens == expected.num_tokens
    for name, a, b in zip(expected._fields[:6], actual[:6], expected[:6], strict=True):
        assert a.dtype == torch.int64, name
        assert torch.equal(a, b), name
    _check_tiles(actual)


def _check_tiles(plan):
    """The plan's schedules are those that a launch of their own gives, entry for entry."""
    num_rows, bare = plan.slot_of_row.shape[0], plan.order._replace(tiles=None)
    heights = configs.tile_heights(targets.target_of(DEVICE))
    assert torch.equal(plan.tiles, schedule.with_tiles(bare).tiles)
    for height in heights:
        (expected,) = schedule.tile_schedules(plan.offsets, num_rows, (height,))
        assert torch.equal(schedule.tiles_of(plan.order, num_rows, height), expected)


WAYS = {"compared": (2**30, 2**30), "counted": (2**30, -1), "many": (-1, -1)}


def _take(way, monkeypatch):
    """Makes every plan go one way, whatever its size."""
    few_slots, compared_slots = WAYS[way]
    monkeypatch.setattr(launches, "FEW_SLOTS", few_slots)
    monkeypatch.setattr(launches_few, "COMPARED_SLOTS", compared_slots)
    monkeypatch.setattr(launches_few, "COMPARED_WITH_MANY_EXPERTS", compared_slots)


@pytest.fixture(params=list(WAYS))
def way(request, monkeypatch):
    _take(request.param, monkeypatch)
    return request.param


_cases = given(
    st.sampled_from([1, 3, 7, 70, 300]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 5, 13]),
    st.sampled_from(["even", "zipf", "one"]),
    st.sampled_from([None, "slots", "tokens"]),
    st.sampled_from([None, 0, 1, 4, 50, "tensor"]),
    st.sampled_from(["position", "gate"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 99),
)


@pytest.mark.parametrize("way", list(WAYS))
def test_same_bits_as_the_sort(way, monkeypatch):
    _take(way, monkeypatch)

    @quick
    @_cases
    def check(num_tokens, top_k, num_experts, skew, left_out, capacity, policy, dtype, seed):
        ids, kept, gates = _case(num_tokens, top_k, num_experts, skew, seed, left_out)
        if capacity == "tensor":
            capacity = torch.tensor(3, device=DEVICE)
        gates = gates.to(dtype)
        _same(ids, num_experts, kept=kept, capacity=capacity, gates=gates, drop_policy=policy)

    check()


@pytest.mark.parametrize("num_experts", [127, 128])
@pytest.mark.parametrize("policy", ["position", "gate"])
def test_many_experts(num_experts, policy, way):
    ids, kept, gates = _case(90, 8, num_experts, "zipf", 1, "slots")
    _same(ids, num_experts, kept=kept, capacity=6, gates=gates, drop_policy=policy)


def test_more_experts_than_one_histogram_holds(monkeypatch):
    _take("many", monkeypatch)
    monkeypatch.setattr(launches, "_MOST_BINS", 64)
    ids, kept, _ = _case(150, 2, 150, "even", 2, "tokens")
    _same(ids, 150, kept=kept)


def test_no_tokens(way):
    ids = torch.zeros(0, 2, dtype=torch.int64, device=DEVICE)
    _same(ids, 3, capacity=1)
    _same(ids, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_any_integers_of_any_strides(dtype, way):
    ids, kept, gates = _case(2 * 40, 2, 5, "even", 3, "slots")
    ids, kept, gates = ids.to(dtype)[::2].flip(1).mT.contiguous().mT, kept[::2].flip(1), gates[1::2]
    assert not ids.is_contiguous()
    _same(ids, 5, kept=kept, capacity=9, gates=gates, drop_policy="gate")


def test_ids_out_of_range_write_nothing_outside(way):
    ids = torch.tensor([[0, 99], [-7, 2]], device=DEVICE)
    plan = launches.plan_slots(ids, 3, limit=launches.Limit(1))
    assert all(map(torch.equal, plan[:6], plan_dispatch_reference(ids, 3, capacity=1)[:6]))
    assert plan.slot_of_row.sort().values.tolist() == [0, 1, 2, 3]
    assert plan.offsets.tolist() == [0, 1, 1, 2]


# Around the slots of a program that places them, of a block that is counted, and of a step of counting.
_EDGES = [1, 127, 128, 129, 255, 256, 257, 511, 513, 2047, 2048, 2049, 2177]


@pytest.mark.parametrize(("way", "most_experts"), [("counted", 512), ("many", 200)])
def test_same_bits_around_the_edges_of_blocks(way, most_experts, monkeypatch):
    _take(way, monkeypatch)

    @quick
    @given(
        st.sampled_from(_EDGES),
        st.sampled_from([1, 2, 16, 62, 63, 128, most_experts]),
        st.sampled_from(["even", "zipf", "one"]),
        st.sampled_from([None, "slots"]),
        st.sampled_from([None, 0, 3, 100]),
        st.integers(0, 99),
    )
    def check(num_slots, num_experts, skew, left_out, capacity, seed):
        ids, kept, _ = _case(num_slots, 1, num_experts, skew, seed, left_out)
        _same(ids, num_experts, kept=kept, capacity=capacity)

    check()


@pytest.mark.parametrize("num_slots", [launches_few.COMPARED_SLOTS, launches.FEW_SLOTS])
@pytest.mark.parametrize("more", [0, 2])
def test_each_way_is_taken_by_size(num_slots, more):
    ids, kept, _ = _case(num_slots // 2 + more // 2, 2, 16, "even", 4, "tokens")
    _same(ids, 16, kept=kept)


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "capacity"), [(260, 1022, 9), (65, 1023, 2), (256, 1023, None), (257, 1023, None)]
)
def test_as_many_experts_as_a_histogram_of_all_slots_holds_and_more(num_tokens, num_experts, capacity):
    ids, kept, _ = _case(num_tokens, 4, num_experts, "zipf", 8, "slots")
    _same(ids, num_experts, kept=kept, capacity=capacity)


@pytest.mark.parametrize("heights", [(16, 32), (16, 32, 64, 128)])
@pytest.mark.parametrize("skew", ["even", "one"])
def test_schedules_of_several_heights(heights, skew, way, monkeypatch):
    monkeypatch.setattr(configs, "tile_heights", lambda target: heights)
    monkeypatch.setattr(launches, "tile_heights", lambda target: heights)
    monkeypatch.setattr(schedule, "tile_heights", lambda target: heights)
    ids, kept, _ = _case(130, 2, 33, skew, 7, "slots")
    _same(ids, 33, kept=kept)


def test_the_same_plan_twice(way):
    ids, kept, gates = _case(300, 2, 5, "zipf", 5, "slots")
    once, again = (
        plan_dispatch(ids, 5, kept=kept, capacity=40, gates=gates, drop_policy="gate", impl="triton") for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip((*once.order, *once[:6]), (*again.order, *again[:6]), strict=True))


@pytest.mark.parametrize("capacity", [None, 2, "tensor"])
def test_opcheck(capacity):
    ids, kept, gates = _case(9, 2, 3, "even", 6, "tokens")
    limit_at = torch.tensor(2, device=DEVICE) if capacity == "tensor" else None
    limit = capacity if isinstance(capacity, int) else None
    torch.library.opcheck(torch.ops.moekit.plan_dispatch, (ids, 3, kept, limit, limit_at, gates if capacity else None))


def test_compiles_once_for_all_sizes():
    frames = []

    def backend(module, inputs):
        frames.append(module)
        return module.forward

    def plan(ids):
        return plan_dispatch(ids, 5, capacity=3, impl="triton")

    torch._dynamo.reset()
    compiled = torch.compile(plan, fullgraph=True, dynamic=True, backend=backend)
    for num_tokens in (3, 7, 20):
        ids, _, _ = _case(num_tokens, 2, 5, "even", num_tokens)
        for actual, expected in zip(compiled(ids)[:6], plan(ids)[:6], strict=True):
            assert torch.equal(actual, expected)
        assert torch.equal(compiled(ids).tiles, plan(ids).tiles)
    assert len(frames) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": torch.ones(2, 1)}, r"kept must be a bool tensor .* got torch.float32"),
        ({"capacity": torch.ones(1, dtype=torch.int64)}, r"capacity must be an integer .* of shape \(1,\)"),
        ({"capacity": torch.tensor(1.0)}, r"capacity must be an integer .* got torch.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        plan_dispatch(torch.zeros(2, 2, dtype=torch.int64, device=DEVICE), 2, impl="triton", **options)


def test_too_many_slots_are_named():
    ids = torch.zeros(1, 1, dtype=torch.int8, device=DEVICE).expand(2**30, 2)
    with pytest.raises(ValueError, match=r"expert_ids must have fewer than 2\*\*31 elements, got 2147483648"):
        launches.plan_slots(ids, 2)
