"""Whether Triton kernels can run here: the package is installed, or its interpreter is switched on."""

import importlib.util
import os


def _find_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ImportError:  # an import hook that refuses it
        return False


# Searched once: torch.compile cannot trace the search.
_TRITON_IS_INSTALLED = _find_triton()


def triton_is_installed() -> bool:
    """Returns whether Triton can be imported; it exists for Linux only."""
    return _TRITON_IS_INSTALLED


def interpreting() -> bool:
    """Returns whether Triton's interpreter is on (``TRITON_INTERPRET=1``), which runs kernels on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"
