"""Federated averaging of a sparse classifier by two processes, with routers shared or kept local.

    torchrun --standalone --nproc-per-node 2 examples/federated.py --local-routers

Each process is a site with studies of its own, which never leave it. In every round each site starts from the same
weights, takes a few steps of SGD on its studies, and the sites average their weights, each counted by its number of
studies: FedAvg, McMahan et al. 2017, https://arxiv.org/abs/1602.05629, algorithm 1. A router that is kept local adapts
to the studies of its site, while the experts are everyone's.

Nothing but weights, the number of studies and, for the printed table, losses travel. These are no protection by
themselves: weights can tell of the studies that they were trained on.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moekit import SparseMoE, load_balancing_loss

DIM, CLASSES, EXPERTS = 16, 4, 4


class Site(NamedTuple):
    """The studies of one site: features ``(N, D)`` and labels ``(N,)``."""

    features: Tensor
    labels: Tensor


class Classifier(nn.Module):
    """A residual sparse layer and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.moe = SparseMoE.ffn(DIM, 32, num_experts=EXPERTS, top_k=2)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, features: Tensor, labels: Tensor, balance_weight: float = 0.01) -> Tensor:
        """Computes the loss of some studies."""
        output, stats = self.moe(features)
        loss = F.cross_entropy(self.head(features + output), labels)
        return loss + balance_weight * load_balancing_loss(stats) if balance_weight else loss


def is_shared(name: str, *, local_routers: bool) -> bool:
    """Tells whether the sites average a parameter or buffer of this name."""
    return not (local_routers and ".router." in f".{name}")


def draw_site(rank: int, studies: int) -> Site:
    """Draws the studies of a site: all sites label alike, and each sees other features."""
    rule = torch.randn(DIM, CLASSES, generator=torch.Generator().manual_seed(0))
    own = torch.Generator().manual_seed(1 + rank)
    features = torch.randn(studies, DIM, generator=own) + torch.randn(DIM, generator=own)
    return Site(features, (features @ rule).argmax(-1))


def train_locally(model: nn.Module, loss: Callable[[], Tensor], *, steps: int, lr: float) -> float:
    """Takes steps of SGD on all studies of the site; returns the loss before the first."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    first = 0.0
    for step in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        if step == 0:
            first = float(value.detach())
    return first


@torch.no_grad()
def average_(tensors: Iterable[tuple[str, Tensor]], studies: int, *, local_routers: bool) -> None:
    """Replaces the shared tensors of all sites by their mean, weighted by the number of studies.

    Args:
        tensors: Name and tensor, in the same order on every site.
        studies: Of this site.
        local_routers: Whether routers stay as they are.
    """
    total = torch.tensor(float(studies), dtype=torch.float64)
    dist.all_reduce(total)
    for name, tensor in tensors:
        if is_shared(name, local_routers=local_routers) and tensor.is_floating_point():
            # In float64, so that the mean of equal weights is that weight.
            weighted = tensor.double() * (studies / total)
            dist.all_reduce(weighted)
            tensor.copy_(weighted)


def run_rounds(
    model: Classifier,
    site: Site,
    *,
    rounds: int,
    steps: int,
    lr: float,
    local_routers: bool,
    balance_weight: float = 0.01,
) -> list[float]:
    """Trains the model of this site together with the others.

    Args:
        model: With the same weights on every site.
        site: The studies of this one.
        rounds: How often weights are averaged.
        steps: Steps on the site's studies between two averages.
        lr: Learning rate of SGD.
        local_routers: Whether routers stay with their site.
        balance_weight: Coefficient of the load-balancing loss.

    Returns:
        The mean loss of all studies of all sites at the beginning of each round.
    """
    losses = []
    for _ in range(rounds):
        first = train_locally(model, lambda: model(*site, balance_weight), steps=steps, lr=lr)
        average_(model.state_dict().items(), len(site.labels), local_routers=local_routers)
        sums = torch.tensor([first * len(site.labels), len(site.labels)], dtype=torch.float64)
        dist.all_reduce(sums)
        losses.append(float(sums[0] / sums[1]))
    return losses


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=5, help="steps on a site's own studies in each round")
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--local-routers", action="store_true", help="keep each site's router to itself")
    return parser.parse_args(arguments)


def main() -> None:
    """Runs one site; ``torchrun`` starts as many as there are."""
    options = parse()
    dist.init_process_group("gloo")
    try:
        rank = dist.get_rank()
        torch.manual_seed(0)  # the same first weights everywhere
        model, site = Classifier(), draw_site(rank, studies=200 + 100 * rank)
        losses = run_rounds(
            model, site, rounds=options.rounds, steps=options.steps, lr=options.lr, local_routers=options.local_routers
        )
        if rank == 0:
            for number, loss in enumerate(losses, 1):
                print(f"round {number:3d}  loss {loss:.4f}")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
