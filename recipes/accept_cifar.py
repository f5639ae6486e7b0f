"""Measures FID of CIFAR-10's 50,000 training images against its 10,000 test images: 3.1 to 3.2.

    python recipes/accept_cifar.py

Sums of features are saved after every part in results/cifar-parts, and a run that was stopped goes
on there. The statistics of the training images are written to results/cifar10-inception.npz, with
their sha256 beside the figure in results/cifar.json.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from fewstep.eval.bench.rows import machine, versions
from fewstep.eval.data import images_of
from fewstep.eval.data.image_set import ImageSet
from fewstep.eval.extractors import Extractor, extractor, origin_of
from fewstep.eval.statistics import Moments, Statistics, frechet
from fewstep.eval.statistics_file import save_npz
from fewstep.models.errors import SettingError
from fewstep.models.files import make_folder, write_bytes
from fewstep.models.hashing import hash_file
from fewstep.models.reading import read_tensors

RESULTS = Path(__file__).parents[1] / "results"
PARTS = RESULTS / "cifar-parts"
PART, BATCH = 1000, 32
PUBLISHED = 3.1, 3.2


def gather(images: ImageSet, network: Extractor, folder: Path, output: str = "pool") -> Statistics:
    """Returns the statistics of some images, part by part; finished parts are in the folder."""
    total = Moments(network.outputs[output])
    for start in range(0, len(images), PART):
        part = images.part(start, min(start + PART, len(images)))
        path = folder / f"{images.sha256[:16]}-{network.sha256[:16]}-{start}.safetensors"
        total.merge(_gather_part(part, network, path, output))
        sys.stderr.write(f"\r{total.n} of {len(images)} images")
    return total.statistics(origin_of(network))


def _gather_part(images: ImageSet, network: Extractor, path: Path, output: str) -> Moments:
    try:
        return Moments.from_tensor(read_tensors(path)[0]["moments"])
    except (SettingError, KeyError):
        moments = Moments(network.outputs[output])
    for batch in images.batches(BATCH):
        moments.update(network(batch)[output])
    write_bytes(path, save({"moments": moments.to_tensor()}))
    return moments


def main() -> None:
    make_folder(PARTS)
    network = extractor("inception", None, "cpu")
    with torch.inference_mode():
        train, test = (
            gather(images_of(name), network, PARTS) for name in ("cifar10", "cifar10:test")
        )
    path = RESULTS / "cifar10-inception.npz"
    save_npz(path, {"pool": train}, {})
    figure = {"fid": frechet(train, test), "published": PUBLISHED, "sha256": hash_file(path)}
    facts = {**figure, "weights": network.sha256, "machine": machine(), "versions": versions()}
    write_bytes(RESULTS / "cifar.json", f"{json.dumps(facts, indent=1)}\n".encode())
    sys.stdout.write(f"FID {figure['fid']:.4f}, published {PUBLISHED[0]} to {PUBLISHED[1]}\n")


if __name__ == "__main__":
    main()
