"""Hashes of files and of JSON values."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_HASHED = 2**16  # numbers of one tensor


def hash_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_sampled(path: Path, blocks: int = 4096, size: int = 2**14) -> str:
    """Returns the sha256 of a file, or, if it has more bytes than blocks, of its size and these.

    The blocks lie at even distances, so a large file costs as much as one of 64 MiB. Training that
    changes all weights changes them; an edit of a few numbers may lie between.
    """
    whole = path.stat().st_size
    if whole <= blocks * size:
        return hash_file(path)
    body = hashlib.sha256(str(whole).encode())
    with path.open("rb") as file:
        for i in range(blocks):
            file.seek((whole - size) * i // (blocks - 1))
            body.update(file.read(size))
    return body.hexdigest()


def hash_json(body: Any) -> str:
    """Returns the sha256 of canonical JSON: sorted keys, no spaces, shortest exact floats."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_modules(modules: "Iterable[nn.Module]", rounded: "torch.dtype | None" = None) -> str:
    """Returns the sha256 of the weights of modules: names, shapes and numbers.

    Of a large tensor numbers at even distances count, as for large files in `hash_sampled`.

    rounded: a dtype that floating numbers are rounded to, so that those of another one count alike.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            step = max(1, value.numel() // MOST_HASHED)
            numbers = value.detach().flatten()[::step]
            if rounded is not None and numbers.is_floating_point():
                numbers = numbers.to(rounded)
            numbers = numbers.double().cpu().contiguous()
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()
