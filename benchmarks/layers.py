"""The layers that are compared: ours, a dense FFN of the same FLOPs, and those of other libraries.

Letters: B batch, S sequence, D width, F expert hidden width, E experts, K experts per token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import FFN, FFNExperts, SparseMoE, combine, dispatch
from moekit.interop import from_transformers
from moekit_kernels.activations import ACTIVATIONS
from moekit_kernels.grouped_gemm import grouped_linear


@dataclass(frozen=True)
class Shape:
    """A workload; a SwiGLU forward takes ``6 * T * D * F * K`` FLOPs, forward and backward three times that."""

    batch: int = 4
    sequence: int = 1024
    dim: int = 512
    hidden_dim: int = 1024
    num_experts: int = 8
    top_k: int = 2

    @property
    def forward_flops(self) -> int:
        """FLOPs of a forward pass without the router."""
        return 6 * self.batch * self.sequence * self.dim * self.hidden_dim * self.top_k

    def __str__(self) -> str:
        tokens = self.batch * self.sequence
        return f"T={tokens} D={self.dim} F={self.hidden_dim} E={self.num_experts} K={self.top_k}"


class Contender(NamedTuple):
    """A layer under test.

    Attributes:
        name: As shown in the table.
        module: Its parameters.
        run: ``(B, S, D) -> (B, S, D)``.
        same_function: Whether it computes the same function of the same weights as ours.
        remark: What differs.
    """

    name: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]
    same_function: bool
    remark: str


def contenders(shape: Shape) -> list[Contender]:
    """Builds every layer; those that compute the same function share their weights' values."""
    torch.manual_seed(0)
    eager = _mixtral(shape, "eager")
    grouped = _mixtral(shape, "grouped_mm")
    grouped.load_state_dict(eager.state_dict())
    ours = from_transformers(eager)
    dense = FFN(shape.dim, shape.top_k * shape.hidden_dim)
    st_moe, st_moe_dropping = _st_moe(shape, 1.25 * shape.top_k), _st_moe(shape, 1.25)
    return [
        Contender("moekit", ours, lambda x: ours(x).output, True, "SparseMoE, impl auto"),
        Contender(
            "moekit, grouped GEMMs", ours, lambda x: _by_grouped_gemms(ours, x), True, "the way without a fused FFN"
        ),
        Contender("dense FFN, same FLOPs", dense, dense, False, "SwiGLU of hidden width K F; no routing"),
        Contender("transformers eager", eager, eager, True, "MixtralSparseMoeBlock"),
        Contender("transformers grouped_mm", grouped, grouped, True, "MixtralSparseMoeBlock"),
        Contender("st-moe-pytorch", st_moe, lambda x: st_moe(x)[0], False, _remark(st_moe, shape)),
        Contender(
            "st-moe-pytorch, dropping",
            st_moe_dropping,
            lambda x: st_moe_dropping(x)[0],
            False,
            _remark(st_moe_dropping, shape),
        ),
    ]


def _by_grouped_gemms(moe: SparseMoE, x: Tensor) -> Tensor:
    """The layer with gather, two grouped GEMMs and combine, as on devices without the fused operation."""
    tokens = x.reshape(-1, x.shape[-1])
    experts = moe.experts
    assert isinstance(experts, FFNExperts)
    routing = moe.route(tokens)
    plan = moe.plan(routing)
    hidden = grouped_linear(dispatch(tokens, plan), experts.up_proj, plan.offsets)
    hidden = ACTIVATIONS["swiglu"].forward(hidden)
    return combine(grouped_linear(hidden, experts.down_proj, plan.offsets), plan, routing.gates).view_as(x)


def _mixtral(shape: Shape, implementation: str) -> nn.Module:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=shape.dim,
        intermediate_size=shape.hidden_dim,
        num_local_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
    )
    config._experts_implementation = implementation
    block = MixtralSparseMoeBlock(config)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.02)
    return block


def _st_moe(shape: Shape, capacity_factor: float) -> nn.Module:
    """Its capacity is that factor times ``T / E``, not ``T K / E``."""
    from st_moe_pytorch import MoE

    return MoE(
        dim=shape.dim,
        num_experts=shape.num_experts,
        expert_hidden_mult=1.5 * shape.hidden_dim / shape.dim,  # its GEGLU takes two thirds of dim times this
        gating_top_n=shape.top_k,
        threshold_train=0.0,
        threshold_eval=0.0,
        capacity_factor_train=capacity_factor,
        capacity_factor_eval=capacity_factor,
    )


def _remark(st_moe: nn.Module, shape: Shape) -> str:
    """How much of the work it does on the input of the benchmark."""
    with torch.no_grad():
        dispatched = st_moe.gate(random_input(shape))[0].round().sum().item()
    slots = shape.batch * shape.sequence * shape.top_k
    return f"GEGLU with bias; computes {100 * dispatched / slots:.1f} % of the slots"


def check_same_function(contender: Contender, ours: Contender, x: Tensor) -> float:
    """Relative difference of the outputs; raises ``ValueError`` if it is not one of rounding."""
    with torch.no_grad():
        expected = ours.run(x)
        difference = float((contender.run(x) - expected).norm() / expected.norm())
    if difference > 1e-5:
        raise ValueError(f"{contender.name} disagrees with moekit by {difference:.1e}: nothing to compare.")
    return difference


def forward_and_backward(contender: Contender, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """A step: forward, then gradients of input and parameters from fresh ``.grad``."""
    leaf = x.clone().requires_grad_()

    def step() -> None:
        leaf.grad = None
        contender.module.zero_grad(set_to_none=True)
        contender.run(leaf).backward(grad)

    return step


def forward_only(contender: Contender, x: Tensor) -> Callable[[], None]:
    """A forward pass without gradients."""

    def step() -> None:
        with torch.no_grad():
            contender.run(x)

    return step


def random_input(shape: Shape) -> Tensor:
    """Tokens of the workload."""
    generator = torch.Generator().manual_seed(1)
    return F.layer_norm(torch.randn(shape.batch, shape.sequence, shape.dim, generator=generator), (shape.dim,))
