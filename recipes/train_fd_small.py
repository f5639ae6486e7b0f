"""Trains the small feature networks, fd-small and fd-emoji: minutes on one core.

    python recipes/train_fd_small.py [fd-small] [--epochs 12] [--work FOLDER] [--out FOLDER]
    python recipes/train_fd_small.py fd-emoji --epochs 40

Needs `fewstep data fashion-mnist`, or `emoji`. Every epoch is kept in --work, and the same command
goes on from the last one. Written are model.safetensors (half precision) and config.json.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from fewstep.eval.data import ImageSet, images_of, in_memory
from fewstep.eval.extractors.small import (
    EMOJI,
    FASHION,
    FEATURES,
    SMALL_CARDS,
    Layer,
    SmallCard,
    SmallNetwork,
)
from fewstep.models.files import make_folder, write_bytes, write_whole

SEED = 0
BATCH = 128
PEAK = 4e-3  # learning rate
DECAY = 0.02  # of the weights of convolutions
SHIFT = 2  # pixels, at most
EMBEDDED = Path(__file__).parents[1] / "eval" / "embedded"
HELD_OUT = 10  # one emoji of so many is left out of the training
DATA = {
    FASHION: "Fashion-MNIST, 60000 training images in the middle of 32x32 zeros",
    EMOJI: f"Noto emoji, also in skin tones; every {HELD_OUT}th of the first is for testing",
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("name", nargs="?", choices=SMALL_CARDS, default=FASHION.name)
    asked.add_argument("--epochs", type=int, default=12)
    asked.add_argument("--work", type=Path, default=Path("/tmp/fd-small"))
    asked.add_argument("--out", type=Path, help="default eval/embedded/NAME")
    options = asked.parse_args()
    card = SMALL_CARDS[options.name]
    train, test = load_sets(card)
    make_folder(options.work)
    kept = options.work / f"{card.name}-of-{options.epochs}-epochs.pt"
    network = scaled(halved(folded(fit(train, options.epochs, kept, card))), train)
    out = options.out or EMBEDDED / card.name
    write(network, out, options.epochs, accuracy(network, test), card)


def load_sets(card: SmallCard) -> tuple[ImageSet, ImageSet]:
    """Returns the images to train on and those to test with."""
    if card == FASHION:
        return images_of("fashion-mnist-32"), images_of("fashion-mnist-32:test")
    emoji, tones = images_of("emoji"), images_of("emoji:tones")
    rows = torch.arange(len(emoji))
    first, held_out = rows % HELD_OUT > 0, rows % HELD_OUT == 0
    return joined([(emoji, first), (tones, slice(None))]), joined([(emoji, held_out)])


def joined(parts: list[tuple[ImageSet, Tensor | slice]]) -> ImageSet:
    """Rows of some sets as one set."""
    pixels = torch.cat([torch.cat(list(images.batches()))[rows] for images, rows in parts])
    labels = torch.cat([images.labels[rows] for images, rows in parts])
    return in_memory("emoji", pixels.numpy(), labels)


def fit(images: ImageSet, epochs: int, checkpoint: Path, card: SmallCard = FASHION) -> SmallNetwork:
    """AdamW, one cycle; shifts and flips; the same from the same seed on the same machine."""
    torch.manual_seed(SEED)
    network = normed(SmallNetwork(card)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(groups(network), lr=PEAK, betas=(0.9, 0.99))
    steps = len(images) // BATCH
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=epochs * steps)
    parts = {"network": network, "optimizer": optimizer, "rate": rate}
    pixels, labels = torch.cat(list(images.batches())), images.labels
    for epoch in range(resumed(checkpoint, parts), epochs):
        start, losses = time.perf_counter(), []
        order = torch.Generator().manual_seed(1000 * SEED + epoch)
        for rows in tqdm(list(batches(len(images), order)), desc=f"epoch {epoch}", disable=None):
            x = moved(pixels[rows], order).float() / 255.0
            loss = F.cross_entropy(logits(network, x), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            losses.append(float(loss.detach()))
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.4f}, {seconds:.0f} s", flush=True)
        keep(checkpoint, epoch + 1, parts)
    return network


def logits(network: SmallNetwork, x: Tensor) -> Tensor:
    """The head reads features scaled by the batch while training, by the whole set afterwards."""
    x = network.extract(x.contiguous(memory_format=torch.channels_last))
    return network.head(network.scale(x) if network.training else (x - network.mean) / network.std)


def normed(network: SmallNetwork) -> SmallNetwork:
    """With batch norms, which make it train fast and are folded away later."""
    for layer in layers(network):
        layer.norm = nn.BatchNorm2d(layer.conv.out_channels)
    network.scale = nn.BatchNorm1d(sum(FEATURES), affine=False)
    return network


def layers(network: SmallNetwork) -> list[Layer]:
    return [each for each in network.modules() if isinstance(each, Layer)]


def groups(network: SmallNetwork) -> list[dict[str, object]]:
    """Only convolutions and the head decay, not norms and biases."""
    values = list(network.parameters())
    return [
        {"params": [each for each in values if each.ndim > 1], "weight_decay": DECAY},
        {"params": [each for each in values if each.ndim == 1], "weight_decay": 0.0},
    ]


def batches(n: int, order: torch.Generator) -> Iterator[Tensor]:
    """Whole batches of all rows in random order."""
    rows = torch.randperm(n, generator=order)
    return (rows[i : i + BATCH] for i in range(0, n - BATCH + 1, BATCH))


def moved(images: Tensor, order: torch.Generator) -> Tensor:
    """Each image shifted by up to SHIFT pixels, and half of them mirrored."""
    n, _, _, side = images.shape
    shifts = torch.randint(-SHIFT, SHIFT + 1, (2, n, 1), generator=order)
    rows, columns = (shifts + torch.arange(side)).clamp(0, side - 1)  # the edge goes on
    mirrored = torch.rand(n, 1, generator=order) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    moved = images[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def resumed(checkpoint: Path, parts: dict[str, object]) -> int:
    """Epochs that were done before."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["epochs"]


