"""Noisy top-k gating: equations 4 and 9 of Shazeer et al. 2017, against loops and Monte-Carlo."""

import math

import pytest
import torch

from moekit.routers.noise import NoisyLogits, add_noise, smooth_load

DRAWS = 20_000


def make_noise(num_tokens: int = 4, num_experts: int = 5) -> tuple[torch.Tensor, NoisyLogits]:
    torch.manual_seed(0)
    logits = torch.randn(num_tokens, num_experts, dtype=torch.float64)
    return logits, add_noise(logits, torch.randn_like(logits))


def test_noise_is_normal_with_the_softplus_as_deviation() -> None:
    logits, raw_std = torch.tensor([[0.3, -1.0]]).double(), torch.tensor([[0.5, -2.0]]).double()
    torch.manual_seed(0)
    noisy, std = add_noise(logits.expand(DRAWS, 2), raw_std.expand(DRAWS, 2))
    expected = [math.log1p(math.exp(0.5)) + 0.01, math.log1p(math.exp(-2.0)) + 0.01]
    torch.testing.assert_close(std, torch.tensor(expected).double().expand(DRAWS, 2))
    standard = (noisy - logits) / std
    bound = 4 / math.sqrt(DRAWS)
    assert standard.mean(0).abs().max() < bound
    assert (standard.var(0) - 1).abs().max() < bound * math.sqrt(2)
    torch.testing.assert_close((standard < 1).double().mean().item(), 0.8413, rtol=0, atol=bound)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_smooth_load_is_equation_9(top_k: int) -> None:
    logits, noise = make_noise()
    load = smooth_load(logits, noise, top_k)
    for t in range(logits.shape[0]):
        for e in range(logits.shape[1]):
            others = sorted(v for i, v in enumerate(noise.noisy[t].tolist()) if i != e)
            z = (logits[t, e].item() - others[-top_k]) / noise.std[t, e].item()
            assert load[t, e].item() == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)), abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 2])
def test_smooth_load_is_the_chance_of_being_chosen_when_its_own_noise_is_redrawn(top_k: int) -> None:
    logits, noise = make_noise()
    load = smooth_load(logits, noise, top_k)
    bound = 4 * math.sqrt(0.25 / DRAWS)
    for e in range(logits.shape[1]):
        redrawn = noise.noisy.repeat(DRAWS, 1, 1)
        redrawn[:, :, e] = logits[:, e] + torch.randn(DRAWS, logits.shape[0]) * noise.std[:, e]
        chosen = (redrawn.topk(top_k, dim=-1).indices == e).any(-1).double().mean(0)
        torch.testing.assert_close(load[:, e], chosen, rtol=0, atol=bound)


def test_every_expert_is_chosen_for_certain_where_k_is_e() -> None:
    logits, noise = make_noise()
    assert smooth_load(logits, noise, logits.shape[1]).eq(1).all()


def test_smooth_load_has_gradients_of_logits_and_deviation() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    raw_std = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def load(logits: torch.Tensor, raw_std: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return smooth_load(logits, add_noise(logits, raw_std), 2)

    assert torch.autograd.gradcheck(load, (logits, raw_std))
    load(logits, raw_std)[:, 0].sum().backward()
    assert (logits.grad[:, 0] > 0).all()
