"""Import a model of open_clip with a multilingual text tower of Hugging Face, such as xlm-roberta-base-ViT-B-32.

Its text tower becomes the student, as an encoder of its own and a projector, and stays the teacher's text tower too.

Shapes: H encoder width, D embedding.
"""

from pathlib import Path
from typing import Any

import torch
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from open_clip.tokenizer import HFTokenizer, get_clean_fn
from pydantic import TypeAdapter
from torch import nn

from mclip_kit import storage
from mclip_kit.config.model import Pictures, TextCleaning
from mclip_kit.errors import MALFORMED, CheckpointError, first_line
from mclip_kit.interop.imports.folders import languages, read_json
from mclip_kit.interop.imports.source import (
    Head,
    assemble,
    limited,
    linear_head,
    mlp_head,
    trained_clip,
    without_pooler,
)
from mclip_kit.interop.open_clip_text import ENCODERS
from mclip_kit.layout import CLIP_CONFIG
from mclip_kit.models.clip import Clip
from mclip_kit.models.hub import hub_answers, quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT
from mclip_kit.models.text_encoder import Encoder, tokenizer_of


def import_open_clip(place: str | Path, pretrained: str | None = None) -> MultilingualClip:
    """Turn a model of open_clip into a model whose student is its text tower.

    >>> from mclip_kit.interop.imports.open_clip import import_open_clip
    >>> model = import_open_clip("models/xlm-roberta-base-ViT-B-32")
    >>> model.save("models/imported")

    Args:
        place: a folder in open_clip's format, `local-dir:DIR`, `hf-hub:ID`, or a name of open_clip.
        pretrained: for a name: its pretrained tag, or a weight file.
    Raises:
        CheckpointError: it is damaged, or its text tower is none that a student can be.
        MissingWeights: it is neither on disk nor on the hub.
        RecipeError: open_clip does not know the name, or the weights are missing.
    """
    own = storage.fetch(storage.place(place))
    name = f"local-dir:{own}" if own.is_dir() else str(place)
    with quiet_transformers():
        clip = trained_clip(name, pretrained, name, "--pretrained")
    source = str(place)
    try:
        _check(clip)
        text: Any = clip.model.text
        encoder = Encoder(without_pooler(text.transformer), _tokenizer(clip, name))
        encoder = limited(encoder, clip.tokenizer.context_length, source)  # type: ignore[attr-defined]
        model = assemble(clip, encoder, _head(text), source)
    except CheckpointError as error:
        raise CheckpointError(str(error) if source in str(error) else f"{source}: {error}") from None
    model.text_cleaning = "ftfy"  # open_clip's own
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_dir():
        model.trained_languages = languages(folder)
        _own_facts(model, folder / CLIP_CONFIG)
    return model


def _check(clip: Clip) -> None:
    """CheckpointError if a CLIP's text tower cannot become a student."""
    text: Any = clip.model.text
    if not isinstance(text, HFTextEncoder):
        raise CheckpointError(
            "its text tower is CLIP's own, not a multilingual encoder; name it in a recipe as teacher.model, and train "
            "a student for it"
        )
    kind = text.config.model_type
    if kind not in ENCODERS:
        raise CheckpointError(f"its text tower is a {kind}; only {', '.join(ENCODERS)} can be imported")
    pools_last = isinstance(text.pooler, ClsLastHiddenStatePooler | MeanPooler)
    if not pools_last and not (isinstance(text.pooler, ClsPooler) and text.transformer.pooler is None):
        what = type(text.pooler).__name__
        raise CheckpointError(f"its text tower pools by {what}; a student pools the first token's state or the mean")
    tokenizer = clip.tokenizer
    usual = isinstance(tokenizer, HFTokenizer) and tokenizer.clean_fn is get_clean_fn("whitespace")
    if not usual or tokenizer.strip_sep_token or tokenizer.tokenizer_mode:  # type: ignore[attr-defined]
        raise CheckpointError(
            "its tokenizer changes texts in a way that no text_cleaning has (tokenizer_kwargs or tokenizer_mode in its "
            "text_cfg, as SigLIP's); name it in a recipe as teacher.model instead"
        )


def _tokenizer(clip: Clip, name: str) -> Any:
    """The student's tokenizer, from where open_clip takes its own."""
    kind, _, rest = name.partition(":")
    place = rest if kind == "local-dir" else clip.config["text_cfg"].get("hf_tokenizer_name") or rest
    text: Any = clip.model.text
    try:
        return tokenizer_of(place, text.config, Path(place).is_dir() or not hub_answers())
    except UNFIT as error:
        raise CheckpointError(f"{place}: no tokenizer that can be read: {first_line(error)}") from None


def _head(text: Any) -> Head:
    """The projector that is an open_clip text tower's pool and projection, which have no biases."""
    pool = "mean" if isinstance(text.pooler, MeanPooler) else "cls"
    maps = [module for module in text.proj.modules() if isinstance(module, nn.Linear)]
    weights = [(module.weight.detach(), None if module.bias is None else module.bias.detach()) for module in maps]
    if not weights:
        return linear_head(pool, torch.eye(text.output_dim), None)
    return linear_head(pool, *weights[0]) if len(weights) == 1 else mlp_head(pool, weights[0], weights[1])


def _own_facts(model: MultilingualClip, path: Path) -> None:
    """What an export of this package says about texts and pictures."""
    facts = read_json(path).get("mclip_kit")
    if facts is None:
        return
    try:
        cleaning: TextCleaning = TypeAdapter(TextCleaning).validate_python(facts["text_cleaning"])
        model.text_cleaning, model.clip[0].pictures = cleaning, Pictures.model_validate(facts["pictures"])
    except MALFORMED as error:
        raise CheckpointError(f"{path}: mclip_kit: not what an export says ({first_line(error)})") from None
