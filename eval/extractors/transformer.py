"""Extractors that come from transformers: DINOv2 ViT-L/14 and CLIP ViT-L/14."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.extras import check_installed
from .weights import WeightsError, fingerprint

FILES = ["config.json", "*.safetensors"]
PATIENCE = 5.0  # seconds in which the hub must begin to answer


@dataclass(frozen=True)
class Card:
    """The model to load, and its input.

    name:      of the extractor.
    repo:      on the hub, used where no folder is given.
    cls:       the class of transformers.
    output:    the field of its answer that holds the features (B, D).
    dim:       the field of its config that holds D.
    mean, std: of the three colours, pixels in [0, 1].
    side:      images are resized to side x side.
    """

    name: str
    repo: str
    cls: str
    output: str
    dim: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    side: int = 224


CARDS = {
    "dinov2": Card(  # whose Frechet distance ranks images as people do (arXiv:2306.04675)
        name="dinov2",
        repo="facebook/dinov2-large",
        cls="Dinov2Model",
        output="pooler_output",  # the class token after the last norm
        dim="hidden_size",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "clip": Card(  # its image embeddings before they are scaled to length 1 (arXiv:2103.00020)
        name="clip",
        repo="openai/clip-vit-large-patch14",
        cls="CLIPVisionModelWithProjection",
        output="image_embeds",
        dim="projection_dim",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
}


class TransformerExtractor:
    """pool (D): images resized to 224 x 224, bicubic and antialiased, then normalised."""

    def __init__(self, card: Card, network: nn.Module, device: str = "cpu") -> None:
        self._card = card
        self._network = network.eval().requires_grad_(False)
        self._mean, self._std = (
            torch.tensor(each, device=device).view(3, 1, 1) for each in (card.mean, card.std)
        )
        self.name = card.name
        self.sha256 = fingerprint(network.state_dict())
        self.resize = f"bicubic-antialias-{card.side}"
        self.outputs = {"pool": int(getattr(network.config, card.dim))}
        network.to(device)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Maps uint8 (B, C, H, W), C 1 or 3 -> float32 (B, D) on the CPU; grey is repeated."""
        size = (self._card.side, self._card.side)
        with torch.inference_mode():
            x = images.to(self._mean.device).float() / 255.0
            if x.shape[-2:] != size:
                x = F.interpolate(x, size, mode="bicubic", antialias=True)
            answer = self._network((x - self._mean) / self._std)
            pool = getattr(answer, self._card.output)
        return {"pool": pool.float().cpu().clone()}


def load_transformer(card: Card, path: Path | None, device: str) -> TransformerExtractor:
    """Returns the network from a folder, or from the hub and its cache; safetensors only.

    Raises:
        SettingError: if transformers is not installed.
        WeightsError: if the weights cannot be had, or do not fit.
    """
    check_installed("transformers")
    return TransformerExtractor(card, _network(card, str(path or _from_hub(card))), device)


def _from_hub(card: Card) -> str:
    """Returns the folder in the hub's cache; transformers itself would try for half a minute."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(card.repo, allow_patterns=FILES, etag_timeout=PATIENCE)
    except LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached, and its cache does not hold them."
        raise _no_weights(card, card.repo, reason) from error
    except (OSError, HfHubHTTPError) as error:
        raise _no_weights(card, card.repo, str(error)) from error


def _network(card: Card, source: str) -> nn.Module:
    import transformers

    try:
        with _silent(transformers.logging):
            network, info = getattr(transformers, card.cls).from_pretrained(
                source, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _no_weights(card, source, str(error)) from error
    missing = [name for name in info["missing_keys"] if not name.endswith("mask_token")]
    if missing:
        raise WeightsError(f"{source!r} is no {card.name}: it lacks {min(missing)}")
    loaded: nn.Module = network
    return loaded


def _no_weights(card: Card, source: str, reason: str) -> WeightsError:
    said = (reason.strip() or "no reason given.").splitlines()[0]
    return WeightsError(
        f"no weights of {card.name} at {source!r}: {said} Fetch {card.repo} from the hub on a"
        " machine that reaches it, and give the folder with --weights"
    )


@contextmanager
def _silent(logging: Any) -> Iterator[None]:
    """Silences transformers' report on every load; what matters becomes an error here."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
