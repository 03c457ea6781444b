"""Imports packages that only the recipes need, with one error that names the command that installs them."""

import importlib
from types import ModuleType


def require(module: str, purpose: str, *, extra: str = "recipes") -> ModuleType:
    """Imports ``module``, or raises an error with the command that installs it.

    Args:
        module: Dotted name of the module.
        purpose: What needs it, as the beginning of a sentence: ``"reading a DICOM file"``.
        extra: The extra of this package that installs it.

    Returns:
        The module.

    Raises:
        ImportError: Naming the purpose, the package and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else module
        package = missing.partition(".")[0]
        raise ImportError(
            f'{purpose} needs {package}, which cannot be imported ({error}): pip install "moekit[{extra}]"'
        ) from error
