"""Blocks of ``transformers`` as layers: the same output, the same gradients, the same balancing loss."""

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, Qwen3MoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from moekit import load_balancing_loss
from moekit.interop import from_transformers
from tests.oracles import assert_close, naive_experts, naive_top_k, relative_error, stacked_expert

DIM, HIDDEN, EXPERTS = 16, 24, 8
# The blocks take their softmax in float32 whatever the dtype, so float64 agrees to 6e-8 times a few.
PARITY = {torch.float32: 1e-5, torch.float64: 1e-6}


def _block(name: str, top_k: int = 2, dtype: torch.dtype = torch.float32) -> nn.Module:
    if name == "mixtral":
        config = MixtralConfig(
            hidden_size=DIM, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=top_k
        )
        block: nn.Module = MixtralSparseMoeBlock(config)
    else:
        config = Qwen3MoeConfig(
            hidden_size=DIM,
            moe_intermediate_size=HIDDEN,
            num_experts=EXPERTS,
            num_experts_per_tok=top_k,
            norm_topk_prob=name == "qwen3 normalised",
        )
        block = Qwen3MoeSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.to(dtype)


BLOCKS = ["mixtral", "qwen3 normalised", "qwen3"]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("top_k", [1, 2, 8])
@pytest.mark.parametrize("dtype", list(PARITY))
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_output_and_all_gradients_are_those_of_the_block(name, top_k, dtype, impl):
    block = _block(name, top_k, dtype)
    moe = from_transformers(block, impl=impl)
    theirs = torch.randn(3, 11, DIM, dtype=dtype, requires_grad=True)
    mine = theirs.detach().clone().requires_grad_()
    weight = torch.randn(3, 11, DIM, dtype=dtype)
    expected, found = block(theirs), moe(mine).output
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert found.dtype == dtype
    assert relative_error(found, expected) <= PARITY[dtype]
    pairs = {
        "x": (mine.grad, theirs.grad),
        "gate": (moe.router.gate.layers[0].weight.grad, block.gate.weight.grad),
        "up": (moe.experts.up_proj.grad, block.experts.gate_up_proj.grad),
        "down": (moe.experts.down_proj.grad, block.experts.down_proj.grad),
    }
    for key, (a, b) in pairs.items():
        if key == "gate" and top_k == 1 and name != "qwen3":
            # A single gate divided by itself is constant: the exact gradient is zero, the block's is rounding.
            assert a is None or not a.any()
            assert b.abs().max() <= 1e-5
        else:
            assert relative_error(a, b) <= PARITY[dtype], key


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_output_is_the_loop_over_tokens(name, impl):
    block = _block(name, dtype=torch.float64)
    x = torch.randn(9, DIM, dtype=torch.float64)
    gates, ids = naive_top_k(x @ block.gate.weight.T, 2, renormalize=name != "qwen3")
    expert = stacked_expert(block.experts.gate_up_proj, block.experts.down_proj, None, None, "swiglu")
    assert_close(from_transformers(block, impl=impl)(x).output, naive_experts(x, gates, ids, None, expert, DIM))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balancing_loss_is_theirs_divided_by_top_k(top_k):
    moe = from_transformers(_block("qwen3", top_k))
    logits, stats = [], []
    for _ in range(3):  # three layers: theirs concatenates the logits, ours adds the statistics
        x = torch.randn(2, 13, DIM)
        logits.append(moe.route(x).logits)
        stats.append(moe(x).stats)
    theirs = load_balancing_loss_func(tuple(logits), EXPERTS, top_k)
    mine = load_balancing_loss(sum(stats)) * top_k
    assert relative_error(mine, theirs) <= 1e-6


def test_the_layer_takes_copies_device_dtype_and_mode_of_the_block():
    block = _block("mixtral", dtype=torch.bfloat16).eval()
    moe = from_transformers(block)
    assert not moe.training
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    x = torch.randn(1, 5, DIM, dtype=torch.bfloat16)
    before = moe(x).output
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(moe(x).output, before)
    assert before.any()


def test_blocks_laid_out_otherwise_are_refused():
    with pytest.raises(ValueError, match=r"block must hold the parameter 'gate.weight', got a Linear without it"):
        from_transformers(nn.Linear(2, 2))
    block = _block("mixtral")
    block.experts.down_proj = nn.Parameter(torch.zeros(EXPERTS, DIM, HIDDEN + 1))
    with pytest.raises(ValueError, match=r"block must hold gate \(E, D\).*got \(8, 16\), \(8, 48, 16\) and"):
        from_transformers(block)
    block = _block("mixtral")
    block.experts.act_fn = nn.GELU()
    with pytest.raises(ValueError, match="block must use SiLU in its experts, got GELU"):
        from_transformers(block)
    del block.experts.gate_up_proj
    with pytest.raises(ValueError, match=r"block must hold the parameter 'experts.gate_up_proj'"):
        from_transformers(block)


def test_jitter_that_would_also_reach_the_experts_is_refused():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    block = MixtralSparseMoeBlock(MixtralConfig(hidden_size=8, intermediate_size=16, router_jitter_noise=0.1))
    with pytest.raises(ValueError, match=r"block must have router_jitter_noise=0, got 0\.1"):
        from_transformers(block)
