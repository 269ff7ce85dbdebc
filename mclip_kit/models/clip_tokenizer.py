"""The tokenizer of a CLIP's text tower, as open_clip makes it."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import Tensor

from mclip_kit.models.hub import offline_unless_hub_answers


def build_tokenizer(text: dict[str, Any], folder: str = "") -> Callable[[list[str]], Tensor]:
    """The tokenizer of a text tower: a list of texts -> ids (B, context length).

    Args:
        text: `text_cfg` of the CLIP's config.
        folder: of the CLIP; then a Hugging Face tokenizer is the one that is there.
    Raises:
        Exception: one of `safe_load.UNFIT`, if open_clip cannot make it.
    """
    options = {"context_length": text.get("context_length", 77), **(text.get("tokenizer_kwargs") or {})}
    name = text.get("hf_tokenizer_name")
    if not name:
        return clips_own(json.dumps(options))
    with nullcontext() if folder else offline_unless_hub_answers():
        return HFTokenizer(folder or name, tokenizer_mode=text.get("tokenizer_mode"), **options)


@cache
def clips_own(options: str) -> SimpleTokenizer:
    """CLIP's own tokenizer, once a process: its table takes open_clip a while, and 20 MB."""
    return SimpleTokenizer(**json.loads(options))
