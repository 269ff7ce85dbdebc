"""The given CLIP: open_clip's towers with their tokenizer and image transform."""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from open_clip.factory import get_model_config, get_pretrained_cfg
from open_clip.hf_model import HFTextEncoder
from open_clip.model import convert_to_custom_text_state_dict, set_model_preprocess_cfg
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mclip_kit.config.model import AS_OPEN_CLIP, Pictures
from mclip_kit.config.yaml import suggest
from mclip_kit.data.pictures import to_rgb
from mclip_kit.errors import CheckpointError, RecipeError, first_line
from mclip_kit.files import write_json, write_whole
from mclip_kit.layout import CLIP_CONFIG, CLIP_WEIGHTS
from mclip_kit.models.attention import speed_up
from mclip_kit.models.clip_tokenizer import build_tokenizer
from mclip_kit.models.freezing import evaluating
from mclip_kit.models.hub import MissingWeights, offline_unless_hub_answers
from mclip_kit.models.model_folder import check_part
from mclip_kit.models.openai import openai_config
from mclip_kit.models.safe_load import UNFIT, plain_values, read_pickle, refusal
from mclip_kit.models.text_encoder import config_for_hash
from mclip_kit.storage import fetch, place

TEXT = "text"  # in a folder that we write: the config of a Hugging Face text tower
OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # entries of OpenAI's files that are no weights
SAFE_FORMATS = (".safetensors", ".npz", ".npy")  # of open_clip and big_vision: no pickle inside
READ_NAMES, OTHER_NAMES = (".safetensors", ".bin", ".pth"), (".pt", ".ckpt")  # of weights in a folder
TRANSFORM = ("mean", "std", "interpolation", "resize_mode")


class Origin(NamedTuple):
    """The CLIP that an image tower came from: its name, a digest of the tower, and how it makes pictures RGB."""

    name: str
    digest: str
    pictures: Pictures


