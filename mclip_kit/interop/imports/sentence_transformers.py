"""Import a folder of sentence-transformers: a multilingual student of a CLIP, alone or with its image tower.

    modules.json                        the modules of a text, in order, or one Router
    (0_)Transformer/                    the encoder; sentence_bert_config.json: max_seq_length, do_lower_case
    1_Pooling/config.json               pooling_mode, or pooling_mode_mean_tokens: true, ... in older folders
    2_Dense/config.json, *.bin          in_features, out_features, bias, activation_function

sentence-transformers/clip-ViT-B-32-multilingual-v1 has texts alone: DistilBERT, mean, Dense 768 -> 512 without bias.
What `mclip-kit export sentence-transformers` wrote has a Router of texts and pictures.

Shapes: H encoder width, D embedding, V width of the vision transformer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoImageProcessor, CLIPVisionModel

from mclip_kit.errors import MALFORMED, CheckpointError, first_line
from mclip_kit.interop import sentence_transformers as export
from mclip_kit.interop.imports.folders import folder_of, languages, read_json, read_weights
from mclip_kit.interop.imports.source import (
    Head,
    assemble,
    given_clip,
    limited,
    linear_head,
    mlp_head,
    transformers_clip,
    with_teacher,
)
from mclip_kit.models.clip import Clip
from mclip_kit.models.hub import quiet_transformers
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.safe_load import UNFIT, StateDict, plain_values, refusal
from mclip_kit.models.text_encoder import pretrained_encoder

POOLS = {theirs: ours for ours, theirs in export.POOLS.items()}
OLD_POOL = "pooling_mode_"  # pooling_mode_mean_tokens, pooling_mode_cls_token, pooling_mode_lasttoken, ...
HEAD_MODULES = ("LayerNorm", "Dense")
MOST_LENGTH = 2**31  # a larger model_max_length is none


class Module(NamedTuple):
    """A module: its kind, its folder and its config."""

    kind: str
    folder: Path
    config: dict[str, Any]


def import_sentence_transformers(
    place: str | Path, clip: str | None = None, clip_weights: str | None = None
) -> MultilingualClip:
    """Turn a folder of sentence-transformers and the CLIP that it was trained for into a model.

    >>> from mclip_kit.interop.imports.sentence_transformers import import_sentence_transformers
    >>> model = import_sentence_transformers("models/multilingual-v1", "local-dir:models/ViT-B-32")
    >>> model.save("models/imported")

    Args:
        place: the folder, or its id on the hub.
        clip: the CLIP, as `teacher.model` of a recipe. A folder with an image tower keeps that one, and takes the
            CLIP's text tower as the teacher; None: its own student is the teacher.
        clip_weights: its weights, as `teacher.weights`.
    Raises:
        MissingWeights: it is neither on disk nor on the hub.
        CheckpointError: it is damaged, does not fit the CLIP, or has a module that a model here has not.
        RecipeError: the CLIP is missing or has no weights.
    """
    name, folder = str(place), folder_of(place, "sentence-transformers")
    routes = _routes(folder)
    text = [module for module in routes["text"] if module.kind != "Normalize"]
    kinds = [module.kind for module in text]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - set(HEAD_MODULES):
        raise CheckpointError(
            f"{name}: its modules for texts are {', '.join(kinds)}; Transformer, Pooling, then LayerNorm and Dense can "
            "be imported"
        )
    _check_prompt(folder)
    head = _head(_pool(text[1]), text[2:], text[1])
    given = given_clip(clip, clip_weights, name) if clip or "image" not in routes else None
    length = _length(text[0])
    with quiet_transformers():
        encoder = limited(pretrained_encoder(str(text[0].folder)), length, name)
        head = head or linear_head(_pool(text[1]), torch.eye(encoder.width), None)
        model = assemble(_image_tower(routes["image"], name) if "image" in routes else given, encoder, head, name)  # type: ignore[arg-type]
    model.trained_languages = languages(folder)
    return with_teacher(model, given) if "image" in routes else model


def _routes(folder: Path) -> dict[str, list[Module]]:
    """`text`, and `image` if there is one -> modules."""
    path = folder / "modules.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {folder} is not a folder of sentence-transformers")
    try:
        entries = [(str(entry["type"]), str(entry["path"])) for entry in _read_list(path)]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a list of modules ({first_line(error)})") from None
    if entries and entries[0][0].endswith(".Router"):
        wrong = [kind.rpartition(".")[2] for kind, _ in entries[1:] if not kind.endswith(".Normalize")]
        if wrong:
            raise CheckpointError(f"{path}: has a {wrong[0]} after its Router; only Normalize can be imported")
        place = folder / entries[0][1]
        try:
            settings = read_json(place / "router_config.json")
            types, structure = settings["types"], settings["structure"]
            found = {
                route: [_module(types[name], place / name) for name in structure[route]]
                for route in ("text", "image")
                if route in structure
            }
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{place / 'router_config.json'}: not a Router ({first_line(error)})") from None
        if "text" not in found:
            raise CheckpointError(f"{place / 'router_config.json'}: has no route `text`")
        return found
    return {"text": [_module(kind, folder / where) for kind, where in entries]}


def _read_list(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except MALFORMED as error:
        raise CheckpointError(f"{path}: damaged: {first_line(error)}") from None
    return found if isinstance(found, list) else []


def _module(kind: str, folder: Path) -> Module:
    kind = kind.rpartition(".")[2]
    file = "sentence_bert_config.json" if kind == "Transformer" else "config.json"
    optional = kind == "Normalize" or (kind == "Transformer" and not (folder / file).is_file())
    return Module(kind, folder, {} if optional else read_json(folder / file))


def _check_prompt(folder: Path) -> None:
    """CheckpointError if every text gets a prompt."""
    path = folder / "config_sentence_transformers.json"
    settings = read_json(path) if path.is_file() else {}
    default = settings.get("default_prompt_name")
    if default and (settings.get("prompts") or {}).get(default):
        raise CheckpointError(f"{path}: puts the prompt {default!r} before each text; a model here has no prompt")


def _length(module: Module) -> int | None:
    """Most tokens of a text; None: as many as the encoder has positions, or its tokenizer allows."""
    if module.config.get("do_lower_case"):
        raise CheckpointError(
            f"{module.folder / 'sentence_bert_config.json'}: do_lower_case: it lower-cases texts, which no "
            "text_cleaning does"
        )
    found = module.config.get("max_seq_length")
    if found is None:
        path = module.folder / "tokenizer_config.json"
        found = read_json(path).get("model_max_length") if path.is_file() else None
    return int(found) if found is not None and found < MOST_LENGTH else None


def _pool(module: Module) -> str:
    config = module.config
    modes = config.get("pooling_mode")
    if modes is None:
        wanted = [key for key, value in config.items() if key.startswith(OLD_POOL) and value is True]
        modes = [key.removeprefix(OLD_POOL).removesuffix("_tokens").removesuffix("_token") for key in wanted]
    listed = [modes] if isinstance(modes, str) else list(modes)
    if len(listed) != 1 or listed[0] not in POOLS:
        what = " and ".join(str(mode) for mode in listed) or "nothing"
        raise CheckpointError(f"{module.folder}: its Pooling is {what}; {', '.join(POOLS)} can be imported")
    return POOLS[listed[0]]


def _head(pool: str, modules: Sequence[Module], pooling: Module) -> Head | None:
    """The projector of the modules after the pool; None: there is none, and none is needed but the identity."""
    norm: StateDict | None = None
    groups: list[list[tuple[Tensor, Tensor | None]]] = [[]]  # linear maps, with a GELU between two groups
    for number, module in enumerate(modules):
        if module.kind == "LayerNorm":
            if number:
                raise CheckpointError(f"{module.folder}: a LayerNorm after a Dense cannot be imported")
            _, norm = read_weights(module.folder)
            continue
        state, activation = (
            read_weights(module.folder)[1],
            str(module.config.get("activation_function", "torch.nn.Tanh")),
        )
        if "linear.weight" not in state:
            raise CheckpointError(f"{module.folder}: its weights lack linear.weight")
        groups[-1].append((state["linear.weight"], state.get("linear.bias")))
        if activation.endswith(".GELU"):
            groups.append([])
        elif not activation.endswith(".Identity"):
            raise CheckpointError(f"{module.folder}: its activation is {activation}; Identity or GELU can be imported")
    if norm is not None and len(groups) == 1 and groups[0]:
        return _altclip(pool, norm, groups[0])
    if norm is not None or len(groups) > 2 or (len(groups) == 2 and not groups[1]):
        kinds = ", ".join(module.kind for module in modules)
        raise CheckpointError(
            f"{pooling.folder.parent}: {kinds} with their activations fit no projector: linear maps, two with a GELU "
            "between, or a LayerNorm before linear maps"
        )
    if not modules:
        return None
    maps = [_product(group) for group in groups]
    return linear_head(pool, *maps[0]) if len(maps) == 1 else mlp_head(pool, maps[0], maps[1])


def _altclip(pool: str, norm: StateDict, maps: list[tuple[Tensor, Tensor | None]]) -> Head:
    """LayerNorm, a linear map, and one without bias."""
    if len(maps) == 1 or maps[-1][1] is not None:
        weight, bias = _product(maps)
        last = torch.eye(len(weight))
    else:
        (weight, bias), last = _product(maps[:-1]), maps[-1][0]
    state = {f"0.{name.removeprefix('norm.')}": tensor for name, tensor in norm.items()}
    state |= {"1.weight": weight, "1.bias": torch.zeros(len(weight)) if bias is None else bias, "2.weight": last}
    return Head({"kind": "altclip", "pool": pool, "hidden": len(weight)}, state)


def _product(maps: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """One linear map for several, (weight, bias)."""
    weight, bias = maps[0]
    for next_weight, next_bias in maps[1:]:
        moved = None if bias is None else next_weight.double() @ bias.double()
        weight = (next_weight.double() @ weight.double()).float()
        if moved is not None or next_bias is not None:
            bias = ((0 if moved is None else moved) + (0 if next_bias is None else next_bias.double())).float()  # type: ignore[union-attr]
    return weight, bias


def _image_tower(modules: Sequence[Module], source: str) -> Clip:
    """A CLIP of the route `image`: a CLIPVisionModel and its projection."""
    kinds = [module.kind for module in modules]
    dense = modules[-1]
    if kinds != ["Transformer", "Dense"] or not str(dense.config.get("activation_function")).endswith(".Identity"):
        raise CheckpointError(
            f"{source}: its modules for pictures are {', '.join(kinds)}; a CLIPVisionModel and a Dense can be imported"
        )
    _, state = read_weights(dense.folder)
    if set(state) != {"linear.weight"}:
        raise CheckpointError(f"{dense.folder}: the projection of pictures has more than linear.weight")
    folder = modules[0].folder
    try:
        with plain_values():
            tower, report = CLIPVisionModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
            processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    except UNFIT as error:
        why = refusal(error) or f"not a CLIPVisionModel that transformers can load: {first_line(error)}"
        raise CheckpointError(f"{folder}: {why}") from None
    if report["missing_keys"]:
        raise CheckpointError(f"{folder}: its weights lack {min(report['missing_keys'])}")
    weights = {name.removeprefix("vision_model."): tensor for name, tensor in tower.state_dict().items()}
    return transformers_clip(tower.config, weights, state["linear.weight"], processor)
