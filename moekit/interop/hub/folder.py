"""Models to folders and to the Hugging Face Hub, and back."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from huggingface_hub import HfApi, snapshot_download  # pyright: ignore[reportUnknownVariableType]
from torch import nn

from moekit.interop.hub.description import (
    FILE,
    Description,
    build_parts,
    describe,
    put,
    read_description,
    write_description,
)
from moekit.interop.hub.state import INDEX, load_state, read_state, state_of, write_state

_FILES = [FILE, INDEX, "config.json", "model*.safetensors"]


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Saves a layer, or a model that holds parts of moekit: tensors as safetensors, parts as ``moekit.json``.

    The json says how to build the parts: routers, experts, shared experts, gates, activations, fusion layers, with the
    settings that they have now. What is around them in a model is not described; :func:`from_pretrained` then takes
    the model. Modes, ``requires_grad``, hooks and optimisers are not saved.

    Of a model after :func:`~moekit.distributed.expert_parallel_` or ``fully_shard`` the files are those of the whole
    model. All ranks must call it. Each writes the rows that it holds at their place in the files, so none has more of
    the model than before; of those that hold the same, one writes it.

    Args:
        model: A part of moekit, or a model that holds some.
        folder: Where to write; it is made. Files of an earlier saving are replaced. For a divided model it must be on
            a file system that all ranks share.
        max_shard_size: Largest size of one file of tensors, such as ``"5GB"``; one tensor is never split.
        process_group: Of a divided model, all ranks that it is divided among; the default group if None.

    Raises:
        ValueError: If the model holds no part, or one that cannot be rebuilt: a class or a function that is not
            registered (see :func:`register_part`), or a part that was changed after it was built in a way that no
            argument says. Nothing is written then.

    Example:
        >>> import tempfile
        >>> from moekit import SparseMoE
        >>> from moekit.interop.hub import from_pretrained, save_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(SparseMoE.ffn(64, 128, num_experts=8, top_k=2), folder)
        ...     layer = from_pretrained(folder)
        >>> layer.experts.num_experts
        8
    """
    save_into(model, Path(folder), max_shard_size, process_group=process_group)


def from_pretrained(
    source: str | Path,
    *,
    model: nn.Module | None = None,
    divide: Callable[[nn.Module], object] | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> nn.Module:
    """Loads what :func:`save_pretrained` saved, in evaluation mode.

    Only registered classes and functions are built; no code and no pickle of the files is run. Tensors have the dtype
    that they were saved in.

    Args:
        source: A folder, or the id of a repository, ``"owner/name"``.
        model: Of a model that holds parts: the model, built as it was before (without the parts, as before
            :func:`~moekit.interop.upcycle_`, or with other weights). The parts are put into it and its tensors
            replaced, so make its optimiser afterwards. None for a layer.
        divide: Divides the model among ranks in place, such as
            ``lambda model: expert_parallel_(model, mesh["ep"])``, followed by ``fully_shard`` or not. It is called with
            a model without values, and each rank then reads only the rows that it holds. All ranks must call
            ``from_pretrained``.
        device: Where tensors are loaded; by default where those of ``model`` are, or the CPU.
        revision: Branch, tag or commit of the repository.
        token: Access token of the Hub; that of the machine by default.
        cache_dir: Where downloads are kept.
        force_download: Whether to download again.
        local_files_only: Whether to use earlier downloads alone.

    Returns:
        The layer or the model.

    Raises:
        ValueError: If a file is missing or of a newer version, a part is not known, or tensors are missing, unexpected
            or of another shape.
    """
    folder = download(source, revision, token, cache_dir, force_download, local_files_only)
    return load_into(model, folder, None if device is None else torch.device(device), divide)


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    commit_message: str = "Upload a model with moekit",
    max_shard_size: int | str = "5GB",
) -> str:
    """Uploads what :func:`save_pretrained` would save, in one commit. The repository is made where there is none.

    Args:
        model: See :func:`save_pretrained`.
        repo_id: Id of the repository, ``"owner/name"``.
        private: Whether a repository that is made is private; the owner's default by default.
        token: Access token of the Hub; that of the machine by default.
        branch: Branch of the commit.
        create_pr: Whether to open a pull request instead.
        commit_message: Message of the commit.
        max_shard_size: See :func:`save_pretrained`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: See :func:`save_pretrained`.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, max_shard_size=max_shard_size)
        api = HfApi(token=token)
        full_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=full_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )


def download(
    source: str | Path,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
    force_download: bool,
    local_files_only: bool,
    files: Sequence[str] = _FILES,
) -> Path:
    """Returns the folder of a source, downloaded where it is the id of a repository: those of its ``files``."""
    if os.path.isdir(source):
        return Path(source)
    if isinstance(source, Path) or source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise ValueError(
            f'source must be a folder, or a repository as "owner/name", got {str(source)!r}: no such folder.'
        )
    downloaded = snapshot_download(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        force_download=force_download,
        local_files_only=local_files_only,
        allow_patterns=list(files),
    )
    return Path(downloaded)


def save_into(
    model: nn.Module,
    folder: Path,
    max_shard_size: int | str = "5GB",
    *,
    within: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> None:
    """Writes a model; see :func:`save_pretrained`.

    Args:
        model: The model.
        folder: Where to write.
        max_shard_size: Largest size of one file of tensors.
        within: Whether to describe the parts in the model, and never the model itself.
        process_group: All ranks that a divided model is divided among.
    """
    if dist.is_available() and dist.is_initialized():
        from moekit.interop.hub.divided import is_divided, save_divided  # imports half of torch.distributed

        if is_divided(model):
            save_divided(model, folder, max_shard_size, process_group, within=within)
            return
    parts = describe(model, within=within)
    tensors, tied = state_of(model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    write_state(tensors, folder, max_shard_size)
    write_description(folder, Description(parts, tied))


def load_into(
    model: nn.Module | None,
    folder: Path,
    device: torch.device | None,
    divide: Callable[[nn.Module], object] | None = None,
) -> nn.Module:
    """Builds the parts of a folder, in a model or alone, and loads all tensors; see :func:`from_pretrained`."""
    description = read_description(folder)
    fallback = torch.device("cpu") if device is None else device
    if device is None and model is not None:
        fallback = next((each.device for each in model.parameters() if not each.is_meta), fallback)
    if divide is not None:
        from moekit.interop.hub.divided import shapes_of

        state = shapes_of(folder)
    else:
        state = read_state(folder, "cpu" if device is None else device)
    parts = build_parts(description.parts, model, fallback)
    whole = parts[""] if model is None else model
    before = {} if model is None else put(model, parts)
    stays = device is None and model is not None
    try:
        load_state(whole, state, description.tied, fallback if stays and divide is None else None)
    except Exception:
        put(whole, before)
        raise
    if divide is not None:
        from moekit.interop.hub.divided import divide_and_fill

        divide_and_fill(whole, divide, folder, description.tied, fallback)
    return (whole if stays else whole.to(fallback)).eval()