class Clip(nn.Module):
    """Image tower and text tower of a CLIP, with their tokenizer and image transform.

    Shapes: B batch, S picture size, T tokens, E width of the shared space.

    Attributes:
        model: open_clip's CustomTextCLIP; `.visual` maps pixels (B, 3, S, S) to (B, E), `.text` ids (B, T) to (B, E).
        config: open_clip's model config.
        preprocess: open_clip's preprocess config (size, mean, std, interpolation, resize_mode).
        tokenizer: open_clip's; list of texts -> ids (B, context length).
        pictures: how `transform` makes pictures RGB; open_clip's own way unless a model says otherwise.
        origin: kept by `interop.origin` for the card.
        trims: whether `trim` shortens ids; it does if that does not change embeddings.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        speed_up(model)
        self.model = model
        self.config = config
        self.preprocess = dict(model.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
        self.pictures = AS_OPEN_CLIP
        self.origin: Origin | None = None
        self._transform = image_transform_v2(PreprocessCfg(**self.preprocess), is_train=False)
        self.tokenizer = tokenizer
        text: Any = model.text
        for tower in (model.visual, text):
            if getattr(tower, "output_tokens", False):  # CoCa: returns token states too
                tower.output_tokens = False  # type: ignore[union-attr]
        self.trims = isinstance(text, TextTransformer) and _ignores_later_tokens(text)
        if self.trims:
            text.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)

    def transform(self, picture: Image.Image) -> Tensor:
        """Pixels (3, S, S) of a picture of any mode and size; DataError if it cannot be made RGB."""
        pixels: Tensor = self._transform(to_rgb(picture, self.pictures))
        return pixels

    def image_facts(self) -> dict[str, Any]:
        """Everything that decides the pixels of a picture, as JSON values: part of the key of cached features."""
        how = {} if self.pictures == AS_OPEN_CLIP else {"pictures": self.pictures.model_dump()}
        return {"preprocess": self.preprocess, **how}

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Ids (B, T) for the text tower, trimmed if that does not change the embeddings."""
        return self.trim(self.tokenizer(list(texts)))

    def trim(self, ids_BT: Tensor) -> Tensor:
        """Cut ids (B, T) after the longest text of the batch.

        A causal tower pools the end-of-text token, which does not attend to later tokens, so embeddings do not change.
        Other towers (SigLIP, CoCa, Hugging Face) keep the full length.
        """
        if not self.trims:
            return ids_BT
        text: Any = self.model.text
        end = ids_BT if text.pool_type == "argmax" else (ids_BT == text.eos_id).int()  # as open_clip pools
        return ids_BT[:, : int(end.argmax(1).max()) + 1]

    def tokenizer_facts(self) -> dict[str, Any]:
        """Everything that decides the tokenizer's ids, as JSON values: part of the key of cached features."""
        backend = getattr(getattr(self.tokenizer, "tokenizer", None), "backend_tokenizer", None)
        rules = json.loads(backend.to_str()) if backend is not None else {}
        return {
            "kind": type(self.tokenizer).__name__,
            "length": getattr(self.tokenizer, "context_length", None),
            "rules": {**rules, "truncation": None, "padding": None},  # set by the first call
        }

    def text_facts(self) -> dict[str, Any]:
        """The own config of a Hugging Face text tower, as JSON values: `config` names its folder alone."""
        text: Any = self.model.text
        return {"text": config_for_hash(text.config)} if isinstance(text, HFTextEncoder) else {}

    @property
    def width(self) -> int:
        """Width E of the shared embedding."""
        return int(self.config["embed_dim"])

    def save(self, folder: Path) -> None:
        """Write a folder that open_clip loads as `local-dir:FOLDER`."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with write_whole(folder / CLIP_WEIGHTS) as temporary:
            save_file(state, temporary, {"format": "pt"})
        if isinstance(self.tokenizer, HFTokenizer):  # open_clip looks for its files next to the config
            self.tokenizer.save_pretrained(folder)
        if isinstance(self.model.text, HFTextEncoder):
            self.model.text.config.save_pretrained(folder / TEXT)
        config = {**self.config, "custom_text": True}
        write_json(folder / CLIP_CONFIG, {"model_cfg": config, "preprocess_cfg": self.preprocess})


def build_clip(model: str | dict[str, Any], weights: str | None = None) -> Clip:
    """Build open_clip's towers, separated into image and text.

    Args:
        model: an open_clip name, `local-dir:DIR`, `hf-hub:ORG/NAME`, `openai:FILE` (a weight file in OpenAI's naming;
            the sizes are read from it) or a model config.
        weights: a pretrained tag or a file; `random` and `train` both mean random weights.
    Raises:
        RecipeError: open_clip does not know the model or the tag, or cannot build the config.
        MissingWeights: the weights are neither in the cache nor on the hub.
        CheckpointError: a file is missing, damaged, or does not fit the model.
    """
    if isinstance(model, dict):
        return _from_config(model)
    kind, _, name = model.partition(":")
    path = fetch(place(name)) if kind in ("local-dir", "openai") else Path()
    if kind == "local-dir":
        check_part(path)
        return clip_from_folder(path)
    if kind == "openai":
        return from_openai(read_pickle(path), str(path))
    return _from_name(model, None if weights in (None, "random", "train") else str(fetch(place(str(weights)))))


def _ignores_later_tokens(text: Any) -> bool:
    causal = text.attn_mask is not None and text.cls_emb is None and not text.use_pad_mask
    return causal and text.pool_type in ("argmax", "eos")


def _cut_mask(_: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cut open_clip's causal mask (77, 77) to the length of the batch; open_clip passes it whole."""
    T = inputs[0].shape[1]
    return inputs, {**options, "attn_mask": options["attn_mask"][:T, :T]}


def _from_config(config: dict[str, Any]) -> Clip:
    try:
        model = _new(config)
        _try_picture(model)
        return Clip(model, config, build_tokenizer(config["text_cfg"]))
    except UNFIT as error:
        raise RecipeError(f"teacher.model: open_clip cannot build this config: {first_line(error)}") from None


def _try_picture(model: Any) -> None:
    """Run the image tower once: some sizes that do not fit fail only on a picture."""
    with evaluating(model):
        model.visual(torch.zeros(1, *PreprocessCfg(**model.visual.preprocess_cfg).input_size))


def _new(config: dict[str, Any]) -> Any:
    """open_clip's towers with random weights, and CLIP's own preprocessing."""
    model = open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=model.visual.image_size)))
    return model


def from_openai(state: dict[str, Tensor], where: str, config: dict[str, Any] | None = None) -> Clip:
    """A CLIP from weights in OpenAI's naming.

    Args:
        state: name -> weight, of any precision; the towers become float32.
        where: the file, for messages.
        config: open_clip's model config; by default the sizes are read from the weights, as OpenAI's code does.
    Raises:
        CheckpointError: the weights are not a CLIP's, or do not fit the config.
    """
    try:
        config = {**(config or openai_config(state)), "quick_gelu": True}  # as OpenAI's models were trained
        weights = {name: tensor.float() for name, tensor in state.items() if name not in OPENAI_SIZES}
        model = _new(config)
        model.load_state_dict(convert_to_custom_text_state_dict(weights))
    except UNFIT as error:
        why = first_line(error)
        raise CheckpointError(f"{where}: not a CLIP in OpenAI's naming, or not the configured one: {why}") from None
    return Clip(model, config, build_tokenizer(config["text_cfg"]))


