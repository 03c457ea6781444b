"""The sparse blocks of ``transformers`` whose rules are known, and how each class names and lays out its parts.

Letters in shapes: E experts, A experts that the router knows (more only beside Z identity experts), D width, L width of
the experts (another only between latent projections), F hidden width of an expert, S hidden width of the shared expert.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple

from moekit_kernels.routing.options import Scoring

Bank = Literal["stacked", "split", "input_gated", "identity"]
"""Experts of one stack; of three matrices ``(E * F, D)`` (DBRX); with gates on their inputs, without an interface
(Llama 4); and beside identity experts (LongCat)."""


class Form(NamedTuple):
    """How the blocks of a class are made.

    Attributes:
        router: Name of the router in the block.
        scoring: As of :class:`~moekit.routers.top_k.TopKRouter`, or PhiMoE's sparse mixer.
        renormalize: Whether the gates of a token are divided by their sum; None where a setting of the block says so.
        weight: Name of the matrix in the router.
        selection_bias: Name in the block of what is added to the scores for selection; some blocks have none.
        epsilon: Added to the sum that gates are divided by.
        shared: Name of the shared expert in the block; some blocks have none.
        shared_gate: Name of the linear layer whose sigmoid weights the shared expert.
        float_logits: Whether the router returns float32 in every dtype.
        experts: How the experts are kept.
        clamped_shared: Whether the shared expert clamps gate and value by its ``limit``, as the others do.
    """

    router: str = "gate"
    scoring: Scoring | Literal["sparse_mixer"] = "softmax"
    renormalize: bool | None = None
    weight: str = "weight"
    selection_bias: str | None = None
    epsilon: float = 0.0
    shared: str | None = None
    shared_gate: str | None = None
    float_logits: bool = False
    experts: Bank = "stacked"
    clamped_shared: bool = False


_QWEN2 = Form(shared="shared_expert", shared_gate="shared_expert_gate")
_DEEPSEEK_V3 = Form(
    scoring="sigmoid", selection_bias="gate.e_score_correction_bias", shared="shared_experts", float_logits=True
)

_MIXTRAL = Form(renormalize=True)
_QWEN3 = Form()
_DEEPSEEK_V2 = Form(renormalize=False, shared="shared_experts", float_logits=True)
_ERNIE = Form(
    renormalize=True,
    selection_bias="gate.moe_statics.e_score_correction_bias",
    shared="shared_experts",
    float_logits=True,
)
_GRANITE = Form("router", "topk_softmax", renormalize=True, float_logits=True)

FORMS: Final[Mapping[str, Form]] = {
    "MixtralSparseMoeBlock": _MIXTRAL,
    "Qwen3MoeSparseMoeBlock": _QWEN3,
    "Qwen2MoeSparseMoeBlock": _QWEN2,
    "Qwen3NextSparseMoeBlock": _QWEN2,
    "OlmoeSparseMoeBlock": _QWEN3,
    "FlexOlmoSparseMoeBlock": _QWEN3,
    "DeepseekV3MoE": _DEEPSEEK_V3,
    "DeepseekV2Moe": _DEEPSEEK_V2,
    "DeepseekV4SparseMoeBlock": Form(
        scoring="sqrt_softplus",
        renormalize=True,
        selection_bias="gate.e_score_correction_bias",
        shared="shared_experts",
        clamped_shared=True,
    ),
    "Glm4MoeMoE": _DEEPSEEK_V3,
    "Dots1MoE": _DEEPSEEK_V3,
    "NemotronHMoE": _DEEPSEEK_V3,
    "Ernie4_5_MoeSparseMoeBlock": _ERNIE,
    "MiniMaxM2SparseMoeBlock": Form(scoring="sigmoid", renormalize=True, selection_bias="e_score_correction_bias"),
    "GraniteMoeMoE": _GRANITE,
    "JambaSparseMoeBlock": Form("router", renormalize=False),
    "DbrxFFN": Form("router", weight="layer.weight", experts="split"),
    "Lfm2MoeSparseMoeBlock": Form(scoring="sigmoid", selection_bias="expert_bias", epsilon=1e-6),
    "GptOssMLP": Form("router", "topk_softmax", renormalize=True),
    "HunYuanMoEV1Moe": Form(renormalize=True, weight="wg.weight", shared="shared_mlp"),
    "AriaTextMoELayer": Form("router", "topk_softmax", renormalize=True, shared="shared_experts"),
    "Llama4TextMoe": Form("router", "sigmoid", renormalize=False, shared="shared_expert", experts="input_gated"),
    "LongcatFlashMoE": Form(
        "router",
        renormalize=False,
        weight="classifier.weight",
        selection_bias="router.e_score_correction_bias",
        float_logits=True,
        experts="identity",
    ),
    "PhimoeSparseMoeBlock": Form("router", "sparse_mixer", renormalize=False),
    "Qwen3_5MoeSparseMoeBlock": Form(renormalize=True, shared="shared_expert", shared_gate="shared_expert_gate"),
    # Others of the same rules.
    "BailingHybridMoE": _DEEPSEEK_V3,
    "DeepseekOcr2TextMoe": _DEEPSEEK_V2,
    "DeepseekV32MoE": _DEEPSEEK_V3,
    "Dots3NoteTextMoE": _DEEPSEEK_V3,
    "Ernie4_5_VLMoeSparseMoeBlock": _ERNIE,
    "ExaoneMoeSparseMoEBlock": _DEEPSEEK_V3,
    "Glm4MoeLiteMoE": _DEEPSEEK_V3,
    "Glm4vMoeTextMoE": _DEEPSEEK_V3,
    "GlmMoeDsaMoE": _DEEPSEEK_V3,
    "GraniteMoeHybridMoE": _GRANITE,
    "GraniteMoeSWAMoE": _GRANITE,
    "GraniteMoeSharedMoE": _GRANITE,
    "KimiLinearMoE": _DEEPSEEK_V3,
    "MellumSparseMoeBlock": _QWEN3,
    "MiMoV2FlashMoE": _DEEPSEEK_V3,
    "MiniMaxSparseMoeBlock": _MIXTRAL,
    "Mistral4MoE": Form(shared="shared_experts"),
    "MistralLarge4TextMoE": Form(renormalize=True, shared="shared_experts", float_logits=True),
    "Qwen3OmniMoeTalkerTextSparseMoeBlock": _QWEN2,
    "Qwen3OmniMoeThinkerTextSparseMoeBlock": _QWEN3,
    "Qwen3VLMoeTextSparseMoeBlock": _MIXTRAL,
    "Qwen4ExpTextSparseMoeBlock": _QWEN2,
    "SolarOpenMoE": _DEEPSEEK_V3,
    "UnlimitedOcrTextMoe": _DEEPSEEK_V2,
}
"""By the name of the class."""

Known = str | tuple[Any, ...] | Callable[[Any], bool]
"""Values that a setting may have: the size of a letter, one of some, or those of which a function says so."""


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _is_any(value: Any) -> bool:
    return True


def _is_negligible(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1e-12


# A setting of the same name has the same meaning in every class that has it.
BLOCK: Final[Mapping[str, Known]] = {
    "top_k": _is_count,
    "num_experts": "E",
    "hidden_dim": "D",
    "input_size": "D",
    "ffn_dim": "F",
    "intermediate_size": "F",
    "input_jitter_noise": _is_number,  # in training, which is refused with it
    "jitter_noise": (0, None),
    "shared_experts": (None,),
    "is_hash": (False,),
    "use_expert_bias": _is_flag,
    "moe_normalize_expert_weights": (None, 1),
}
ROUTER: Final[Mapping[str, Known]] = {
    "top_k": _is_count,
    "num_experts": "E",
    "n_routed_experts": "A",
    "hidden_dim": "D",
    "hidden_size": "D",
    "in_features": "D",
    "out_features": "E",
    "norm_topk_prob": _is_flag,
    "routed_scaling_factor": _is_number,
    "num_group": lambda value: value is None or _is_count(value),
    "topk_group": lambda value: value is None or _is_count(value),
    "topk_method": ("greedy", "group_limited_greedy"),
    "router_bias": (False,),
    "router_jitter_noise": _is_number,
    "input_jitter_noise": _is_number,
    "norm_min": _is_negligible,
    "moe_jitter_eps": (None,),
    "use_expert_bias": _is_flag,
    "layer_idx": _is_any,
}
EXPERTS: Final[Mapping[str, Known]] = {
    "num_experts": "E",
    "moe_num_experts": "E",
    "num_routed_experts": "E",
    "zero_expert_num": "Z",
    "total_experts": "A",
    "expert_dim": "F",
    "hidden_dim": "D",
    "hidden_size": "D",
    "intermediate_dim": "F",
    "intermediate_size": "F",
    "ffn_hidden_size": "F",
    "has_gate": _is_flag,
    "has_bias": _is_flag,
    "has_post_expert_norm": (False,),
    "is_transposed": _is_flag,
    "is_concatenated": _is_flag,
    "_is_expert_parallel": (False,),
    "act_fn": _is_any,  # a function; whether it is known is asked elsewhere
    "alpha": _is_number,
    "limit": _is_number,
}
SHARED: Final[Mapping[str, Known]] = {"hidden_size": "D", "intermediate_size": "S"}
SHARED_LIMIT: Final[Known] = _is_number