def keep(checkpoint: Path, epochs: int, parts: dict[str, object]) -> None:
    states = {name: part.state_dict() for name, part in parts.items()}
    write_whole(checkpoint, lambda file: torch.save({"epochs": epochs, **states}, file))


@torch.no_grad()
def folded(network: SmallNetwork) -> SmallNetwork:
    """The same function in evaluation without norms; the scale of features moves to mean, std."""
    network = deepcopy(network).eval()
    for layer in layers(network):
        norm = layer.norm
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        layer.conv.weight.mul_(gain[:, None, None, None])
        layer.conv.bias.copy_((layer.conv.bias - norm.running_mean) * gain + norm.bias)
        layer.norm = nn.Identity()
    network.mean.copy_(network.scale.running_mean)
    network.std.copy_((network.scale.running_var + network.scale.eps).sqrt())
    del network.scale
    return network


@torch.no_grad()
def halved(network: SmallNetwork) -> SmallNetwork:
    """Every weight rounded to half precision, as it will be stored."""
    for each in network.parameters():
        each.copy_(each.half())
    return network


@torch.no_grad()
def scaled(network: SmallNetwork, images: ImageSet) -> SmallNetwork:
    """Features of mean 0 and variance 1 on the set; the head is changed to say the same as before.

    w . (x - m)/s + b = (w s'/s) . (x - m')/s' + b + w . (m' - m)/s
    """
    features = torch.cat([network.extract(x.float() / 255.0) for x in images.batches()]).double()
    mean, std = features.mean(0).float(), features.std(0).float()
    head = network.head
    head.bias.add_(head.weight @ ((mean - network.mean) / network.std))
    head.weight.mul_(std / network.std)
    network.mean.copy_(mean)
    network.std.copy_(std)
    return network


@torch.no_grad()
def accuracy(network: SmallNetwork, images: ImageSet) -> float:
    guesses = [network.head(network(x.float() / 255.0)).argmax(1) for x in images.batches()]
    return float((torch.cat(guesses) == images.labels).double().mean())


def write(network: SmallNetwork, out: Path, epochs: int, measured: float, card: SmallCard) -> None:
    """Convolutions in half precision; the scale and the head, which are small, in single."""
    make_folder(out)
    small = {name: each.contiguous() for name, each in network.state_dict().items()}
    stored = {name: each.half() if each.ndim == 4 else each for name, each in small.items()}
    content = save(stored)
    write_bytes(out / "model.safetensors", content)
    facts = {
        "name": card.name,
        "data": DATA[card],
        "features": sum(FEATURES),
        "parameters": sum(each.numel() for each in network.parameters()),
        "test_accuracy": round(measured, 4),
        "recipe": f"recipes/train_fd_small.py {card.name} --epochs {epochs}",
        "seed": SEED,
        "license": "Apache-2.0",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_bytes(out / "config.json", (json.dumps(facts, indent=2) + "\n").encode())
    print(f"test accuracy {100 * measured:.2f} %, written to {out}")


if __name__ == "__main__":
    main()
