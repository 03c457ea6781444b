"""The error of an image that cannot be read."""


class UnreadableImageError(ValueError):
    """An image that cannot be read; the message names it.

    A loader makes the error of its worker process again from a text with the whole traceback. Of that the last line is
    kept, which holds the message.

    Args:
        message: What is wrong, or a traceback that ends with it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())
