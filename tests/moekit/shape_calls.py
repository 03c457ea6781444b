"""Calls of everything public with its shape annotations switched on; run by ``test_shapes.py`` alone.

The import hook of jaxtyping must come before the first import of the packages, hence a process of its own.
Exits with an error at the first annotation that is not true of a call.
"""

from jaxtyping import install_import_hook

with install_import_hook(["moekit", "moekit_kernels"], "beartype.beartype"):
    import moekit
    import moekit.contrastive
    import moekit.inspect
    import moekit.routers.noise
    import moekit.routing
    from moekit_kernels.grouped_gemm import grouped_gemm, grouped_gemm_reference
    from moekit_kernels.moe_ffn import ExpertWeights, moe_ffn, moe_ffn_reference

from typing import Literal, get_args, get_origin

import torch
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor, nn

from moekit_kernels.routing.selection import limit_to_groups, top_k_ids

DIM, HIDDEN, EXPERTS, TOP_K, TOKENS = 6, 5, 4, 2, 10


def check_fields(value: tuple) -> None:
    """Checks the annotations of a NamedTuple, which no hook does, together: letters mean one size in all."""
    annotations = next(each for each in type(value).__mro__ if "_fields" in vars(each)).__annotations__
    # "E+1" can be read only where E is known.
    names = sorted(value._fields, key=lambda name: "+" in str(annotations[name]))
    with jaxtyped("context"):
        for name in names:
            field = getattr(value, name)
            kinds = annotations[name]
            fits = field in get_args(kinds) if get_origin(kinds) is Literal else isinstance(field, kinds)
            assert fits, (type(value).__name__, name, kinds, field)
    for name in names:
        if isinstance(getattr(value, name), tuple):
            check_fields(getattr(value, name))


def call_routers(x: Tensor) -> list:
    mask = torch.arange(TOKENS) > 2
    routers = [
        moekit.TopKRouter(DIM, EXPERTS, TOP_K, selection_bias=True, jitter=0.1),
        moekit.TopKRouter(DIM, EXPERTS, TOP_K, noisy=True),
        moekit.TopKRouter(DIM, EXPERTS, TOP_K, scoring="sigmoid", num_groups=2, topk_groups=1, gate_hidden_dim=3),
        moekit.HardRouter(DIM, EXPERTS, gradient="straight_through"),
        moekit.ExpertChoiceRouter(DIM, EXPERTS),
    ]
    routings = [router(x) for router in routers] + [router(x, mask) for router in routers]
    routings += [router(x[:0]) for router in routers]
    routings.append(moekit.HashRouter(EXPERTS, 20, TOP_K)(torch.arange(TOKENS)))
    for routing in routings:
        check_fields(routing)
    routers[0].update_bias_(torch.ones(EXPERTS, dtype=torch.int64))
    check_fields(moekit.routers.noise.add_noise(torch.zeros(TOKENS, EXPERTS), torch.zeros(TOKENS, EXPERTS)))
    return routings


