"""The interface of routers: from router input to a :class:`~moekit.routing.Routing`."""

from abc import ABC, abstractmethod

from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from moekit.routing import Routing
from moekit.settings import SettingsModule


class Router(SettingsModule, ABC):
    """Chooses experts for each token.

    Attributes:
        num_experts: ``E``.
        top_k: ``K``, experts per token; 0 where a token has no fixed number (expert choice).
        input_ndim: Trailing dimensions of the router input that describe one token: 1 for a feature
            vector, 0 for an integer id.
        takes_tokens: Whether ``forward`` takes the tokens too, as ``tokens`` ``(T, D)``, beside a router input that is
            something else, such as ids.
    """

    num_experts: int
    top_k: int
    input_ndim: int = 1
    takes_tokens: bool = False

    @abstractmethod
    def forward(self, x: Shaped[Tensor, "T ..."], mask: Bool[Tensor, "T"] | None = None) -> Routing:
        """Routes ``T`` tokens.

        Args:
            x: Router input, one row per token.
            mask: True for real tokens, ``(T,)``; all by default. It changes decisions only where these depend on other
                tokens.

        Returns:
            The decisions, one row per token.

        Raises:
            ValueError: If ``x`` is not what the router takes.
        """

    def update_bias_(self, tokens_per_expert: Int[Tensor, "E"], rate: float = 1e-3) -> None:
        """Updates the selection bias of a router that has one, as :class:`~moekit.routers.top_k.TopKRouter` may.

        Args:
            tokens_per_expert: Slots routed to each expert, ``(E,)``.
            rate: Step, in units of the score.

        Raises:
            ValueError: If the router has no selection bias, as all but ``TopKRouter(selection_bias=True)``.
        """
        raise ValueError(
            f"update_bias_ needs a router with a selection bias, got a {type(self).__name__}: "
            "use TopKRouter(..., selection_bias=True), or balance the experts by load_balancing_loss."
        )
