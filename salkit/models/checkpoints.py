"""Weights on disk: safetensors, other projects' pickles after a checksum, and the states of interrupted trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from salkit.atomic import atomic_write
from salkit.data.downloads import verify


def save_checkpoint(net: nn.Module, path: str | Path, dtype: torch.dtype | None = None, metadata: dict[str, str] | None = None) -> None:
    """Write a net's weights as safetensors; floating-point tensors are converted to `dtype` if given."""
    state = {k: v.to(dtype) if dtype and v.is_floating_point() else v for k, v in net.state_dict().items()}
    with atomic_write(path) as part:
        save_file({k: v.contiguous().cpu() for k, v in state.items()}, part, metadata)


def load_checkpoint(net: nn.Module, path: str | Path) -> None:
    """Put the weights of a safetensors file into a net.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a safetensors file (pickles are never opened), a damaged one, or weights of another architecture.

    Example:
        >>> from salkit.models.zoo import checkpoint_path, cifar10_net
        >>> load_checkpoint(cifar10_net("resnet20"), checkpoint_path("cifar10-resnet20"))
    """
    with open_checkpoint(path) as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
    load_state(net, state, path)


@contextmanager
def open_checkpoint(path: str | Path) -> Iterator[Any]:
    """Open a safetensors file to read its `metadata()` and tensors; errors as in `load_checkpoint`.

    Example:
        >>> from salkit.models.zoo import checkpoint_path
        >>> with open_checkpoint(checkpoint_path("cifar10-resnet20")) as file:
        ...     len(file.keys())
        128
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a checkpoint, got {path}, which is not a file")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file in one piece, got {_looks_like(path)} ({error})") from error


def load_state(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Put weights into a net.

    Raises:
        ValueError: the weights are of another architecture; the message names `source` and some of the keys.
    """
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        both = (net.state_dict(), state if isinstance(state, Mapping) else {})
        own, other = ({key: tuple(v.shape) for key, v in s.items() if isinstance(v, Tensor)} for s in both)
        shapes = [f"{key} {other[key]} for {own[key]}" for key in sorted(own.keys() & other.keys()) if own[key] != other[key]]
        kinds = {"missing": sorted(own.keys() - other.keys()), "unexpected": sorted(other.keys() - own.keys()), "other shapes": shapes}
        difference = "; ".join(f"{kind}: {', '.join(keys[:3])} ({len(keys)} in all)" for kind, keys in kinds.items() if keys)
        raise ValueError(
            f"{source}: expected the weights of a {type(net).__name__} of this architecture, got others ({difference})"
        ) from error


def load_training_state(path: str | Path, keys: Sequence[str], device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read the state of an interrupted training.

    Torch's restricted reader is used, which builds tensors and plain values and runs no code.

    Raises:
        ValueError: the file is damaged, or some of `keys` are missing.
    """
    with Path(path).open("rb") as file:
        try:
            state = torch.load(file, map_location=device, weights_only=True)
            if missing := set(keys) - set(state):
                raise KeyError(f"no {sorted(missing)}")
        except Exception as error:  # the reader raises many kinds of errors for damaged files
            raise ValueError(
                f"state_path: expected the state of an interrupted training, got {path}, which is damaged or another file; delete it to "
                "train from the start"
            ) from error
    return state


def load_pth(net: nn.Module, path: Path, checksum: str) -> None:
    """Put the weights of a .pth file, a pickle, into a net.

    The file is opened only after its checksum matched, and with torch's restricted reader, which builds tensors and runs no code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another checksum, or weights of another architecture.
    """
    load_state(net, torch.load(verify(path, checksum), map_location="cpu", weights_only=True), path)


def _looks_like(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "a zip, as torch.save writes it around a pickle"
    if head[0] == 0x80 and head[1:2] <= b"\x05":
        return "a pickle"
    return "a damaged or another file"
