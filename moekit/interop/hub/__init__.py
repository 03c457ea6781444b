"""Layers and models as files, and on the Hugging Face Hub. Needs the extra ``hub``."""

from moekit.interop.hub import _installed as _installed
from moekit.interop.hub.folder import from_pretrained, push_to_hub, save_pretrained
from moekit.interop.hub.known import register_all as _register_all
from moekit.interop.hub.mixin import MoEHubMixin
from moekit.interop.hub.registry import register_part

_register_all()

__all__ = ["MoEHubMixin", "from_pretrained", "push_to_hub", "register_part", "save_pretrained"]
