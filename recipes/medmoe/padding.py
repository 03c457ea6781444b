"""Which regions of an image hold something: not the black bars of a letter box."""

import torch.nn.functional as F
from torch import Tensor


def visible_regions(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Tells which regions of square images lie, at least in part, inside the bars around them.

    A bar is a row or column at the border whose pixels are all as dark as the darkest of the image: what
    :func:`~recipes.data.images.square.fit_square` puts around an image that is not square, also after changes of
    exposure, and the empty border of a scan. Where augmentation turned the image, a bar's slanted edge counts as image.
    An image of one value only has no bars.

    Args:
        images: ``(B, C, S, S)``, normalised or not.
        size: ``(h, w)``, rows and columns of the regions.

    Returns:
        ``(B, h, w)``, False for regions in a bar.
    """
    blank = (images == images.amin((2, 3), keepdim=True)).all(1)
    rows, columns = _between_bars(blank.all(2)), _between_bars(blank.all(1))
    seen = rows.unsqueeze(2) & columns.unsqueeze(1)
    seen = seen | ~seen.any((1, 2), keepdim=True)
    return F.adaptive_max_pool2d(seen.float().unsqueeze(1), size).squeeze(1) > 0


def _between_bars(blank: Tensor) -> Tensor:
    """Returns what is left of lines ``(B, S)`` without the blank ones at either end."""
    leading = blank.long().cumprod(1)
    trailing = blank.long().flip(1).cumprod(1).flip(1)
    return (leading + trailing) == 0
