"""Models of transformers computed by moekit in place: the same output, and swapped back bit for bit."""

import copy
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from benchmarks.families.compare import output_of, tokens
from moekit.inspect import record_routing
from moekit.interop import from_transformers, swap_moe_blocks_
from tests.moekit.transformers_families import (
    DIM,
    FAMILIES,
    MARKS,
    blocks_in,
    model_of,
    output_of_block,
)
from tests.oracles import relative_error

pytestmark = [*MARKS, pytest.mark.usefixtures("quiet_transformers")]


def _run(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    output = output_of(model, tokens())
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), gradients


def _generated(model: nn.Module) -> torch.Tensor:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    return model.generate(tokens(), attention_mask=torch.ones_like(tokens()), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_swapped_model_computes_the_same_saves_the_same_and_swaps_back_bit_for_bit(family, tmp_path):
    model = model_of(family)
    modules, state = list(model.named_modules()), model.state_dict(keep_vars=True)
    kinds = [type(module) for module in model.modules()]
    expected, expected_gradients = _run(model)
    generated = _generated(model)
    with swap_moe_blocks_(model) as swapped:
        assert len(swapped) == len(_names(model, FAMILIES[family])) >= 1
        assert list(swapped) == _names(model, FAMILIES[family])
        output, gradients = _run(model)
        assert relative_error(output, expected) <= 1e-5
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            assert relative_error(gradient, expected_gradients[name]) <= 1e-5, name
        assert torch.equal(_generated(model), generated)
        # The same modules and the same tensors, by identity.
        assert all(a is b for (_, a), (_, b) in zip(model.named_modules(), modules, strict=True))
        now = model.state_dict(keep_vars=True)
        assert now.keys() == state.keys()
        assert all(now[name] is state[name] for name in state)
        model.save_pretrained(tmp_path)
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        swap_moe_blocks_(loaded.eval())
        assert relative_error(output_of(loaded, tokens()), output) <= 1e-6
    assert [type(module) for module in model.modules()] == kinds
    restored, restored_gradients = _run(model)
    assert torch.equal(restored, expected)
    assert all(torch.equal(restored_gradients[name], gradient) for name, gradient in expected_gradients.items())


def _names(model: nn.Module, kind: str) -> list[str]:
    """Names of blocks of a class, or of a subclass of it, as a block that is swapped."""
    return [name for name, each in model.named_modules() if kind in {base.__name__ for base in type(each).__mro__}]


@pytest.mark.parametrize("family", ["dbrx", "gpt_oss", "lfm2_moe", "minimax_m2", "qwen2_moe"])
def test_a_swapped_block_returns_what_the_block_returned(family):
    model = model_of(family)
    x, block = torch.randn(2, 5, DIM), blocks_in(model)[0]
    router = block.router if hasattr(block, "router") else block.gate
    routed = []
    handle = router.register_forward_hook(lambda module, arguments, output: routed.append(output))
    expected = block(x.clone())
    handle.remove()
    with swap_moe_blocks_(model):
        handle = router.register_forward_hook(lambda module, arguments, output: routed.append(output))
        output = block(x.clone())
        handle.remove()
    _assert_same_structure(output, expected)
    _assert_same_structure(*routed[::-1])


def _assert_same_structure(output: object, expected: object) -> None:
    assert type(output) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert output.shape == expected.shape
        assert output.dtype == expected.dtype
        assert relative_error(output.double(), expected.double()) <= 1e-5
    else:
        assert len(output) == len(expected)
        for mine, theirs in zip(output, expected, strict=True):
            _assert_same_structure(mine, theirs)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "granitemoe"])
def test_a_swapped_model_records_its_router_logits(family):
    model = model_of(family)
    options = {"input_ids": tokens(), "output_router_logits": True}
    expected = model(**options)
    with swap_moe_blocks_(model):
        output = model(**options)
    for name in ("router_logits", "aux_loss"):
        if expected.get(name) is not None:
            _assert_same_structure(output[name], expected[name])
    assert len(output.router_logits) == len(blocks_in(model))


def test_a_swapped_model_is_recorded_copied_trained_and_moved():
    model = model_of("qwen2_moe")
    with pytest.raises(ValueError, match="reported no routing"), record_routing(model):
        model(tokens())
    swapped = swap_moe_blocks_(model)
    with record_routing(model) as record:
        expected = model(tokens()).logits
    assert list(record.layers) == [f"{name}.experts" for name in swapped]
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(tokens()).logits, expected)
        block = _swapped_blocks(same)[0]
        # Its routers read its own weights.
        block.gate.weight.data.zero_()
        assert not torch.equal(same(tokens()).logits, expected)
    assert torch.equal(model(tokens()).logits, expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(tokens()).logits.square().mean().backward()
    optimizer.step()
    model.eval().double()
    trained = model(tokens()).logits
    swapped.restore()
    swapped.restore()  # once more does nothing
    assert relative_error(model(tokens()).logits, trained) <= 1e-6
    assert relative_error(trained, expected.double()) > 1e-3


def _swapped_blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "experts")]


@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_a_swapped_model_compiles_whole_checkpoints_and_runs_under_autocast(family):
    model = model_of(family)
    with swap_moe_blocks_(model):
        expected, gradients = _run(model)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(input_ids=tokens(), use_cache=False).logits, expected) <= 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(output_of(model, tokens()), expected) <= 5e-2
        model.train().gradient_checkpointing_enable()
        again, gradients_again = _run(model)
    assert relative_error(again, expected) <= 1e-6
    assert all(relative_error(gradients_again[name], each) <= 1e-5 for name, each in gradients.items())


