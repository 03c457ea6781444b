"""The sparse mixer: experts sampled one after another in training, with a gradient for the sampling."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moekit.checks import check_top_k
from moekit.init import reset_parameters
from moekit.routers.base import Router
from moekit.routers.gate import make_gate, router_logits
from moekit.routers.noise import check_jitter, jittered
from moekit.routing import Routing
from moekit_kernels.routing.finite import finite_logits

# Of a sampled expert that is not the best: a third to four digits, as in the authors' code.
_THIRD = 0.3333
# Above this uniform number, such an expert keeps its whole gate: Heun's third-order method.
_WHOLE = 0.75


class SparseMixerRouter(Router):
    """Chooses experts one after another, each among those that are nearly as good as the best one left: SparseMixer-v2.

    In each of ``K`` rounds an expert is a candidate if its logit ``l_e`` is close to the best one left, ``m``::

        (m - l_e) / max(abs(l_e), m) <= 2 * epsilon

    and candidates are weighted by the softmax ``p`` of their logits. In evaluation the best expert is chosen, and its
    gate is its ``p``. In training the expert is drawn from ``p``; its gate is ``p`` where it is the best one or a
    uniform number is above 0.75, else ``p / 3``, and the gradient of a gate is that of ``p`` in both cases: Heun's
    third-order estimate of the gradient of the sampling. Gates of a token do not sum to 1.

    The router runs in plain PyTorch in every implementation of the layer: there is no kernel of it.

    Args:
        dim: Width of the router input, ``D``.
        num_experts: ``E``.
        top_k: ``K``.
        epsilon: See above. A small number makes most choices those of top-k routing with gates of 1.
        jitter: In training, multiplies the router input by uniform noise from ``[1 - jitter, 1 + jitter]``.
        gate_hidden_dim: Makes the gate a two-layer MLP of this hidden width.
        gate_bias: Whether the gate has biases.
        gate: Any module ``(T, ...) -> (T, E)`` in place of the built-in one.
        init_scale: Variance of the gate's weights times their fan-in.
        device: Device of the parameters.
        dtype: Dtype of the parameters.

    Raises:
        ValueError: If an argument is out of range, or arguments contradict each other.

    Reference:
        GRIN, https://arxiv.org/abs/2409.12136, section 2, and PhiMoE's code, which it follows where they differ: with
        the same generator, logits and dtype, training draws what ``transformers`` draws on the same device. Deviations:
        ``transformers`` fixes ``K`` at 2, and its block jitters the tokens themselves.

    Example:
        >>> router = SparseMixerRouter(16, num_experts=4).eval()
        >>> router(torch.randn(10, 16)).gates.shape
        torch.Size([10, 2])
    """

    _checked_settings = frozenset({"top_k", "epsilon", "jitter"})

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        epsilon: float = 0.01,
        jitter: float = 0.0,
        gate_hidden_dim: int | None = None,
        gate_bias: bool = False,
        gate: nn.Module | None = None,
        init_scale: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.epsilon = epsilon
        self.jitter = jitter
        self._check_settings()
        self.gate = make_gate(
            gate,
            dim,
            num_experts,
            hidden_dim=gate_hidden_dim,
            bias=gate_bias,
            init_scale=init_scale,
            device=device,
            dtype=dtype,
        )
        self._make_read_only("num_experts", "input_ndim")

    def reset_parameters(self) -> None:
        """Draws the gate's weights anew."""
        reset_parameters(self.gate)

    def forward(self, x: Float[Tensor, "T D"], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens; each decision depends on its own token only, so ``mask`` changes none.

        Args:
            x: Router input ``(T, D)``.
            mask: True for real tokens, ``(T,)``; all by default.

        Returns:
            Gates and ids ``(T, K)`` in the order of the rounds, logits and their softmax ``(T, E)``.

        Raises:
            ValueError: If ``x`` has the wrong width, dtype or device, or the gate gives another number of logits.
        """
        if self.training and self.jitter > 0:
            x = jittered(x, self.jitter)
        finite = finite_logits(router_logits(self.gate, x, self.num_experts))
        logits = finite.logits
        gates: list[Tensor] = []
        ids: list[Tensor] = []
        left = logits
        for _ in range(self.top_k):
            gate, expert = self._round(logits, left, first=left is logits)
            gates.append(gate)
            ids.append(expert)
            left = left.scatter(-1, expert, -torch.inf)
        probs = finite.clear(logits.softmax(-1))
        return Routing(finite.mark(torch.cat(gates, -1)), torch.cat(ids, -1), logits, probs, finite.valid)

    def extra_repr(self) -> str:
        """Shows the settings."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}, epsilon={self.epsilon}, jitter={self.jitter}"

    def _round(
        self, logits: Float[Tensor, "T E"], left: Float[Tensor, "T E"], *, first: bool
    ) -> tuple[Float[Tensor, "T 1"], Int[Tensor, "T 1"]]:
        """Returns gate and id of one more expert; those chosen before are ``-inf`` in ``left``."""
        with torch.no_grad():
            best, best_expert = left.max(-1, keepdim=True)
            far = (best - logits) / logits.abs().clamp(min=best) > 2 * self.epsilon
        candidates = left.masked_fill(far, -torch.inf)
        probs = candidates.softmax(-1)
        if not self.training:
            return probs.gather(-1, best_expert), best_expert
        with torch.no_grad():
            noise = torch.empty_like(candidates).exponential_()
            tiny = torch.finfo(noise.dtype).tiny  # -inf minus the logarithm of zero would be NaN
            expert = (candidates - noise.clamp(min=tiny).log()).argmax(-1, keepdim=True)
            uniform = torch.rand_like(best)
            if not first:
                uniform.uniform_()  # drawn a second time, as transformers does, to stay in step with it
            whole = (expert == probs.argmax(-1, keepdim=True)) | (uniform > _WHOLE)
        gate = probs.gather(-1, expert)
        # The gradient is that of the whole gate.
        return torch.where(whole, gate, gate + (_THIRD - 1) * gate.detach()), expert

    def _check_settings(self) -> None:
        check_top_k(self.top_k, self.num_experts)
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, got {self.epsilon}.")
        check_jitter(self.jitter)
