"""Export a model as a folder that sentence-transformers loads: a `Router` of texts and pictures, then `Normalize`.

    modules.json, router_config.json
    text_0_Transformer/   the encoder, an X-projector's layers appended to it; text_1_Pooling/, text_2_Dense/, ...
    image_0_Transformer/  a CLIPVisionModel; image_1_Dense/ its projection, a clip projector multiplied into it

With `text_only` the same text modules stand alone, without a Router: other servers of sentence-transformers read them.

Shapes: H encoder width, D embedding.
"""

import json
from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import MODEL_MAPPING, CLIPVisionConfig, CLIPVisionModel, XLMRobertaTokenizer

from mclip_kit.data.tokenizer import XlmrTokenizer
from mclip_kit.errors import CheckpointError
from mclip_kit.files import follow_umask, write_json
from mclip_kit.interop import clip_pictures
from mclip_kit.interop.clip_vision import processor_config, vision_config, vision_state
from mclip_kit.interop.export import Format, Options
from mclip_kit.interop.open_clip_text import ENCODERS, EncoderLayers, affine
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.projectors import NoisyStandardization
from mclip_kit.models.special_tokens import save_as_text

TOLERANCE = 1e-5
POOLS = {"cls": "cls", "mean": "mean", "eos": "lasttoken"}
TYPES = {
    "Router": "sentence_transformers.base.modules.router.Router",
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
}
USE = """
from PIL import Image
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("{folder}")
text = model.encode(["ein Hund", "un chien"])
image = model.encode(Image.open("photo.jpg"))
print(model.similarity(text, image))
"""
TEXT_USE = """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("{folder}")
text = model.encode(["ein Hund", "un chien"])
print(model.similarity(text[0], text[1]))
"""
Module = tuple[str, dict[str, Any], dict[str, Tensor]]
"""Kind, config, weights."""


def write(model: MultilingualClip, folder: Path, options: Mapping[str, Any]) -> None:
    """Write the folder.

    Args:
        model: on the CPU, float32.
        folder: exists and is empty.
        options: `text_only`: leave pictures out; `truncate_dim`: the width to which the library cuts embeddings.
    """
    text = [_pooling(model), *_head(model.projector.head)]
    if options["text_only"]:
        _encoder(model, folder)
        names = _modules(folder, "", text)
        places = {"": "Transformer", **{name: name.rpartition("_")[2] for name in names}}
    else:
        routes = {"text": text, "image": [_dense(vision_state(model)[1], None)]}
        _encoder(model, folder / "text_0_Transformer")
        _image_tower(model, folder / "image_0_Transformer")
        structure = {
            route: [f"{route}_0_Transformer", *_modules(folder, f"{route}_", modules)]
            for route, modules in routes.items()
        }
        types = {name: TYPES[name.rpartition("_")[2]] for names in structure.values() for name in names}
        parameters = {"default_route": "text", "allow_empty_key": True, "route_mappings": {}}
        write_json(folder / "router_config.json", {"types": types, "structure": structure, "parameters": parameters})
        places = {"": "Router"}
    keys = {f"module_{way}put_name": "sentence_embedding" for way in ("in", "out")}
    (last,) = _modules(folder, "", [("Normalize", keys, {})], len(places))
    places[last] = "Normalize"
    entries = [
        {"idx": number, "name": str(number), "path": path, "type": TYPES[kind]}
        for number, (path, kind) in enumerate(places.items())
    ]
    write_json(folder / "modules.json", entries)
    settings = {"model_type": "SentenceTransformer", "prompts": {}, "similarity_fn_name": "cosine"}
    settings |= {"truncate_dim": options["truncate_dim"]} if options.get("truncate_dim") else {}
    write_json(folder / "config_sentence_transformers.json", settings)