def call_plans_and_kernels(x: Tensor, routing: moekit.Routing) -> None:
    plans = [
        moekit.plan_dispatch(routing.expert_ids, EXPERTS),
        moekit.plan_dispatch(routing.expert_ids, EXPERTS, kept=routing.valid.unsqueeze(-1), capacity=2),
        moekit.plan_dispatch(routing.expert_ids, EXPERTS, capacity=2, gates=routing.gates, drop_policy="gate"),
        moekit.plan_dispatch(routing.expert_ids, EXPERTS, capacity=torch.tensor(3)),
        moekit.plan_expert_choice(torch.tensor([[0, 1], [2, 3], [4, 5], [0, 9]]), TOKENS),
    ]
    for plan in plans:
        check_fields(plan)
        check_fields(moekit.router_stats(routing, plan, torch.ones(TOKENS, dtype=torch.bool)))
    for bank in (x, x.view(TOKENS, 2, DIM // 2)):
        rows = moekit.dispatch(bank, plans[0])
        moekit.combine(rows, plans[0], routing.gates)
    rows = moekit.dispatch(x, plans[0])
    up, down = torch.randn(EXPERTS, HIDDEN, DIM), torch.randn(EXPERTS, 3, HIDDEN)
    up_bias, down_bias = torch.randn(EXPERTS, HIDDEN), torch.randn(EXPERTS, 3)
    for linear in (grouped_gemm, grouped_gemm_reference):
        linear(rows, up, plans[0].offsets, up_bias)
    moe_ffn(x, routing.gates, plans[0], ExpertWeights(up, down, up_bias, down_bias), "gelu")
    moe_ffn_reference(x, routing.gates, plans[0], ExpertWeights(up, down), nn.functional.gelu)
    top_k_ids(routing.probs, TOP_K)
    limit_to_groups(routing.probs, 2, 1)


def call_layers(x: Tensor) -> list:
    mask = torch.arange(TOKENS).view(2, TOKENS // 2) > 2
    x = x.view(2, TOKENS // 2, DIM)
    router = moekit.TopKRouter(DIM, EXPERTS, TOP_K)
    wide = moekit.FFNExperts(DIM, HIDDEN, EXPERTS, out_dim=3, bias=True)
    modules = moekit.ModuleExperts([nn.Linear(DIM, DIM), nn.Identity(), moekit.ZeroExpert(), moekit.FFN(DIM, HIDDEN)])
    convolutions = moekit.ModuleExperts([nn.Conv2d(1, 2, 3) for _ in range(EXPERTS)], token_ndim=3)
    shared = moekit.FFN(DIM, HIDDEN, gated=True)
    layers = [
        moekit.SparseMoE.ffn(DIM, HIDDEN, EXPERTS, TOP_K, shared_hidden_dim=3, capacity_factor=1.0),
        moekit.SparseMoE(router, modules, shared=shared),
        moekit.SparseMoE(router, wide),
        moekit.SparseMoE(moekit.ExpertChoiceRouter(DIM, EXPERTS), moekit.FFNExperts(DIM, HIDDEN, EXPERTS)),
        moekit.SoftMoE(DIM, moekit.FFNExperts(DIM, HIDDEN, EXPERTS), slots_per_expert=2),
        moekit.SoftMoE(DIM, wide, normalize=False),
    ]
    outputs = [layer(x) for layer in layers] + [layer(x, mask=mask) for layer in layers]
    outputs += [layer(x[0, 0]) for layer in layers[:3]]
    outputs += [layer(x[:, :0]) for layer in layers]
    context = torch.randn(2, DIM)
    outputs.append(layers[0](x, router_input=context))
    outputs.append(layers[0](x, routing=layers[0].route(x, mask=mask)))
    outputs.append(moekit.SparseMoE(router, convolutions)(torch.randn(2, 1, 5, 5), router_input=context))
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)]
    pyramids = moekit.CrossScaleExperts((3, 4), 5, EXPERTS, depth=1)
    outputs.append(moekit.SparseMoE(router, pyramids)(maps, router_input=context))
    plan = moekit.plan_dispatch(torch.zeros(2, 1, dtype=torch.int64), EXPERTS)
    pyramids.scale_weights(maps, plan)
    pyramids.run_all(maps)
    for need_weights in (False, True):
        check_fields(moekit.CrossScaleAttention((3, 4), 5)(maps, need_weights=need_weights))
    hashed = moekit.SparseMoE(moekit.HashRouter(EXPERTS, 20), modules)
    outputs.append(hashed(x, router_input=torch.zeros(2, TOKENS // 2, dtype=torch.int64)))
    for output in outputs:
        check_fields(output)
    return outputs


def call_losses(stats: moekit.RouterStats) -> None:
    moekit.load_balancing_loss(stats, tokens_per_expert=stats.tokens_per_expert)
    for loss in (moekit.load_balancing_loss, moekit.importance_loss, moekit.load_loss):
        loss(stats)
    logits = torch.randn(2, 3, EXPERTS)
    for loss in (moekit.router_z_loss, moekit.router_entropy, moekit.mutual_information_loss):
        loss(stats)
        loss(logits)
    moekit.mutual_information_loss([stats, stats])
    moekit.router_label_loss(logits, torch.full((2, 3), -100))
    moekit.routing.entropy(logits.softmax(-1))
    check_fields(moekit.all_reduce_stats(stats))
    check_fields(stats + stats)
    check_fields(stats.detach())


def call_contrastive() -> None:
    image, text, ids = torch.randn(3, DIM), torch.randn(3, DIM), torch.tensor([0, 1, 0])
    moekit.global_contrastive_loss(image, text, temperature=0.1)
    moekit.global_contrastive_loss(image, text, logit_scale=torch.ones(1), text_ids=ids, gather=True)
    moekit.all_gather_with_gradient(ids)
    pieces, word_ids = torch.randn(3, 7, DIM), torch.randint(-1, 5, (3, 7))
    states = moekit.contrastive.aggregate_word_pieces(pieces, word_ids, num_words=5)
    check_fields(states)
    regions = torch.randn(3, 4, DIM, requires_grad=True)
    local = moekit.local_contrastive_loss(regions, *states, need_attention=True, text_ids=ids, word_softmax=False)
    aligned = moekit.word_alignment_loss(regions, *states, need_attention=True, temperature=0.1)
    for output in (local, aligned):
        output.loss.backward()
        check_fields(output)
    moekit.local_contrastive_loss(regions, *states, chunk_size=2).loss.backward()
    moekit.contrastive.local_scores(regions[:2], *states, aggregation="max")
    moekit.contrastive.attention_maps(regions, *states)
    counts = torch.rand(regions.shape[:2]) < 0.5
    forms = {"similarity": "cosine", "region_mask": counts}
    moekit.local_contrastive_loss(regions, *states, temperatures=(torch.tensor(4.0), 5.0, 10.0), **forms)
    moekit.contrastive.attention_maps(regions, *states, temperature=torch.tensor(4.0), **forms)


def call_inspect(x: Tensor) -> None:
    """Records layers of each kind, and what becomes of a record."""
    choice = moekit.SparseMoE(moekit.ExpertChoiceRouter(DIM, EXPERTS), moekit.FFNExperts(DIM, DIM, EXPERTS))
    soft = moekit.SoftMoE(DIM, moekit.FFNExperts(DIM, DIM, EXPERTS))
    layers = nn.ModuleDict({"top": moekit.SparseMoE.ffn(DIM, DIM, EXPERTS, 2), "choice": choice, "soft": soft})
    with moekit.inspect.record_routing(layers, label_names=("a", "b"), max_windows=2) as record:
        record.label(torch.arange(len(x)) % 2)
        for _ in range(3):
            outputs = [layer(x) for layer in layers.values()]
    merged = record.merged(record).merged(record.merged(record), parallel=True)
    assert len(merged.summaries()) == len(merged.over_time("top")) + 1 == len(outputs)
    collector = moekit.inspect.StatsCollector()
    collector.add([output.stats for output in outputs])
    assert len(collector.scalars()) > len(outputs)
    moekit.sequence_balancing_loss(layers["top"].route(x), 1, mask=torch.ones(len(x), dtype=torch.bool))


def refuse_wrong_shapes(x: Tensor, routing: moekit.Routing, stats: moekit.RouterStats) -> None:
    """Shows that the hook is on: annotations that do not hold are errors."""
    wrong = {
        "rank": lambda: moekit.dispatch(torch.zeros(()), moekit.plan_dispatch(routing.expert_ids, EXPERTS)),
        "dtype": lambda: moekit.plan_dispatch(routing.gates, EXPERTS),
        "size": lambda: moekit.plan_dispatch(routing.expert_ids, EXPERTS, kept=torch.ones(3, TOP_K, dtype=torch.bool)),
        "module": lambda: moekit.HardRouter(DIM, EXPERTS)(x, torch.ones(TOKENS + 1, dtype=torch.bool)),
        "kernel": lambda: grouped_gemm(x, torch.zeros(EXPERTS, 3, DIM), torch.zeros(EXPERTS, dtype=torch.int64)),
    }
    for name, call in wrong.items():
        try:
            call()
        except TypeCheckError:
            continue
        raise SystemExit(f"no error for a wrong {name}")
    try:
        check_fields(stats._replace(prob_sum=torch.zeros(EXPERTS + 1)))
    except AssertionError:
        return
    raise SystemExit("no error for a wrong field")


def main() -> None:
    """Runs all calls."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, DIM)
    routing = call_routers(x)[1]
    call_plans_and_kernels(x, routing)
    stats = call_layers(x)[0].stats
    call_losses(stats)
    call_inspect(x)
    call_contrastive()
    refuse_wrong_shapes(x, routing, stats)
    print("all shape annotations hold")


if __name__ == "__main__":
    main()
