"""Upcycled layers as MLPs again."""

from collections.abc import Sequence

from torch import nn

from moekit.experts.ffn import FFNExperts
from moekit.interop.upcycling.layer import UpcycledMLP, expert_weights
from moekit.interop.upcycling.methods import joined
from moekit.interop.upcycling.names import replace_
from moekit.interop.upcycling.routers import gates_sum
from moekit.interop.upcycling.shrink import average
from moekit.interop.upcycling.usage import Usage, load_of, places_of, refuse_layer


def to_dense_(
    model: nn.Module, where: str | Sequence[str] | None = None, *, usage: Usage | None = None
) -> dict[str, nn.Module]:
    """Replaces layers that :func:`~moekit.interop.upcycle_` made by the MLPs that they were made of, in place.

    The MLP has the class and the parameter names of the one that stood there, so the model's checkpoints load as they
    did before. Its weights are the mean of those of the experts, part by part: those that it had where the experts are
    copies, else a compromise, to be trained further.

    Args:
        model: The model.
        where: Pattern of the names of the layers, or several. All of them by default.
        usage: Loads of the experts, by which they are averaged; see :func:`~moekit.interop.prune_experts_`. Equal by
            default.

    Returns:
        The MLPs by name.

    Raises:
        ValueError: If a layer is another one, or its parts were replaced by others; nothing is changed then.

    Example:
        >>> from moekit.interop import upcycle_
        >>> model = nn.Sequential(nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)))
        >>> before = {name: weight.clone() for name, weight in model.state_dict().items()}
        >>> _ = upcycle_(model, "0", num_experts=8, top_k=4, granularity=2)
        >>> _ = to_dense_(model)
        >>> all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        True
    """
    dense: dict[str, tuple[UpcycledMLP, nn.Module]] = {}
    for name, (moe, layer) in places_of(model, where).items():
        if layer is None:
            refuse_layer(name, "is no layer that upcycle_ made, whose place is that of an MLP")
        bank = moe.experts
        if not isinstance(bank, FFNExperts) or type(bank) is not FFNExperts or moe.shared is not None:
            refuse_layer(name, "has other experts than FFNExperts, or a shared one")
        shards = layer.shard_of_expert
        if gates_sum(moe.router) != layer.granularity:
            refuse_layer(name, f"has a router whose gates do not sum to {layer.granularity}, as those of upcycle_ do")
        missing = sorted(set(range(layer.granularity)) - set(shards))
        if missing:
            refuse_layer(name, f"has no expert of parts {missing} of the MLP any more")
        load = None if usage is None else load_of(usage, name, bank.num_experts)
        weights = expert_weights(bank)
        parts = [[each for each, shard in enumerate(shards) if shard == part] for part in range(layer.granularity)]
        means = [
            average([weights[each] for each in experts], None if load is None else load[experts]) for experts in parts
        ]
        trained = (bank.up_proj.requires_grad, bank.down_proj.requires_grad)
        dense[name] = layer, layer.dense_with(joined(means), trained)
    for layer, mlp in dense.values():
        replace_(model, layer, mlp)
    return {name: mlp for name, (_, mlp) in dense.items()}
