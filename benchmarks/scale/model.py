"""The time of a layer's step on many GPUs, from its operations, its bytes and the speeds that are assumed."""

from typing import NamedTuple

from benchmarks.scale.traffic import Transfer, deduplicated, exact, uniform_rows

EXCHANGES = ("exact", "deduplicated")


class Layer(NamedTuple):
    """A sparse layer of gated experts in bfloat16.

    Attributes:
        tokens: Of each GPU in a step.
        dim: Width, ``D``.
        hidden_dim: Hidden width of an expert, ``F``.
        num_experts: ``E``.
        top_k: ``K``.
    """

    tokens: int = 16384
    dim: int = 4096
    hidden_dim: int = 1536
    num_experts: int = 256
    top_k: int = 8

    @property
    def step_flops(self) -> float:
        """Operations of the experts of one GPU's tokens, forward and backward: three matrices, six for each weight."""
        return 18.0 * self.tokens * self.top_k * self.dim * self.hidden_dim

    def weight_bytes(self, ranks: int) -> float:
        """Bytes of the experts that one of ``ranks`` GPUs holds, in bfloat16."""
        return 2 * 3.0 * self.num_experts / ranks * self.dim * self.hidden_dim


class Machine(NamedTuple):
    """What is assumed of the GPUs and of what joins them.

    Attributes:
        flops: Operations a second that the experts reach.
        within: Bytes a second that a GPU sends to others of its node.
        between: Bytes a second that a GPU sends to other nodes.
        latency: Seconds for each message.
        node: GPUs of a node.
        overlap: Share of the exchanges that other work hides, from 0 to 1.
    """

    flops: float = 500e12
    within: float = 350e9
    between: float = 45e9
    latency: float = 10e-6
    node: int = 8
    overlap: float = 0.0


class Prediction(NamedTuple):
    """One step of one layer on one GPU.

    Attributes:
        gpus: GPUs that train.
        ranks: GPUs that divide the experts among them.
        exchange: Which exchange.
        compute: Seconds of the experts' products.
        within: Bytes to other GPUs of the node.
        between: Bytes to other nodes.
        messages: Messages to other GPUs.
        exchanged: Seconds of the exchanges.
        data: Seconds in which weights are gathered twice and gradients reduced once among the GPUs that hold the same
            experts.
        efficiency: Seconds of compute over those of all.
    """

    gpus: int
    ranks: int
    exchange: str
    compute: float
    within: float
    between: float
    messages: int
    exchanged: float
    data: float
    efficiency: float


def predict(layer: Layer, machine: Machine, gpus: int, ranks: int, exchange: str) -> Prediction:
    """Predicts a step with uniform routing, on nodes that are filled by the ranks of one division first.

    Raises:
        ValueError: If ``ranks`` does not divide ``gpus`` and the experts.
    """
    if gpus % ranks or layer.num_experts % ranks:
        raise ValueError(f"ranks must divide the {gpus} GPUs and the {layer.num_experts} experts, got {ranks}.")
    rows = uniform_rows(layer.tokens, layer.top_k, layer.num_experts, ranks)
    held, row = layer.num_experts // ranks, 2 * layer.dim
    transfers = exact(rows, held, row) if exchange == "exact" else deduplicated(rows, held, row, gate_bytes=4)
    near = min(ranks, machine.node)
    within, between = (
        sum(_bytes(each, places) for each in transfers) for places in (range(1, near), range(near, ranks))
    )
    messages = sum(transfer.messages(0) for transfer in transfers)
    exchanged = within / machine.within + between / machine.between + messages * machine.latency
    copies = gpus // ranks
    speed = machine.within if gpus <= machine.node else machine.between
    data = 3 * layer.weight_bytes(ranks) * (copies - 1) / copies / speed
    compute = layer.step_flops / machine.flops
    total = compute + (exchanged + data) * (1 - machine.overlap)
    return Prediction(gpus, ranks, exchange, compute, within, between, messages, exchanged, data, compute / total)


def _bytes(transfer: Transfer, places: range) -> float:
    return transfer.row_bytes * sum(transfer.rows[place] for place in places)
