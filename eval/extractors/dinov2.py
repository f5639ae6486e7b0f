"""DINOv2 ViT-L/14: the features of FD-DINOv2, which rank images as people do (arXiv:2306.04675)."""

from pathlib import Path

from .transformer import Card, TransformerExtractor, load_transformer

DINOV2 = Card(
    name="dinov2",
    repo="facebook/dinov2-large",
    cls="Dinov2Model",
    output="pooler_output",  # the class token after the last norm
    dim="hidden_size",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def load_dinov2(path: Path | None = None, device: str = "cpu") -> TransformerExtractor:
    """The extractor from a folder or the hub; see `load_transformer`."""
    return load_transformer(DINOV2, path, device)
