"""Import Multilingual-CLIP (LREC 2022; github.com/FreddeFrallan/Multilingual-CLIP): an XLM-R, mean pool, a linear map.

A checkpoint such as M-CLIP/XLM-Roberta-Large-Vit-L-14 has:

    config.json             model_type M-CLIP, modelBase (the encoder's name), numDims or imageDimSize
    pytorch_model.bin       transformer.* (the encoder), LinearTransformation.weight and .bias
    tokenizer files         the encoder's

It has no image tower and not the encoder's sizes: these are the given CLIP's and those of modelBase.

Shapes: H encoder width, D embedding.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig

from mclip_kit.errors import CheckpointError, first_line
from mclip_kit.interop.imports.folders import folder_of, languages, read_json, read_weights
from mclip_kit.interop.imports.source import assemble, given_clip, linear_head, new_encoder
from mclip_kit.models.hub import MissingWeights, hub_answers, quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT
from mclip_kit.models.text_encoder import Encoder, tokenizer_of
from mclip_kit.storage import fetch

ENCODER, HEAD = "transformer.", "LinearTransformation."
UNUSED = ("embeddings.position_ids", "pooler.")
KINDS = ("bert", "distilbert", "roberta", "xlm-roberta")
TOKENIZERS = ("sentencepiece.bpe.model", "tokenizer.json", "vocab.txt")


def import_multilingual_clip(
    place: str | Path, clip: str | None, clip_weights: str | None = None, base: str | Path | None = None
) -> MultilingualClip:
    """Turn a Multilingual-CLIP checkpoint and the CLIP that it was trained for into a model.

    >>> from mclip_kit.interop.imports.multilingual_clip import import_multilingual_clip
    >>> model = import_multilingual_clip("models/XLM-Roberta-Large-Vit-L-14", "local-dir:models/ViT-L-14")
    >>> model.save("models/imported")

    Args:
        place: its folder, or its id on the hub.
        clip: the CLIP, as `teacher.model` of a recipe.
        clip_weights: its weights, as `teacher.weights`.
        base: a transformers folder of the encoder, for its config; None: the checkpoint's modelBase, from the hub.
    Raises:
        MissingWeights: the checkpoint or the config of its encoder is neither on disk nor on the hub.
        CheckpointError: it is of another kind, is damaged, or does not fit the CLIP.
        RecipeError: the CLIP is missing or has no weights.
    """
    name, folder = str(place), folder_of(place, "Multilingual-CLIP")
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "M-CLIP":
        raise CheckpointError(f"{folder / 'config.json'}: its model_type is {settings.get('model_type')}, not M-CLIP")
    state = _weights(folder)
    image_and_text = given_clip(clip, clip_weights, name)
    encoder = _encoder(folder, base or settings.get("modelBase"), state)
    head = linear_head("mean", state[f"{HEAD}weight"], state[f"{HEAD}bias"])
    model = assemble(image_and_text, encoder, head, name)
    model.trained_languages = languages(folder)
    return model


def _weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, in float32, checked to be the encoder's and the linear map's."""
    path, state = read_weights(folder)
    for name in (f"{HEAD}weight", f"{HEAD}bias"):
        if name not in state:
            raise CheckpointError(f"{path}: not a Multilingual-CLIP checkpoint: it has no {name}")
    unknown = sorted(name for name in state if not name.startswith((ENCODER, HEAD)))
    if unknown:
        raise CheckpointError(f"{path}: has weights that Multilingual-CLIP lacks, such as {unknown[0]}")
    return state


def _encoder(folder: Path, base: Any, state: Mapping[str, Tensor]) -> Encoder:
    if not base:
        raise CheckpointError(f"{folder / 'config.json'}: has no modelBase; give the encoder's folder: --base DIR")
    base = fetch(base) if isinstance(base, Path) else base
    offline = Path(base).is_dir() or not hub_answers()
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(str(base), local_files_only=offline, trust_remote_code=False)
    except UNFIT as error:
        if Path(base).is_dir():
            raise CheckpointError(f"{base}: not a transformers folder: {first_line(error)}") from None
        raise MissingWeights((f"config of {base}", "--base DIR, a transformers folder of that encoder")) from None
    if config.model_type not in KINDS:
        raise CheckpointError(f"{base}: a {config.model_type}; Multilingual-CLIP's are {', '.join(KINDS)}")
    own = {name.removeprefix(ENCODER): tensor for name, tensor in state.items() if name.startswith(ENCODER)}
    own = {name: tensor for name, tensor in own.items() if not name.startswith(UNUSED)}
    model = new_encoder(config)
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its encoder does not fit the config of {base}: {first_line(error)}") from None
    place = folder if any((folder / file).is_file() for file in TOKENIZERS) else base
    return Encoder(model, _tokenizer(str(place), config, offline or place is folder))


def _tokenizer(place: str, config: Any, offline: bool) -> Any:
    try:
        return tokenizer_of(place, config, offline)
    except UNFIT as error:
        raise CheckpointError(f"{place}: no tokenizer that can be read: {first_line(error)}") from None
