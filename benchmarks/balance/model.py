"""A small GPT with a sparse layer in each block. Letters: B batch, S sequence, V vocabulary, D width."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import FFNExperts, RouterStats, SparseMoE, TopKRouter


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model.

    Attributes:
        vocab_size: ``V``; 256, as tokens are bytes.
        context: Longest sequence.
        dim: ``D``.
        num_layers: Blocks.
        num_heads: Heads of attention.
        num_experts: ``E``.
        top_k: ``K``.
        hidden_dim: Hidden width of an expert.
    """

    vocab_size: int = 256
    context: int = 128
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_experts: int = 16
    top_k: int = 2
    hidden_dim: int = 128


class Block(nn.Module):
    """Causal attention, then a sparse layer in the place of the MLP."""

    def __init__(self, config: ModelConfig, selection_bias: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.moe_norm = nn.RMSNorm(config.dim)
        self.moe = SparseMoE(
            TopKRouter(config.dim, config.num_experts, config.top_k, scoring="sigmoid", selection_bias=selection_bias),
            FFNExperts(config.dim, config.hidden_dim, config.num_experts),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, RouterStats]:
        """Returns ``(B, S, D)`` and the statistics of the sparse layer."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        output, stats = self.moe(self.moe_norm(x))
        return x + output, stats


class GPT(nn.Module):
    """Predicts the next byte.

    Args:
        config: Sizes.
        selection_bias: Whether the routers have one.
    """

    def __init__(self, config: ModelConfig, selection_bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.context, config.dim)
        self.blocks = nn.ModuleList(Block(config, selection_bias) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        for embedding in (self.embedding, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[RouterStats]]:
        """Returns logits ``(B, S, V)`` and the statistics of each layer.

        Args:
            tokens: ``(B, S)`` bytes.
        """
        x = self.embedding(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        statistics: list[RouterStats] = []
        for block in self.blocks:
            x, stats = block(x)
            statistics.append(stats)
        return self.head(self.norm(x)), statistics
