"""The choice of a router's implementation; the kernels themselves are tested where they can run."""

import pytest
import torch

from moekit import FFNExperts, Routing, SparseMoE, TopKRouter, plan_dispatch, router_stats
from moekit.routing import FusedSums, RoutingCounts, RoutingSums


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="impl must be one of 'auto', 'reference', 'torch', 'triton', got 'fast'"):
        TopKRouter(4, 4, 2, impl="fast")


@pytest.mark.parametrize(("num_experts", "top_k"), [(4097, 2), (100, 65)])
def test_triton_beyond_its_limits_is_refused_at_construction(num_experts: int, top_k: int) -> None:
    with pytest.raises(ValueError, match=r"takes (num_experts up to 4096, got 4097|top_k up to 64, got 65)"):
        TopKRouter(4, num_experts, top_k, impl="triton")
    assert TopKRouter(4, num_experts, top_k)(torch.randn(3, 4)).expert_ids.shape == (3, top_k)


def test_triton_refuses_float64() -> None:
    with pytest.raises(ValueError, match=r"takes logits of bfloat16, float16 and float32, got torch\.float64"):
        TopKRouter(4, 4, 2, impl="triton", dtype=torch.float64)(torch.randn(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("impl", ["auto", "reference", "torch"])
def test_on_cpu_routing_is_plain_pytorch_without_sums(impl: str) -> None:
    torch.manual_seed(0)
    router = TopKRouter(4, 4, 2, impl=impl)
    assert router(torch.randn(3, 4)).sums is None
    assert f"impl={impl!r}" in repr(router)


def test_triton_is_built_and_traced_on_the_meta_device() -> None:
    routing = TopKRouter(4, 6, 2, impl="triton", device="meta")(torch.randn(3, 4, device="meta"))
    assert routing.gates.is_meta
    assert routing.gates.shape == routing.expert_ids.shape == (3, 2)
    assert routing.sums.sums.prob_sum.shape == (6,)


def test_router_and_statistics_get_one_and_the_same_mask() -> None:
    torch.manual_seed(0)
    layer = SparseMoE(TopKRouter(4, 4, 2), FFNExperts(4, 3, 4))
    seen = []
    layer.router.register_forward_hook(
        lambda _, inputs, routing: seen.append(inputs[1]) or _with_sums(routing, inputs[1])
    )
    mask = torch.rand(2, 5) > 0.3
    stats = layer(torch.randn(2, 5, 4), mask=mask).stats
    assert torch.equal(seen[0], mask.flatten())
    assert stats.prob_sum.tolist() == [7.0] * 4  # those that came with the routing


def test_sums_of_another_mask_or_an_edited_routing_are_not_used() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([True, False, True])
    plain = TopKRouter(4, 4, 2)(torch.randn(3, 4))
    plan = plan_dispatch(plain.expert_ids, 4)
    routing = _with_sums(plain, mask)
    assert router_stats(routing, plan, mask).prob_sum.tolist() == [7.0] * 4
    for edited, its_mask in (
        (routing, mask.clone()),
        (routing, None),
        (routing._replace(gates=plain.gates.clone()), mask),
        (routing._replace(expert_ids=plain.expert_ids.clone()), mask),
        (routing._replace(probs=plain.probs.clone()), mask),
    ):
        expected = router_stats(plain, plan, its_mask)
        for mine, theirs in zip(router_stats(edited, plan, its_mask), expected, strict=True):
            assert torch.equal(mine, theirs)


def _with_sums(routing: Routing, mask: torch.Tensor | None) -> Routing:
    """The routing with sums that no router would make."""
    fields = (torch.full((4,), 7.0), torch.full((4,), 7.0), torch.tensor(7.0), torch.tensor(7.0))
    counts = RoutingCounts(torch.full((4,), 7), torch.full((4,), 7.0), torch.tensor(7), torch.tensor(7))
    return routing._replace(sums=FusedSums(RoutingSums(*fields), counts, mask, routing[:5]))
