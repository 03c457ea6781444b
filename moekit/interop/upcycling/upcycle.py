"""MLPs of a model as sparse layers, in place.

Letters: D width of the tokens, E experts, K experts per token, G parts of an MLP.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moekit.checks import check_positive, check_top_k
from moekit.experts.activation import ActivationLike
from moekit.experts.ffn import FFNExperts
from moekit.init import scaled_normal_
from moekit.interop.upcycling.check import check_same_function
from moekit.interop.upcycling.layer import DropoutAfter, UpcycledMLP, copy_weights_, empty_experts, expert_weights
from moekit.interop.upcycling.methods import Copies, UpcyclingMethod, shards
from moekit.interop.upcycling.mlp import MLPLayout, MLPWeights, linear_shape
from moekit.interop.upcycling.names import matching, replace_
from moekit.interop.upcycling.parts import refuse
from moekit.interop.upcycling.read import read_mlp
from moekit.layer import SparseMoE
from moekit.parts import check_module
from moekit.routers.hard import HardRouter
from moekit.routers.top_k import TopKRouter
from moekit_kernels.impl import Impl, check_impl


def upcycle_(
    model: nn.Module,
    where: str | Sequence[str],
    *,
    num_experts: int,
    top_k: int,
    method: UpcyclingMethod | None = None,
    granularity: int = 1,
    selection_bias: bool = False,
    router_init_scale: float = 0.1,
    generator: torch.Generator | None = None,
    impl: Impl = "auto",
) -> dict[str, UpcycledMLP]:
    """Replaces MLPs of a model by sparse layers whose experts start from their weights.

    ``y = sum_k gate_k * expert_k(x)``, with gates that sum to 1: softmax top-k routing, renormalised; with ``top_k=1``
    a gate of 1 whose gradient is that of the probability (:class:`~moekit.HardRouter`, straight-through). So with
    copies, the default, each layer at first computes what the MLP did, whatever the new router chooses.

    With a ``granularity`` of ``G`` each expert starts from one of ``G`` equal parts of the hidden layer, and costs
    ``1 / G``. Experts ``g * G`` to ``g * G + G - 1`` are *virtual group* ``g``: every part once. They start with one
    and the same router row, so a token gets whole groups, and gates sum to ``G``: here too the layer at first computes
    what the MLP did. (Where rounding makes the logits of two groups alike, a token may get parts of both.)

    An MLP is recognised by its structure, not by its class: two linear layers (``nn.Linear``, GPT-2's ``Conv1D``) with
    an activation between them, or three with a gate, or two where the first holds the gate; dropouts; and nothing
    else. A small copy of it is run to learn which layer does what. Those of ``timm`` (``Mlp``, ``SwiGLU``,
    ``SwiGLUPacked``), of ``transformers`` (Llama, Phi-3, GPT-2, T5 and others) and ``nn.Sequential`` are such. Anything
    else is refused by name, before anything is changed. Before a layer is put in its place, its output on random
    tokens is compared with that of the MLP, unless the method promises no equality.

    Experts run fused with SiLU, GELU, tanh-GELU, ReLU and squared ReLU. Other activations run as an operation of their
    own, and so does any with a dropout after it, unless its ``p`` is 0; gated MLPs with these are refused.

    Device, dtype, mode and ``requires_grad`` are those of the MLP; the router has the dtype of its weights, and is
    trained. Statistics for auxiliary losses are read by :func:`~moekit.interop.collect_stats`. Make the optimiser after
    this call, and apply FSDP, ``torch.compile`` or LoRA after it too. To load a checkpoint of an upcycled model, build
    the dense model, call this with the same arguments and load the state dict.

    Args:
        model: A model that holds the MLPs.
        where: Pattern of their names, such as ``"blocks.*.mlp"``, or several. ``*`` stands for any characters of one
            part of a name, ``**`` for any number of parts.
        num_experts: ``E``, a multiple of ``granularity``.
        top_k: ``K``, a multiple of ``granularity``.
        method: :class:`~moekit.interop.Copies` by default, :class:`~moekit.interop.Noise`,
            :class:`~moekit.interop.DropUpcycling`, or your own :class:`~moekit.interop.UpcyclingMethod`.
        granularity: ``G``, which must divide the hidden width.
        selection_bias: Whether the routers have one; see :class:`~moekit.TopKRouter`.
        router_init_scale: Variance of the router's weights times their fan-in.
        generator: Of the random numbers.
        impl: See :class:`~moekit.experts.ffn.FFNExperts`.

    Returns:
        The new layers by name.

    Raises:
        ValueError: If an argument is out of range, ``where`` matches nothing or an MLP that is not understood whole, or
            a layer would not compute what its MLP does. The model is then as it was.

    Reference:
        He et al. 2024, Upcycling Large Language Models into Mixture of Experts, https://arxiv.org/abs/2410.07524, for
        virtual groups. There the weights are scaled, by the cube root of ``G`` for gated MLPs, which
        changes what the activation gets; here the gates are, which is exact. Gates are renormalised here; the paper
        prefers a softmax over all experts, whose sum over the chosen ones differs from token to token.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)))
        >>> x = torch.randn(5, 8)
        >>> before = model(x)
        >>> layers = upcycle_(model, "1", num_experts=8, top_k=4, granularity=2)
        >>> list(layers), layers["1"].moe.experts.hidden_dim
        (['1'], 16)
        >>> torch.allclose(model(x), before, atol=1e-5)
        True
    """
    check_module("model", model)
    check_impl(impl)
    method = Copies() if method is None else method
    if not isinstance(method, UpcyclingMethod):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"method must be an UpcyclingMethod, such as Copies(), got {method!r}.")
    _check_sizes(num_experts, top_k, granularity)
    if selection_bias and top_k == 1:
        raise ValueError("selection_bias=True needs top_k of at least 2, got 1: its router has no selection bias.")
    mlps = matching(model, where)
    layouts = {name: read_mlp(name, mlp) for name, mlp in mlps.items()}
    for name, mlp in mlps.items():
        _check_fits(name, mlp, layouts[name], granularity)
    _check_not_shared(model, mlps)
    layers: dict[str, UpcycledMLP] = {}
    try:
        for name, mlp in mlps.items():
            weights = layouts[name].read(mlp)
            router = _router(weights, num_experts, top_k, granularity, selection_bias, router_init_scale, generator)
            experts = _experts(mlp, layouts[name], weights, num_experts, granularity, method, generator, impl)
            shard_of_expert = [expert % granularity for expert in range(num_experts)]
            outer = [mlp.get_submodule(path) for path in layouts[name].output_dropouts]
            layer = UpcycledMLP(SparseMoE(router, experts), outer, mlp, layouts[name], shard_of_expert)
            layers[name] = layer.train(mlp.training)
            check_same_function(name, mlp, layer, exact=method.exact)
            replace_(model, mlp, layer)
    except BaseException:
        for name, layer in layers.items():
            replace_(model, layer, mlps[name])
        raise
    return layers


def _check_sizes(num_experts: int, top_k: int, granularity: int) -> None:
    check_top_k(top_k, num_experts)
    check_positive("granularity", granularity)
    for name, value in (("num_experts", num_experts), ("top_k", top_k)):
        if value % granularity:
            raise ValueError(
                f"{name} must be a multiple of granularity={granularity}, so that tokens get every part of the MLP, "
                f"got {value}."
            )


def _check_fits(name: str, mlp: nn.Module, layout: MLPLayout, granularity: int) -> None:
    hidden_dim, _ = linear_shape(mlp.get_submodule(layout.down))
    if hidden_dim % granularity:
        refuse(name, mlp, f"has a hidden width of {hidden_dim}, which granularity={granularity} does not divide")


def _check_not_shared(model: nn.Module, mlps: dict[str, nn.Module]) -> None:
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), set()).add(id(module))
    for name, mlp in mlps.items():
        shared = [each for each, weight in mlp.named_parameters() if len(owners[id(weight)]) > 1]
        if shared:
            refuse(name, mlp, f"shares weights with another module, {', '.join(shared)}")


def _router(
    weights: MLPWeights,
    num_experts: int,
    top_k: int,
    granularity: int,
    selection_bias: bool,
    init_scale: float,
    generator: torch.Generator | None,
) -> TopKRouter | HardRouter:
    dim, dtype = weights.up.shape[1], weights.up.dtype
    router: TopKRouter | HardRouter
    # On the meta device, so that no weights are drawn twice.
    if top_k == 1:
        router = HardRouter(dim, num_experts, gradient="straight_through", device="meta", dtype=dtype)
    else:
        router = TopKRouter(
            dim,
            num_experts,
            top_k,
            renormalize=True,
            scaling_factor=float(granularity),
            selection_bias=selection_bias,
            device="meta",
            dtype=dtype,
        )
    router = router.to_empty(device=weights.up.device)
    if isinstance(router, TopKRouter) and router.selection_bias is not None:
        router.selection_bias.zero_()
    (row_of_expert,) = router.parameters()
    on = weights.up.device if generator is None else generator.device
    row_of_group = torch.empty(num_experts // granularity, dim, device=on, dtype=torch.float32)
    scaled_normal_(row_of_group, dim, init_scale, generator)
    with torch.no_grad():
        row_of_expert.copy_(row_of_group.repeat_interleave(granularity, dim=0))
    return router


@torch.no_grad()
def _experts(
    mlp: nn.Module,
    layout: MLPLayout,
    weights: MLPWeights,
    num_experts: int,
    granularity: int,
    method: UpcyclingMethod,
    generator: torch.Generator | None,
    impl: Impl,
) -> FFNExperts:
    hidden = [mlp.get_submodule(path) for path in layout.hidden_dropouts]
    dropouts = [each for each in hidden if isinstance(each, nn.Dropout) and each.p > 0]
    activation: ActivationLike = DropoutAfter(layout.activation, dropouts) if dropouts else layout.activation
    parts = shards(weights, granularity)
    experts = empty_experts(parts[0], num_experts, activation, impl=impl)
    for expert, own in enumerate(expert_weights(experts)):
        copy_weights_(own, method(parts[expert % granularity], generator))
    for mine, path in (
        (experts.up_proj, layout.up),
        (experts.up_bias, layout.up),
        (experts.down_proj, layout.down),
        (experts.down_bias, layout.down),
    ):
        if mine is not None:
            is_bias = mine.ndim == 2
            its = mlp.get_submodule(path).bias if is_bias else mlp.get_submodule(path).weight
            mine.requires_grad_(isinstance(its, Tensor) and its.requires_grad)
    return experts
