"""Low-rank adapters (LoRA) of experts by grouped GEMMs; the sum of weights and adapters is never made."""

from moekit.lora.adapter import ExpertsLoRA
from moekit.lora.edit import (
    add_lora_,
    load_lora_state_dict_,
    lora_disabled,
    lora_parameters,
    lora_state_dict,
    merge_lora_,
    remove_lora_,
    unmerge_lora_,
)

__all__ = [
    "ExpertsLoRA",
    "add_lora_",
    "load_lora_state_dict_",
    "lora_disabled",
    "lora_parameters",
    "lora_state_dict",
    "merge_lora_",
    "remove_lora_",
    "unmerge_lora_",
]
