"""Every layer that is compared, ours and those of other libraries: one small class each."""

from benchmarks.peers.base import Layer, Peer
from benchmarks.peers.liger import Liger
from benchmarks.peers.megablocks import MegaBlocks
from benchmarks.peers.ours import Moekit, MoekitLayer
from benchmarks.peers.plain import Dense, ExpertLoop, GroupedMM
from benchmarks.peers.scattermoe import ScatterMoE
from benchmarks.peers.sonicmoe import SonicMoE
from benchmarks.peers.st_moe import StMoE
from benchmarks.peers.transformers import Transformers, TransformersBlock
from benchmarks.peers.tutel import Tutel

PEERS: tuple[Peer, ...] = (
    Dense(compiled=False),
    Dense(compiled=True),
    Moekit("torch"),
    Moekit("triton"),
    Moekit("triton", recompute="none"),
    Moekit("triton", recompute="all"),
    MoekitLayer(),
    MoekitLayer("compiled"),
    MoekitLayer("graphed"),
    MoekitLayer(stats=False),
    ExpertLoop(),
    GroupedMM(),
    Transformers("eager"),
    Transformers("grouped_mm"),
    Transformers("batched_mm"),
    Transformers("moekit"),
    TransformersBlock("eager"),
    TransformersBlock("grouped_mm"),
    TransformersBlock("batched_mm"),
    Liger(),
    ScatterMoE(),
    MegaBlocks(),
    SonicMoE(),
    Tutel(),
    StMoE(dropping=False),
    StMoE(dropping=True),
)
"""All peers, in the order of the tables."""


def peers_named(names: list[str] | None) -> list[Peer]:
    """Returns the peers of ``names``, or all.

    Raises:
        ValueError: If a name is no peer's.
    """
    by_name = {peer.name: peer for peer in PEERS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"peers must be among {', '.join(by_name)}, got {name!r}.")
    return [by_name[name] for name in names or by_name]


__all__ = ["PEERS", "Layer", "Peer", "peers_named"]
