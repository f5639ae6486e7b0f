"""CLIP ViT-L/14: its image embeddings, before they are scaled to length 1 (arXiv:2103.00020)."""

from pathlib import Path

from .transformer import Card, TransformerExtractor, load_transformer

CLIP = Card(
    name="clip",
    repo="openai/clip-vit-large-patch14",
    cls="CLIPVisionModelWithProjection",
    output="image_embeds",
    dim="projection_dim",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)


def load_clip(path: Path | None = None, device: str = "cpu") -> TransformerExtractor:
    """The extractor from a folder or the hub; see `load_transformer`."""
    return load_transformer(CLIP, path, device)
