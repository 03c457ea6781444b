"""What would be started on a GPU, recorded from tensors without data: how many kernels, and with which loads."""

import pytest
import torch

from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.availability import interpreting, triton_is_installed
from moekit_kernels.configs import tile_heights
from moekit_kernels.runtime import record
from moekit_kernels.targets import GFX942, SM_80, SM_90, SM_100

if not triton_is_installed() or interpreting():
    pytest.skip("launches of Triton kernels are recorded, not interpreted", allow_module_level=True)

from moekit_kernels.grouped_gemm.launches import use_descriptor
from moekit_kernels.moe_ffn import ExpertWeights, launches_few_rows
from moekit_kernels.moe_ffn import launches as moe_ffn
from moekit_kernels.plan import RowOrder
from moekit_kernels.plan import launches as plan
from moekit_kernels.plan.schedule import schedule_bounds

NVIDIA = [SM_80, SM_90, SM_100]


def _empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _index(*shape):
    return _empty(*shape, dtype=torch.int64)


def _order(target, tokens, top_k, experts):
    num_rows = tokens * top_k
    tiles = _empty(schedule_bounds(num_rows, experts, tile_heights(target))[-1], 2, dtype=torch.int32)
    return RowOrder(_index(num_rows), _index(num_rows), _index(experts + 1), _index(tokens, top_k), tiles)


def _launches(target, tokens=4096, dim=256, hidden=512, experts=8, top_k=2, activation="swiglu", **options):
    """The launches of forward and of backward."""
    dtype, bias = options.get("dtype", torch.bfloat16), options.get("bias", False)
    wide = hidden * (2 if ACTIVATIONS[activation].gated else 1)
    tensors = (
        _empty(tokens, dim, dtype=dtype),
        _empty(tokens, top_k, dtype=torch.float32),
        _order(target, tokens, top_k, experts),
        ExpertWeights(
            _empty(experts, wide, dim, dtype=dtype),
            _empty(experts, dim, hidden, dtype=dtype),
            _empty(experts, wide, dtype=dtype) if bias else None,
            _empty(experts, dim, dtype=dtype) if bias else None,
        ),
    )
    with record(target) as forward:
        out, pre, kept = moe_ffn.forward(*tensors, activation, True, False)
    with record(target) as backward:
        moe_ffn.backward(out, *tensors, pre, kept, activation, True, True, True)
    return forward, backward


def _names(launches):
    return [launch.kernel.fn.__name__ for launch in launches]


def test_as_few_launches_as_documented():
    forward, backward = _launches(SM_90)
    gemm = "grouped_gemm_fwd_kernel"
    assert _names(forward) == [gemm, gemm, "combine_fwd_kernel"]
    assert _names(backward) == ["moe_ffn_bwd_act_kernel", gemm, "combine_inputs_kernel", "grouped_gemm_bwd_dw_kernel"]
    assert len(_launches(SM_90, bias=True)[1]) == 7


def test_rows_are_gathered_into_memory_where_the_copy_engine_saves_more():
    """At Mixtral's widths all rows, at smaller ones those that two products read, or none; no schedule besides."""
    gemm, copy, weights = "grouped_gemm_fwd_kernel", "copy_to_rows_kernel", "grouped_gemm_bwd_dw_rows_kernel"
    activation, combine_inputs = "moe_ffn_bwd_act_kernel", "combine_inputs_kernel"
    forward, backward = _launches(SM_90, tokens=8192, dim=4096, hidden=14336)
    assert _names(forward) == [copy, gemm, gemm, "combine_fwd_kernel"]
    assert _names(backward) == [copy, activation, weights, gemm, combine_inputs, copy, weights]
    for launch in (*forward[1:3], backward[3]):
        assert launch.arguments["gather_ptr"] is None
        assert launch.arguments["X_TMA"]
    assert backward[1].arguments["token_ptr"] is None
    forward, backward = _launches(SM_90, tokens=32768, dim=2048, hidden=768, experts=128, top_k=8)
    assert _names(forward) == [gemm, gemm, "combine_fwd_kernel"]
    assert _names(backward) == [copy, activation, weights, gemm, combine_inputs, copy, weights]
    forward, backward = _launches(SM_80, tokens=8192, dim=4096, hidden=14336)
    assert _names(forward) == [gemm, gemm, "combine_fwd_kernel"]
    assert _names(backward) == [activation, gemm, combine_inputs, "grouped_gemm_bwd_dw_kernel"]


