"""Tiny pipelines with text encoders and tokenizers: prompts in, images out, random weights.

pipe = prompted("flux")   # "flux", "sd3" or "sd"; pictures of sides that are multiples of 4 pixels
"""

from typing import Any

import tiny_pipes
import torch
import transformers

WORDS = ["a", "photo", "of", "cat", "dog", "green", "small", "very"]
SIZES = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "max_position_embeddings": 77}


def prompted(name: str) -> Any:
    parts, latents = {"flux": (_flux, 1), "sd3": (_sd3, 2), "sd": (_sd, 2)}[name]
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return tiny_pipes.pipeline(name, **tiny_pipes.vae(latents), **parts())


def _flux() -> dict[str, Any]:
    first = {"text_encoder": _clip(hidden_size=10), "tokenizer": _clip_words()}
    return {**first, "text_encoder_2": _t5(), "tokenizer_2": _t5_words()}


def _sd3() -> dict[str, Any]:
    clips = [_clip(hidden_size=side, projection_dim=side) for side in (4, 6)]
    found = {"text_encoder": clips[0], "text_encoder_2": clips[1], "text_encoder_3": _t5()}
    words = {"tokenizer": _clip_words(), "tokenizer_2": _clip_words(), "tokenizer_3": _t5_words()}
    return found | words


def _sd() -> dict[str, Any]:
    return {"text_encoder": _clip(), "tokenizer": _clip_words()}


def _clip(**own: int) -> Any:
    config = transformers.CLIPTextConfig(**{**SIZES, **own}, vocab_size=64)
    config.bos_token_id, config.eos_token_id = 0, 1
    kind = transformers.CLIPTextModelWithProjection if "projection_dim" in own else None
    return (kind or transformers.CLIPTextModel)(config).eval()


def _t5() -> Any:
    config = transformers.T5Config(d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2)
    config.vocab_size = 128
    return transformers.T5EncoderModel(config).eval()


def _clip_words() -> Any:
    pieces = ["<|startoftext|>", "<|endoftext|>", *(word + "</w>" for word in WORDS)]
    letters = sorted({letter for word in WORDS for letter in word})
    pieces += [*letters, *(letter + "</w>" for letter in letters)]
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _t5_words() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", *("▁" + word for word in WORDS)]
    vocab = [(piece, -float(n)) for n, piece in enumerate(pieces)]
    return transformers.T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)
