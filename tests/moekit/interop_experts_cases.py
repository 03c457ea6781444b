"""Modules of experts of transformers, and their output and gradients by two implementations."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GptOssConfig, MixtralConfig, NemotronHConfig
from transformers.integrations.moe import use_experts_implementation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from tests.oracles import relative_error

DIM, HIDDEN, EXPERTS, TOP_K, TOKENS = 16, 24, 5, 2, 11


@use_experts_implementation(has_bias=True, has_post_expert_norm=True)
class NormedExperts(nn.Module):
    """Experts with biases, and a norm after each that makes something of zeros."""

    def __init__(self, config):
        super().__init__()
        self.num_experts = EXPERTS
        self.gate_up_proj = nn.Parameter(torch.empty(EXPERTS, 2 * HIDDEN, DIM))
        self.gate_up_proj_bias = nn.Parameter(torch.empty(EXPERTS, 2 * HIDDEN))
        self.down_proj = nn.Parameter(torch.empty(EXPERTS, DIM, HIDDEN))
        self.down_proj_bias = nn.Parameter(torch.empty(EXPERTS, DIM))
        self.post_expert_norm = nn.LayerNorm(DIM)

    def _apply_gate(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return F.softplus(gate) * up

    def forward(self, hidden_states, top_k_index, top_k_weights):
        output = torch.zeros_like(hidden_states)
        for token, (ids, weights) in enumerate(zip(top_k_index.tolist(), top_k_weights, strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                if expert < self.num_experts:
                    pre = F.linear(hidden_states[token], self.gate_up_proj[expert], self.gate_up_proj_bias[expert])
                    y = F.linear(self._apply_gate(pre), self.down_proj[expert], self.down_proj_bias[expert])
                    output[token] += self.post_expert_norm(y) * weight
        return output


def config_of(kind, **options):
    sizes = {"hidden_size": DIM, "intermediate_size": HIDDEN, "num_local_experts": EXPERTS}
    if kind is NemotronHExperts:
        sizes = {"hidden_size": DIM, "moe_intermediate_size": HIDDEN, "n_routed_experts": EXPERTS}
        return NemotronHConfig(**sizes, **options)
    return GptOssConfig(**sizes) if kind is GptOssExperts else MixtralConfig(**sizes, **options)


def experts_of(kind, dtype=torch.float32, **options):
    torch.manual_seed(0)
    experts = kind(config_of(kind, **options)).to(dtype)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def inputs_of(dtype=torch.float32, ids=None, gates_dtype=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, DIM, generator=generator).to(dtype).requires_grad_()
    gates = torch.rand(TOKENS, TOP_K, generator=generator).to(gates_dtype or dtype).requires_grad_()
    if ids is None:
        ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices
    return x, ids, gates


def results_of(experts, implementation, x, ids, gates):
    """The output and every gradient by name."""
    experts.config._experts_implementation = implementation
    leaves = {"x": x, "gates": gates, **dict(experts.named_parameters())}
    output = experts(x, ids, gates)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    trained = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad((output * weight).sum(), list(trained.values()))
    return {"output": output.detach(), **dict(zip(trained, gradients, strict=True))}


def compare(experts, *inputs, bound=1e-5):
    expected, results = (
        results_of(experts, "eager", *inputs),
        results_of(experts, "moekit", *inputs),
    )
    assert results.keys() == expected.keys()
    for name in expected:
        assert results[name].dtype == expected[name].dtype, name
        assert relative_error(results[name], expected[name]) <= bound, name


KINDS = [MixtralExperts, GptOssExperts, NemotronHExperts, NormedExperts]