def clip_from_folder(folder: Path) -> Clip:
    """A CLIP from a folder in open_clip's format; CheckpointError if a file is missing, damaged, or does not fit."""
    if not (folder / CLIP_CONFIG).is_file():
        raise CheckpointError(f"{folder / CLIP_CONFIG}: missing; local-dir: takes a folder in open_clip's format")
    name = f"local-dir:{folder}"
    try:
        config = json.loads((folder / CLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        options = {"force_custom_text": True, "require_pretrained": True, **_own_text(config, folder)}
        asks_hub = config["text_cfg"].get("hf_model_name") and not (folder / TEXT).is_dir()
        with offline_unless_hub_answers() if asks_hub else nullcontext(), plain_values():
            model = open_clip.create_model(name, **options)
            tokenizer = build_tokenizer(config["text_cfg"], str(folder))
        if isinstance(model.visual, TimmModel):  # open_clip does not pass its own image_size on to timm
            _try_picture(model)
        clip = Clip(model, config, tokenizer)
        if not clip.transform(Image.new("RGB", (2, 2))).isfinite().all():
            raise ValueError("preprocess_cfg gives pixels that are non-finite (NaN or inf)")
        return clip
    except UNFIT as error:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in OTHER_NAMES)
        if others and not any(path.suffix in READ_NAMES for path in folder.iterdir()):
            looks = f"open_clip looks for {', '.join(READ_NAMES)}"
            raise CheckpointError(f"{folder}: {looks}; rename {others[-1]} to open_clip_pytorch_model.bin") from None
        raise CheckpointError(f"{folder}: {_unfit(error, 'open_clip cannot load it')}") from None


def _unfit(error: Exception, what: str) -> str:
    """Why open_clip could not load weights."""
    return refusal(error) or f"{what}: {first_line(error)}"


def _own_text(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a Hugging Face text tower that `Clip.save` wrote; without it open_clip asks the hub."""
    if not config["text_cfg"].get("hf_model_name") or not (folder / TEXT).is_dir():
        return {}
    return {"text_cfg": {**config["text_cfg"], "hf_model_name": str(folder / TEXT), "hf_model_pretrained": False}}


def _from_name(name: str, weights: str | None) -> Clip:
    hub = name.startswith("hf-hub:")
    name = name if hub else name.replace("/", "-")  # papers write ViT-B/32
    file = bool(weights) and os.path.isfile(str(weights))
    if not hub:
        _check_names(name, weights, file)
    if file and Path(str(weights)).suffix not in SAFE_FORMATS:
        state = read_pickle(str(weights))
        if isinstance(state, dict) and OPENAI_SIZES[0] in state:
            return from_openai(state, str(weights), get_model_config(name))
    quick = bool(weights and (get_pretrained_cfg(name, weights) or {}).get("quick_gelu"))
    options: dict[str, Any] = {"force_custom_text": True, "force_quick_gelu": quick}
    options |= {"require_pretrained": hub or bool(weights), "force_preprocess_cfg": _common(name) if file else None}
    try:
        with offline_unless_hub_answers(), plain_values():
            model = open_clip.create_model(name, pretrained=weights, **options)
            config, tokenizer = get_model_config(name), open_clip.get_tokenizer(name)
    except UNFIT as error:
        if file or not isinstance(error, OSError | RuntimeError | ValueError):
            why = _unfit(error, f"open_clip cannot load it into {name}")
            raise CheckpointError(f"{weights or name}: {why}") from None
        what = f"teacher {name} ({weights})" if weights else f"teacher {name}"
        raise MissingWeights((what, "teacher.model: local-dir:DIR or openai:FILE")) from None
    return Clip(model, {**config, **({"quick_gelu": True} if quick else {})}, tokenizer)


def _common(name: str) -> dict[str, Any]:
    """The preprocessing that all tags of a model share, for weight files: they do not contain it."""
    tags = [get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    return {key: tags[0][key] for key in TRANSFORM if tags and all(tag[key] == tags[0][key] for tag in tags)}


def _check_names(name: str, weights: str | None, file: bool) -> None:
    if get_model_config(name) is None:
        raise RecipeError(f"teacher.model: open_clip has no model {name!r}{suggest(name, open_clip.list_models())}")
    known = open_clip.list_pretrained_tags_by_model(name)
    if weights and weights not in known and not file:
        raise RecipeError(f"teacher.weights: {weights!r} is no file and no tag of {name}; tags: {', '.join(known)}")
