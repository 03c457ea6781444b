"""The contrastive loss of whole images with whole texts.

Shape letters: B pairs of this process, D width.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moekit.checks import check_choice, check_floating, check_rank, check_same_device
from moekit.collectives import all_gather_with_gradient
from moekit.contrastive._checks import check_scale, check_text_ids
from moekit.contrastive._positives import cross_entropy_to_all, equal_ids
from moekit_kernels.autocast import no_autocast

Directions = Literal["both", "image-to-text", "text-to-image"]
DIRECTIONS = ("both", "image-to-text", "text-to-image")


def global_contrastive_loss(
    image: Float[Tensor, "B D"],
    text: Float[Tensor, "B D"],
    *,
    temperature: float | None = None,
    logit_scale: Float[Tensor, "*one"] | float | None = None,
    text_ids: Int[Tensor, "B"] | None = None,
    directions: Directions = "both",
    gather: bool = False,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, ""]:
    """Computes the symmetric cross entropy of cosine similarities of images and texts.

    ``(CE(logits) + CE(logits.T)) / 2`` with ``logits = cos(image, text) / temperature``, in nats; ``ln B``
    where all similarities are equal, 0 at best without equal texts. Computed in float32 (float64 for
    float64 features), also under autocast.

    With ``gather``, each rank's loss is of its own rows against the columns of all ranks, and features are
    gathered with gradients. The mean over ranks is the loss of the whole batch, and the gradients that DDP
    averages are those of the whole batch, of a learned ``logit_scale`` too.

    Args:
        image: Embeddings of images, shape (B, D), of any length greater than zero.
        text: Embeddings of their texts, shape (B, D).
        temperature: Divides the similarities.
        logit_scale: Multiplies them, in place of ``temperature``; a tensor of one element may be learned
            (give CLIP's parameter after its ``exp``). GLoRIA's ``temp3`` is such a scale.
        text_ids: Equal ids mark equal texts, shape (B,): the images of one text are all positives of it,
            and its copies all positives of them, with equal weight. By default every text is different.
        directions: ``"both"``, their mean; or ``"image-to-text"`` or ``"text-to-image"`` alone.
        gather: Whether to compare with the pairs of all ranks; without a process group the same as not.
        group: Process group to gather over; the default group if None.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: If not exactly one of ``temperature`` and ``logit_scale`` is given, if ``directions`` is unknown,
            if a shape, dtype or device does not fit, if ``group`` is given without ``gather``, or if ranks hold
            batches of different size.

    Reference:
        CLIP, figure 3, https://arxiv.org/abs/2103.00020; GLoRIA, equations 1 and 2,
        https://openaccess.thecvf.com/content/ICCV2021/html/Huang_GLoRIA_ICCV_2021_paper.html (which adds
        the directions: twice this); several positives as in SupCon, equation 2,
        https://arxiv.org/abs/2004.11362, and UniCL, https://arxiv.org/abs/2204.03610. MedMoE prints one
        direction alone: ``directions="image-to-text"``.

    Example:
        >>> same = torch.eye(4)
        >>> bool(global_contrastive_loss(same, same, temperature=0.01) < 1e-6)
        True
        >>> global_contrastive_loss(torch.ones(4, 2), torch.ones(4, 2), logit_scale=10.0)
        tensor(1.3863)
    """
    _check(image, text, text_ids)
    check_choice("directions", directions, DIRECTIONS)
    if group is not None and not gather:
        raise ValueError("group must be left out without gather=True: nothing is compared over ranks.")
    scale = _scale_of(temperature, logit_scale, image)
    batch = image.shape[0]
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    own_ids = torch.arange(batch, device=image.device) if text_ids is None else text_ids
    with no_autocast(image.device.type):
        own = torch.stack([F.normalize(image.to(dtype), dim=1), F.normalize(text.to(dtype), dim=1)], dim=1)
        if gather and dist.is_available() and dist.is_initialized():
            # Image and text together: one collective each way, in the same order on every rank.
            gathered = all_gather_with_gradient(own, group)
            first = dist.get_rank(group) * batch
            all_ids = torch.arange(len(gathered), device=image.device)
            own_ids = own_ids + first if text_ids is None else text_ids
            all_ids = all_ids if text_ids is None else all_gather_with_gradient(text_ids, group)
        else:
            gathered, all_ids = own, own_ids
        positives = equal_ids(own_ids, all_ids)
        to_text = cross_entropy_to_all(scale * (own[:, 0] @ gathered[:, 1].T), positives)
        to_image = cross_entropy_to_all(scale * (own[:, 1] @ gathered[:, 0].T), positives)
        return {"both": (to_text + to_image) / 2, "image-to-text": to_text, "text-to-image": to_image}[directions]


def _check(image: Tensor, text: Tensor, text_ids: Tensor | None) -> None:
    check_rank("image", image, 2, "B, D")
    check_floating("image", image)
    check_floating("text", text)
    if text.shape != image.shape:
        raise ValueError(
            f"text must have the shape of image, {tuple(image.shape)}, got {tuple(text.shape)}. "
            "Project both to one width and give one text per image."
        )
    check_same_device("text", text, "image", image)
    if text_ids is not None:
        check_text_ids(text_ids, image.shape[0], image, "image")


def _scale_of(temperature: float | None, logit_scale: Tensor | float | None, image: Tensor) -> Tensor | float:
    """Returns the factor of the similarities."""
    if (temperature is None) == (logit_scale is None):
        raise ValueError(
            f"Exactly one of temperature and logit_scale must be given, got temperature={temperature} and "
            f"logit_scale={logit_scale}. One is the inverse of the other."
        )
    if temperature is not None:
        check_scale("temperature", temperature)
        return 1 / temperature
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1:
            raise ValueError(f"logit_scale must have one element, got shape {tuple(logit_scale.shape)}.")
        check_same_device("logit_scale", logit_scale, "image", image)
        return logit_scale.reshape(())
    assert logit_scale is not None  # one of the two is given
    check_scale("logit_scale", logit_scale)
    return logit_scale
