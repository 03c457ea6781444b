"""Says what to install, before anything of the package is imported."""

import importlib


def require() -> None:
    """Raises ``ImportError`` with the command that installs what is missing."""
    for name in ("huggingface_hub", "safetensors"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f'moekit.interop.hub needs {name}: pip install "moekit[hub]".') from error


require()