def _encoder(model: MultilingualClip, folder: Path) -> None:
    """The encoder with an X-projector's layers, and its tokenizer."""
    encoder: Any = model.encoder.model
    with quiet_transformers():
        if model.projector.blocks is not None:
            layers = EncoderLayers(model)
            encoder = type(encoder)(layers.config, add_pooling_layer=False)
            encoder.load_state_dict(layers.state)
        encoder.save_pretrained(folder)
        follow_umask(folder)
        model.encoder.tokenizer.save(folder)
        if isinstance(model.encoder.tokenizer, XlmrTokenizer):  # XLM-R XL: transformers knows its class by no name
            XLMRobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
        save_as_text(folder)
    file = folder / "tokenizer_config.json"
    rules = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, {**rules, "model_max_length": model.encoder.positions, "padding_side": "right"})
    loaded = MODEL_MAPPING[type(encoder.config)]  # what sentence-transformers' AutoModel makes of the folder
    pooler = "add_pooling_layer" in signature(loaded.__init__).parameters
    more: dict[str, Any] = {"max_seq_length": model.encoder.positions}
    more |= {"model_kwargs": {"add_pooling_layer": False}} if pooler else {}
    _transformer(folder, "text", "last_hidden_state", "token_embeddings", more)


def _image_tower(model: MultilingualClip, folder: Path) -> None:
    """The image tower without its projection."""
    with quiet_transformers():
        tower = CLIPVisionModel(CLIPVisionConfig(**vision_config(model.image), projection_dim=model.clip[0].width))
        tower.load_state_dict(vision_state(model)[0])
        tower.save_pretrained(folder)
        follow_umask(folder)
    write_json(folder / "preprocessor_config.json", processor_config(model.clip[0]))
    more = {"processor_kwargs": {"backend": "pil"}}  # torchvision's resize gives other pixels than the model's
    _transformer(folder, "image", "pooler_output", "sentence_embedding", more)


def _transformer(folder: Path, modality: str, field: str, output: str, more: dict[str, Any]) -> None:
    """The config of sentence-transformers' Transformer.

    Args:
        modality: what it reads.
        field: of the transformers model's output.
        output: what the next module calls it.
        more: other settings.
    """
    config = {
        "transformer_task": "feature-extraction",
        "modality_config": {modality: {"method": "forward", "method_output_name": field}},
        "module_output_name": output,
    }
    write_json(folder / "sentence_bert_config.json", {**config, **more})


def _modules(folder: Path, prefix: str, modules: Sequence[Module], first: int = 1) -> list[str]:
    """Write modules into folders of their own; the folders' names."""
    names = []
    for number, (kind, config, weights) in enumerate(modules, first):
        names.append(f"{prefix}{number}_{kind}")
        (folder / names[-1]).mkdir()
        write_json(folder / names[-1] / "config.json", config)
        if weights:
            save_file(weights, folder / names[-1] / "model.safetensors", {"format": "pt"})
            follow_umask(folder / names[-1])
    return names


def _pooling(model: MultilingualClip) -> Module:
    mode = POOLS[model.projector.pooling]
    config = {"embedding_dimension": model.encoder.width, "pooling_mode": mode, "include_prompt": True}
    return "Pooling", config, {}


def _dense(weight: Tensor, bias: Tensor | None, activation: type[nn.Module] = nn.Identity) -> Module:
    """A linear map (out, in) and what follows it."""
    config = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
    }
    weights = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    return "Dense", config, {name: tensor.float().contiguous() for name, tensor in weights.items()}


def _head(head: nn.Module) -> list[Module]:
    """A projector's head; a standardisation is multiplied into the linear map after it."""
    modules = list(head) if isinstance(head, nn.Sequential) else [head]
    modules = [module for module in modules if not isinstance(module, nn.Dropout | nn.Identity)]
    found: list[Module] = []
    for number, module in enumerate(modules):
        if isinstance(module, nn.LayerNorm):
            weights = {f"norm.{name}": tensor.detach().cpu() for name, tensor in module.state_dict().items()}
            found.append(("LayerNorm", {"dimension": module.normalized_shape[0]}, weights))
        elif isinstance(module, nn.Linear):
            weight, bias = affine(module)
            if number and isinstance(modules[number - 1], NoisyStandardization):
                before, before_bias = affine(modules[number - 1])
                weight, bias = weight @ before, weight @ before_bias + bias
            gelu = isinstance(modules[number + 1] if number + 1 < len(modules) else None, nn.GELU)
            found.append(_dense(weight, None if module.bias is None else bias, nn.GELU if gelu else nn.Identity))
    return found


