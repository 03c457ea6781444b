"""MLPs of all kinds that are recognised, and models that hold them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIM, HIDDEN = 6, 8


class Gated(nn.Module):
    """A gated MLP with a function for an activation, and its layers in an order that tells nothing."""

    def __init__(self, dim: int = DIM, hidden: int = HIDDEN, bias: bool = True) -> None:
        super().__init__()
        self.last = nn.Linear(hidden, dim, bias=bias)
        self.second = nn.Linear(dim, hidden, bias=bias)
        self.third = nn.Linear(dim, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.silu(self.third(x)) * self.second(x))


class Packed(nn.Module):
    """A gated MLP whose first layer holds gate and values in one of three orders."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.both, self.act, self.last = nn.Linear(DIM, 2 * HIDDEN), nn.GELU(), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        both = self.both(x)
        gate, value = (both[..., ::2], both[..., 1::2]) if self.order == "interleaved" else both.chunk(2, dim=-1)
        if self.order == "gate_last":
            gate, value = value, gate
        return self.last(self.act(gate) * value)


class Plain(nn.Module):
    """An MLP without a gate, whose output is scaled by ``scale``, its output or its hidden layer dropped."""

    def __init__(self, scale: float = 1.0, drop: str = "output", p: float = 0.5, bias: bool = True) -> None:
        super().__init__()
        self.scale, self.drop_where = scale, drop
        self.drop, self.act = nn.Dropout(p), nn.ReLU()
        self.first, self.last = nn.Linear(DIM, HIDDEN, bias=bias), nn.Linear(HIDDEN, DIM, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x))
        if self.drop_where == "hidden":
            hidden = self.drop(hidden)
        output = self.last(hidden) * self.scale
        return self.drop(output) if self.drop_where == "output" else output


def sequential(*activation: nn.Module, out: int = DIM) -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, HIDDEN), *(activation or (nn.GELU(),)), nn.Linear(HIDDEN, out))


def of_timm(kind: str, **options) -> nn.Module:
    mlp = pytest.importorskip("timm.layers.mlp", reason="timm is not installed")
    return getattr(mlp, kind)(DIM, HIDDEN, **options)


def of_transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
    from transformers.models.llama.modeling_llama import LlamaMLP
    from transformers.models.phi3.modeling_phi3 import Phi3MLP
    from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense

    sizes = {"hidden_size": DIM, "intermediate_size": HIDDEN}
    heads = {"num_attention_heads": 1}
    t5 = {"d_model": DIM, "d_ff": HIDDEN, "dropout_rate": 0.0}
    kinds: dict[str, Callable[[], nn.Module]] = {
        "llama": lambda: LlamaMLP(transformers.LlamaConfig(**sizes, **heads)),
        "llama with biases": lambda: LlamaMLP(transformers.LlamaConfig(**sizes, **heads, mlp_bias=True)),
        "llama square": lambda: LlamaMLP(transformers.LlamaConfig(hidden_size=DIM, intermediate_size=DIM, **heads)),
        "phi3": lambda: Phi3MLP(transformers.Phi3Config(**sizes, pad_token_id=0)),
        "gpt2": lambda: GPT2MLP(HIDDEN, transformers.GPT2Config(n_embd=DIM)),
        "t5": lambda: T5DenseActDense(transformers.T5Config(**t5)),
        "gated t5": lambda: T5DenseGatedActDense(transformers.T5Config(**t5, feed_forward_proj="gated-gelu")),
    }
    return kinds[name]()


KINDS: dict[str, Callable[[], nn.Module]] = {
    "sequential": sequential,
    "nested": lambda: nn.Sequential(sequential(nn.SiLU(), nn.Dropout(0.0)), nn.Identity()),
    "another width": lambda: sequential(out=3),
    "square": lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM)),
    "wide to narrow": lambda: nn.Sequential(nn.Linear(DIM, 4), nn.ReLU(), nn.Linear(4, DIM)),
    "one bias": lambda: nn.Sequential(nn.Linear(DIM, HIDDEN, bias=False), nn.Mish(), nn.Linear(HIDDEN, DIM)),
    "gated": Gated,
    "gated without biases": lambda: Gated(bias=False),
    "gated square": lambda: Gated(hidden=DIM),
    **{f"packed {order}": lambda order=order: Packed(order) for order in ("gate_first", "gate_last", "interleaved")},
    "output dropout": Plain,
    "hidden dropout": lambda: Plain(drop="hidden"),
    "unused dropout": lambda: Plain(drop=""),
    "timm Mlp": lambda: of_timm("Mlp", drop=0.1),
    "timm SwiGLU": lambda: of_timm("SwiGLU", drop=(0.0, 0.2)),
    "timm SwiGLUPacked": lambda: of_timm("SwiGLUPacked"),
    "timm GatedMlp": lambda: of_timm("GatedMlp"),
    **{
        f"transformers {name}": lambda name=name: of_transformers(name)
        for name in ("llama", "llama with biases", "llama square", "phi3", "gpt2", "t5", "gated t5")
    },
}


class Model(nn.Module):
    """Blocks with an MLP each, in a residual stream."""

    def __init__(self, make: Callable[[], nn.Module] = sequential, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"norm": nn.LayerNorm(DIM), "mlp": make()}) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["mlp"](block["norm"](x))
        return x


def tokens(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 5)), DIM)