@pytest.mark.parametrize(
    ("tokens", "limit", "kernels"),
    [
        (128, None, "few"),
        (128, plan.Limit(9), "few_drop few"),
        (128, plan.Limit(9, gates=_empty(128, 2)), "few_drop few"),
        (129, None, "count_all"),
        (4096, None, "count_all"),
        (4096, plan.Limit(9), "count_all_drop count_all"),
        (4096, plan.Limit(9, gates=_empty(4096, 2)), "few_drop count_all"),
        (4097, None, "count scan place"),
        (4097, plan.Limit(9), "count scan drop_late count scan place"),
        (4097, plan.Limit(9, gates=_empty(4097, 2)), "count scan place drop_small count scan place"),
    ],
)
def test_launches_of_a_plan_with_its_schedules(tokens, limit, kernels):
    with record(SM_90) as launches:
        planned = plan.plan_slots(_index(tokens, 2), 8, limit=limit)
    assert _names(launches) == [f"plan_{name}_kernel" for name in kernels.split()]
    assert planned.tiles.shape[0] == schedule_bounds(tokens * 2, 8, tile_heights(SM_90))[-1]
    # Each launch may be repeated alone: none writes what it, or one before it, reads.
    read: set[int] = set()
    for launch in launches:
        names = WRITTEN[launch.kernel.fn.__name__]
        tensors = {name: id(value) for name, value in launch.arguments.items() if isinstance(value, torch.Tensor)}
        read |= {tensor for name, tensor in tensors.items() if name not in names}
        assert not read & {tensor for name, tensor in tensors.items() if name in names}


_SORTED = {"token_of_row", "slot_of_row", "row_of_slot", "tiles"}
_COUNTED = {"offsets", "tokens_per_expert", "dropped_per_expert", "arrivals"}  # the last ends as it began
WRITTEN = {
    "plan_few_kernel": _SORTED | _COUNTED,
    "plan_few_drop_kernel": {"left"},
    "plan_count_all_kernel": _SORTED | _COUNTED,
    "plan_count_all_drop_kernel": {"left"},
    "plan_count_kernel": {"counts"},
    "plan_scan_kernel": {"before", "totals", *_COUNTED},
    "plan_place_kernel": _SORTED,
    "plan_drop_late_kernel": {"left"},
    "plan_drop_small_kernel": {"left"},
}


@pytest.mark.parametrize(
    ("tokens", "experts", "kernels"),
    [(512, 1022, "count_all"), (512, 1023, "few"), (513, 1023, "count scan place"), (4096, 1022, "count_all")],
)
def test_very_many_experts_are_counted_in_three_launches_from_fewer_slots_on(tokens, experts, kernels):
    with record(SM_90) as launches:
        plan.plan_slots(_index(tokens, 2), experts)
    assert _names(launches) == [f"plan_{name}_kernel" for name in kernels.split()]