def _misfit(model: MultilingualClip, options: Options) -> str | None:
    config, blocks = model.encoder.config, model.projector.blocks
    if blocks is not None and (config.model_type not in ENCODERS or config.hidden_act != "gelu"):
        return (
            f"the X-projector's layers are XLM-R's and cannot be appended to a {config.model_type} encoder with "
            f"{getattr(config, 'hidden_act', 'its own activation')}, only to {', '.join(ENCODERS)} with gelu; train a "
            "projector of kind linear, mlp or altclip"
        )
    width = options.get("truncate_dim")
    if width and width not in model.dims:
        trained = f"it was trained for {', '.join(map(str, model.dims))}" if model.dims else "it has no `dims`"
        return f"truncate_dim {width} is no width at which this model's embeddings may be cut: {trained}"
    own = getattr(model.encoder.tokenizer, "hf", None)
    if own is not None and not own("")["input_ids"]:
        return (
            "its encoder's tokenizer gives an empty text no token, at which sentence-transformers fails; choose an "
            "encoder whose tokenizer adds an end token, as those that were made to embed texts do"
        )
    try:
        if not options["text_only"]:
            vision_config(model.image)
            processor_config(model.clip[0])
    except CheckpointError as error:
        return f"{error}; or export the texts alone: --text-only"
    return None


def _allowed(model: MultilingualClip, options: Options) -> dict[str, float]:
    same = ["texts", "long texts"]
    if model.text_cleaning == "none":
        same.append("dirty texts")
    if not options["text_only"]:
        same += clip_pictures.same_pictures(model)
    return dict.fromkeys(same, TOLERANCE)


def _notes(model: MultilingualClip, options: Options) -> list[str]:
    found = []
    if model.text_cleaning != "none":
        found.append(
            "Texts: sentence-transformers does not repair them; this model was trained with text_cleaning: ftfy. Call "
            "ftfy.fix_text, html.unescape twice and strip on texts of the web before encode."
        )
    if options.get("truncate_dim"):
        found.append(
            f"Width: encode cuts embeddings to {options['truncate_dim']} numbers and does not L2-normalise them again, "
            "which cosines do not need; encode(..., normalize_embeddings=True) does."
        )
    elif model.dims:
        found.append(
            f"Width: SentenceTransformer(FOLDER, truncate_dim={model.dims[0]}) cuts embeddings; this model was trained "
            f"for {', '.join(map(str, model.dims))}."
        )
    if options["text_only"]:
        found.append("This folder has the texts alone, no pictures.")
    else:
        found.append(
            "Texts: sentence-transformers reads a text that is the path of a picture, or its URL, as that picture."
        )
        found.append(
            "Pictures: the folder asks for PIL, whose pixels are the model's. SentenceTransformer.save_pretrained does "
            "not write this again; copy image_0_Transformer/sentence_bert_config.json."
        )
        found += clip_pictures.notes(model)
    return found


FORMAT = Format(
    library="sentence-transformers",
    hub=("sentence-transformers", "sentence-similarity"),
    packages=("sentence_transformers",),
    install="'sentence-transformers>=6' pillow",
    extra="sentence-transformers",
    misfit=_misfit,
    write=write,
    allowed=_allowed,
    notes=_notes,
    options={"text_only": False, "truncate_dim": None},
    width=lambda options: options.get("truncate_dim"),
    use=lambda model, options: TEXT_USE if options["text_only"] else USE,
)