@pytest.mark.parametrize("family", ["dbrx", "llama4", "longcat_flash", "minimax_m2", "phimoe"])
def test_a_swapped_block_compiles_whole_and_is_exported(family):
    model = model_of(family)
    block, x = blocks_in(model)[0], torch.randn(2, 5, DIM)
    expected = output_of_block(block, x.clone())
    with swap_moe_blocks_(model), torch.no_grad():
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        assert relative_error(output_of_block(compiled, x.clone()), expected) <= 1e-5
        program = torch.export.export(block, (x.clone(),))
        assert relative_error(output_of_block(program.module(), x.clone()), expected) <= 1e-5


def test_lora_of_a_swapped_model_starts_from_its_output_and_trains_only_its_own():
    model = model_of("mixtral")
    expected = output_of(model, tokens())
    swap_moe_blocks_(model)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[], target_parameters=parameters))
    with torch.no_grad():
        assert relative_error(output_of(tuned, tokens()), expected) <= 1e-5
    output_of(tuned, tokens()).square().mean().backward()
    # One of each pair starts at zero, so the other has no gradient yet.
    trained = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all("lora_" in name for name in trained)
    assert {part for part in ("experts", "gate.") for name in trained if part in name} == {"experts", "gate."}


def test_threads_that_share_a_swapped_model_get_its_output():
    model = model_of("mixtral")
    block = blocks_in(model)[0]
    inputs = [torch.randn(1, 3, DIM) for _ in range(4)]
    with torch.no_grad(), swap_moe_blocks_(model):
        expected = [output_of_block(block, x) for x in inputs]
        router = vars(block.gate)["_moekit"].router
        # While one thread is in the router, the others arrive and leave.
        router.register_forward_pre_hook(lambda *_: time.sleep(0.003))

        def serve(number: int) -> bool:
            with torch.no_grad():
                return all(torch.equal(output_of_block(block, inputs[number]), expected[number]) for _ in range(5))

        with ThreadPoolExecutor(len(inputs)) as threads:
            assert all(threads.map(serve, range(len(inputs))))


def test_blocks_are_swapped_back_after_an_error():
    model = model_of("mixtral")
    with pytest.raises(RuntimeError, match="of the caller"), swap_moe_blocks_(model):
        raise RuntimeError("of the caller")
    assert {type(block).__name__ for block in blocks_in(model)} == {"MixtralSparseMoeBlock"}
    assert type(blocks_in(model)[0].gate).__name__ == "MixtralTopKRouter"
    assert "_moekit" not in vars(blocks_in(model)[0].gate)


def test_all_blocks_are_swapped_or_none():
    model = model_of("mixtral")
    blocks_in(model)[1].jitter_noise = 0.1
    with pytest.raises(ValueError, match=r"but model.layers.1.mlp is not: .* with jitter_noise=0.1"):
        swap_moe_blocks_(model)
    assert type(blocks_in(model)[0].gate).__name__ == "MixtralTopKRouter"
    with pytest.raises(ValueError, match=r"model must hold sparse blocks of transformers, got a Linear without any of"):
        swap_moe_blocks_(nn.Linear(2, 2))
    blocks_in(model)[1].jitter_noise = 0.0
    swapped = swap_moe_blocks_(model)
    assert repr(swapped) == "SwappedBlocks(model.layers.0.mlp, model.layers.1.mlp)"
    with pytest.raises(ValueError, match=r"model.layers.0.mlp is: restore\(\) it first"):
        swap_moe_blocks_(model)
    with pytest.raises(ValueError, match=r"block must have nothing .* got a MixtralSparseMoeBlock with .*gate._moekit"):
        from_transformers(blocks_in(model)[0])
    gate = blocks_in(model)[1].gate
    kind = type(gate)
    gate.__class__ = type("Sharded", (kind,), {})
    with pytest.raises(ValueError, match="as they were swapped, got a Sharded in place of a MixtralTopKRouter"):
        swapped.restore()
    gate.__class__ = kind
    swapped.restore()
    assert type(gate).__name__ == "MixtralTopKRouter"


def _ids_before_gates(self, x, _forward=MixtralTopKRouter.forward):
    logits, gates, ids = _forward(self, x)
    return logits, ids, gates


def _of_such_a_router(self, x):
    _, ids, gates = self.gate(x.view(-1, x.shape[-1]))
    return self.experts(x.view(-1, x.shape[-1]), ids, gates).view(x.shape)


def test_a_router_that_returns_in_another_order_is_not_swapped(monkeypatch):
    """As in another version of transformers: the layer computes the same, but the router cannot be replaced alone."""
    model = model_of("mixtral")
    block, x = blocks_in(model)[0], torch.randn(2, 9, DIM)
    expected = block(x)
    monkeypatch.setattr(type(block.gate), "forward", _ids_before_gates)
    monkeypatch.setattr(type(block), "forward", _of_such_a_router)
    assert relative_error(from_transformers(block)(x).output, expected) <= 1e-5
    with pytest.raises(ValueError, match=r"model.layers.0.mlp is not: expert_ids must be of an integer dtype"):
        swap_moe_blocks_(model)
    assert torch.equal(block(x), expected)
