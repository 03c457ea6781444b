"""One clear error where pretrained weights cannot be had."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Turns whatever a hub client raises into one error that names a remedy.

    Args:
        what: What is being loaded, such as ``"image encoder 'vit_base_patch16_224'"``.
        remedy: The options that avoid the hub.

    Raises:
        RuntimeError: If the block raised an ``OSError`` (no network, no such repository, no such file), a
            network error, or a hub client's own error.
    """
    try:
        yield
    except Exception as error:
        if not _is_loading_error(error):
            raise
        raise RuntimeError(f"{what} could not be loaded: {first_line(error)} {remedy}") from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_loading_error(error: Exception) -> bool:
    module = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or module in ("huggingface_hub", "httpx", "requests", "safetensors")