def test_programs_of_a_plan_are_its_parts_its_entries_and_one_that_writes_what_is_counted():
    with record(SM_90) as launches:
        planned = plan.plan_slots(_index(4001, 2), 8)
    assert launches[0].grid == (-(-8002 // 128) + planned.tiles.shape[0] // 32 + 1,)
    with record(SM_90) as launches:
        planned = plan.plan_slots(_index(4200, 2), 8)
    assert launches[2].grid == (-(-8400 // 128) + planned.tiles.shape[0] // 32,)


def test_few_rows_take_three_launches_and_two_and_no_schedule():
    forward, backward = _launches(SM_90, tokens=32, dim=1024, hidden=4096)
    assert _names(forward) == ["few_rows_fwd_kernel", "few_rows_fwd_kernel", "combine_fwd_kernel"]
    assert _names(backward) == ["few_rows_bwd_act_kernel", "few_rows_bwd_rest_kernel"]
    assert len(_launches(SM_90, tokens=32, bias=True)[1]) == 2
    up, down, combine = forward
    assert up.grid[2] == 1
    assert down.grid[2] > 1, "the depth of the second product is split, for there are few strips of columns"
    assert combine.arguments["SPLITS"] == down.grid[2]


def test_programs_of_few_rows_are_counted_by_rows_where_those_are_fewer_than_experts():
    """Qwen3's layer: one token takes 8 of 128 experts; with 16 tokens there are as many rows as experts."""
    sizes = {"dim": 2048, "hidden": 768, "experts": 128, "top_k": 8}
    for tokens, places, num_offsets in ((1, 8, 128), (15, 120, 128), (16, 128, 0)):
        forward, backward = _launches(SM_90, tokens=tokens, **sizes)
        launches = [*forward[:2], backward[0]]
        assert [launch.grid[1] for launch in launches] == [places] * 3
        rest = backward[1].arguments
        assert (rest["num_places"], rest["gates_begin"]) == (places, rest["num_strips"] * places * rest["PARTS"])
        assert all(launch.arguments["BLOCK_E"] == num_offsets for launch in (*launches, backward[1]))
    assert launches_few_rows.block_of_experts(8, 100) == 128
    assert launches_few_rows.block_of_experts(8, 4096) == 4096
    # Beyond, a program stands for an expert whatever the rows: comparing it with all offsets takes too long.
    assert launches_few_rows.block_of_experts(8, 4097) == 0
    assert launches_few_rows.num_programs(8, 4097) == 4097


@pytest.mark.parametrize(
    ("target", "tokens", "stored", "config"),
    [
        (SM_90, 1, "(F, D)", (32, 128)),  # 8 experts of 12 strips: 96 programs for 132 processors
        (SM_90, 2, "(F, D)", (32, 128)),
        (SM_90, 3, "(F, D)", (64, 64)),  # 24 experts of 12 strips: two for each
        (SM_90, 1, "(D, F)", (64, 64)),
        (SM_80, 1, "(F, D)", (32, 256)),
        (GFX942, 1, "(F, D)", (32, 128)),  # the table's
    ],
)
def test_strips_are_narrow_where_they_are_too_few_for_the_processors(target, tokens, stored, config):
    weight = _empty(128, 2 * 768, 2048) if stored == "(F, D)" else _empty(128, 2048, 2 * 768).mT
    strips = launches_few_rows.strips_of(target, 8 * tokens, weight, 768)
    assert (strips.config.block_n, strips.config.block_k) == config
    assert strips.narrow == (config != (64, 64) and target is not GFX942)


def test_narrow_strips_keep_their_step_within_the_depth_and_come_by_pointers():
    shallow, odd = _empty(8, 512, 96), _empty(8, 500, 333)
    for weight in (shallow, odd):
        assert not launches_few_rows.strips_of(SM_90, 8, weight, weight.shape[1]).narrow
    forward, _ = _launches(SM_90, tokens=1, dim=2048, hidden=768, experts=128, top_k=8)
    assert not any(launch.arguments["W_TMA"] for launch in forward[:2])
    forward, _ = _launches(SM_90, tokens=32, dim=2048, hidden=768, experts=128, top_k=8)
    assert all(launch.arguments["W_TMA"] for launch in forward[:2])


@pytest.mark.parametrize(
    "requested", [(True, False, False), (False, True, True), (False, True, False), (True, False, True)]
)
def test_gradients_of_few_rows_that_are_not_requested_have_no_programs(requested):
    tensors = (
        _empty(32, 64),
        _empty(32, 2, dtype=torch.float32),
        _order(SM_90, 32, 2, 8),
        ExpertWeights(_empty(8, 256, 64), _empty(8, 64, 128), _empty(8, 256), _empty(8, 64)),
    )
    with record(SM_90) as launches:
        moe_ffn.backward(_empty(32, 64), *tensors, _empty(64, 256), _empty(0, 128), "swiglu", *requested)
    act, rest = (launch.arguments for launch in launches)
    of_inputs, of_up, of_down = requested
    inputs = ("parts_ptr", "dx_ptr", "partial_ptr", "dgates_ptr")
    assert [rest[name] is not None for name in inputs] == [of_inputs] * 4
    assert [rest[name] is not None for name in ("dw_up_ptr", "db_up_ptr")] == [of_up] * 2
    assert [rest[name] is not None for name in ("weighted_ptr", "dw_down_ptr", "db_down_ptr")] == [of_down] * 3
    assert [act[name] is not None for name in ("partial_ptr", "weighted_ptr")] == [of_inputs, of_down]
    assert (rest["down_begin"] > 0) == of_inputs
    assert (rest["up_begin"] > rest["down_begin"]) == of_down
    assert (launches[1].grid[0] > rest["up_begin"]) == of_up


@pytest.mark.parametrize(
    ("rows", "experts", "few"), [(0, 8, True), (512, 8, True), (513, 64, False), (65, 1, False), (64, 1, True)]
)
def test_when_rows_are_few(rows, experts, few):
    assert launches_few_rows.serves(rows, experts) == few


def _gemms(launches):
    return [launch for launch in launches if "W_TMA" in launch.arguments]


@pytest.mark.parametrize("target", [*NVIDIA, GFX942], ids=lambda target: target.name)
@pytest.mark.parametrize("activation", ["swiglu", "gelu", "geglu_interleaved"])
def test_weights_come_by_descriptors_where_the_target_has_them(target, activation):
    for launches in _launches(target, activation=activation):
        assert all(launch.arguments["W_TMA"] == target.tma for launch in _gemms(launches))
        gathers = [launch.arguments.get("gather_ptr") is not None for launch in _gemms(launches)]
        by_descriptor = [launch.arguments.get("X_TMA", False) for launch in _gemms(launches)]
        assert not any(gather and tma for gather, tma in zip(gathers, by_descriptor, strict=True))
        assert any(by_descriptor) == target.tma


def test_rows_that_no_descriptor_can_read_come_by_pointers():
    for launches in _launches(SM_90, dim=251, hidden=333):
        assert _gemms(launches)
        assert not any(launch.arguments["W_TMA"] or launch.arguments.get("X_TMA") for launch in _gemms(launches))


def test_a_stride_of_zero_takes_no_descriptor():
    assert use_descriptor(SM_90, _empty(64, 64))
    assert not use_descriptor(SM_90, _empty(1, 64).expand(64, 64))
    assert not use_descriptor(SM_90, _empty(64, 65)[:, :64])


def test_programs_are_as_many_as_run_at_once_and_no_more_than_tiles():
    (up, _, _), _ = _launches(SM_90, tokens=65536)
    assert up.grid == (SM_90.processors,)
    (up, _, _), _ = _launches(SM_90, tokens=520, experts=1, dim=128, hidden=128, top_k=1)
    tiles = -(-520 // up.arguments["BLOCK_M"])
    assert up.grid == (tiles * -(-128 // up.arguments["BLOCK_N"]),)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_float32_is_multiplied_as_torchs_switch_says(precision):
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = precision
        precisions = {
            launch.arguments["PRECISION"]
            for launches in _launches(SM_90, dtype=torch.float32)
            for launch in launches
            if "PRECISION" in launch.arguments
        }
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert precisions == {precision}


def test_no_gradients_of_frozen_weights_and_none_of_frozen_tokens():
    tensors = (
        _empty(4096, 64),
        _empty(4096, 2, dtype=torch.float32),
        _order(SM_90, 4096, 2, 8),
        ExpertWeights(_empty(8, 128, 64), _empty(8, 64, 64)),
    )
    out, pre, kept = _empty(4096, 64), _empty(8192, 128), _empty(0, 64)
    with record(SM_90) as frozen:
        gradients = moe_ffn.backward(out, *tensors, pre, kept, "swiglu", True, False, False)
    assert "grouped_gemm_bwd_dw_kernel" not in _names(frozen)
    assert gradients.up_proj is None
    assert gradients.x is not None
    for up_grad, down_grad in ((True, False), (False, True)):
        with record(SM_90) as one:
            gradients = moe_ffn.backward(out, *tensors, pre, kept, "swiglu", True, up_grad, down_grad)
        assert sum(name.startswith("grouped_gemm_bwd_dw") for name in _names(one)) == 1
        assert (gradients.up_proj is not None, gradients.down_proj is not None) == (up_grad, down_grad)
    with record(SM_90) as weights:
        gradients = moe_ffn.backward(out, *tensors, pre, kept, "swiglu", False, True, True)
    assert "combine_fwd_kernel" not in _names(weights)
    assert gradients.x is gradients.gates is None


@pytest.mark.parametrize(("recompute", "launches"), [("activation", 4), ("all", 5)])
def test_recomputing_costs_one_product(recompute, launches):
    tensors = (
        _empty(4096, 64),
        _empty(4096, 2, dtype=torch.float32),
        _order(SM_90, 4096, 2, 8),
        ExpertWeights(_empty(8, 128, 64), _empty(8, 64, 64)),
    )
    with record(SM_90) as backward:
        pre = _empty(8192 if recompute == "activation" else 0, 128)
        moe_ffn.backward(_empty(4096, 64), *tensors, pre, _empty(0, 64), "swiglu", True, True, True)
    assert len(backward) == launches
