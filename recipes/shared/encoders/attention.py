"""Attention of text encoders that does not read its mask on the host.

transformers leaves the mask out where nothing is padded. To know that, it reads the mask in every forward, and the
host waits for the GPU. Batches of texts are padded nearly always, so here the mask is always passed.
"""

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "sdpa_with_mask"


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


AttentionInterface.register(_NAME, sdpa_attention_forward)
AttentionMaskInterface.register(_NAME, _mask)


def always_pass_mask(model: PreTrainedModel) -> None:
    """Makes a model that uses PyTorch's attention pass its mask always; other attention stays as it is."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(_NAME)
