"""Export a model as two ONNX graphs that onnxruntime runs without torch: in a browser, a phone, a photo library.

The layout is the one that Immich's machine learning reads for its open_clip models: `textual/` and `visual/` with a
model.onnx each, `textual/tokenizer.json` and `tokenizer_config.json`, `visual/preprocess_cfg.json`, `config.json`.
It was compared with the source of Immich's readers (immich_ml/models/clip/textual.py and visual.py,
immich_ml/models/transforms.py, https://github.com/immich-app/immich), not run inside Immich: the inputs are `text`,
int32 (N, T), padded with `pad_token`, and `image`, float32 (N, 3, S, S); the first output is L2-normalised.

Shapes: N texts or pictures, T tokens, S picture size, D embedding.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from mclip_kit.config.model import AS_OPEN_CLIP
from mclip_kit.data.transforms import picture_size
from mclip_kit.files import write_json
from mclip_kit.interop.export import Format
from mclip_kit.interop.onnx_graph import ImageTower, TextTower, ends_with_padding, save, trace
from mclip_kit.interop.parity import Embeddings
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.models.special_tokens import save_as_text

TOLERANCE = 1e-5
CONTEXT = 77

IMMICH = [
    "Immich pads and cuts texts at `text_cfg.context_length` of config.json; in tokenizer.json the limit is the "
    "encoder's, and a batch is padded to its longest text.",
    "Immich's centre crop truncates where the model's rounds: pictures whose margin is 1.5, 3.5, ... pixels "
    "(such as 640x427 at 224) are cut one pixel beside.",
    "Immich chooses its reader by the model's name: put this folder in the place of an open_clip model that it knows, "
    "of the same embed_dim, such as XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k for 512.",
]
"""From the source that is named above."""


def write(model: MultilingualClip, folder: Path, options: Mapping[str, Any]) -> None:
    """Write both graphs, the tokenizer and the configs.

    Args:
        model: on the CPU, float32.
        folder: exists and is empty.
        options: `int8`: weights of linear maps and tables in 8 bits; `context`: tokens to which Immich pads and cuts.
    Raises:
        CheckpointError: torch cannot export a tower.
    """
    clip, textual, visual = model.clip[0], folder / "textual", folder / "visual"
    textual.mkdir()
    visual.mkdir()
    ids_NT, _ = model.encoder.pad(
        model.encoder.tokenizer.encode(["a red apple on a table", "x"], model.encoder.positions)
    )
    length = torch.export.Dim("length", max=model.encoder.positions)
    save(trace(TextTower(model), "text", ids_NT.int(), {1: length}), textual / "model.onnx", options["int8"])
    pixels_NCHW = torch.zeros(2, 3, *picture_size(clip.preprocess))
    save(trace(ImageTower(model), "image", pixels_NCHW, {}), visual / "model.onnx", options["int8"])
    write_tokenizer(model, textual)
    write_json(visual / "preprocess_cfg.json", clip.preprocess)
    config = {key: clip.config[key] for key in ("vision_cfg", "quick_gelu") if key in clip.config}
    text = {"context_length": min(options["context"], model.encoder.positions)}
    facts = {"text_cleaning": model.text_cleaning, "pictures": clip.pictures.model_dump()}
    write_json(folder / "config.json", {"embed_dim": model.width, **config, "text_cfg": text, "mclip_kit": facts})


def write_tokenizer(model: MultilingualClip, folder: Path) -> None:
    """Write tokenizer.json, which cuts at the encoder's positions and pads, and tokenizer_config.json.

    Special tokens that the vocabulary has are no longer listed as added ones: so the tokenizers library, which has no
    setting for it in the file, takes their names in a text as text. For others a reader sets `encode_special_tokens`.
    """
    tokenizer = model.encoder.tokenizer
    tokenizer.save(folder)
    save_as_text(folder)
    path = folder / "tokenizer.json"
    rules = json.loads(path.read_text(encoding="utf-8"))
    listed = rules["added_tokens"]
    bare = Tokenizer.from_str(json.dumps({**rules, "added_tokens": []}))
    needed = [token for token in listed if not token["special"] or bare.token_to_id(token["content"]) != token["id"]]
    rules["added_tokens"] = needed
    pad = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["pad_token"]
    sides = {"direction": "Right", "strategy": "LongestFirst"}
    rules["truncation"] = {"max_length": model.encoder.positions, "stride": 0, **sides}
    rules["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": tokenizer.pad,
        "pad_type_id": 0,
        "pad_token": pad,
    }
    write_json(path, rules)


def _misfit(model: MultilingualClip, options: Mapping[str, Any]) -> str | None:
    tokenizer, how = model.encoder.tokenizer, model.clip[0].preprocess
    hf = getattr(tokenizer, "hf", None)
    if hf is not None and not hf.is_fast:
        return (
            f"{type(hf).__name__} is written in Python and has no tokenizer.json; train from an encoder with a fast one"
        )
    try:
        ends_with_padding(tokenizer)
    except ValueError:
        return (
            "the graph tells padding by its id, and this encoder's tokenizer also has that token in some texts; train "
            "from an encoder whose padding has a token of its own, such as XLM-R"
        )
    if hf is not None and not hf("")["input_ids"]:
        return (
            "its encoder's tokenizer gives an empty text no token, for which the graph has no state; choose an encoder "
            "whose tokenizer adds an end token, as those that were made to embed texts do"
        )
    height, width = picture_size(how)
    if how["resize_mode"] == "longest" or (how["resize_mode"] == "shortest" and height != width):
        return (
            f"its pictures are resized to {height}x{width} by resize_mode: {how['resize_mode']}, which the readers of "
            "this layout do not have; choose a CLIP with square pictures and resize_mode: shortest or squash"
        )
    return None


def _allowed(model: MultilingualClip, options: Mapping[str, Any]) -> dict[str, float]:
    if options["int8"]:
        return {}
    same = ["texts", "long texts", "pictures", "palette and CMYK", "photos", "odd pictures"]
    if model.text_cleaning == "none":
        same.append("dirty texts")
    return dict.fromkeys(same, TOLERANCE)


def _notes(model: MultilingualClip, options: Mapping[str, Any]) -> list[str]:
    found = list(IMMICH)
    if model.text_cleaning != "none":
        found.append(
            "Texts: the model repairs mojibake, curly quotes and HTML escapes before it reads a text "
            "(text_cleaning: ftfy); nothing in this folder does. Other texts give the model's embeddings."
        )
    if model.clip[0].pictures != AS_OPEN_CLIP:
        found.append(
            "Pictures: the model turns them by EXIF's orientation, sees transparent pixels on white or scales 16-bit "
            "grey; `pictures` in config.json says which. Immich's reader leaves it to its thumbnails."
        )
    return found


def _measured(options: Mapping[str, Any], ours: Embeddings, theirs: Embeddings) -> list[str]:
    """The loss of int8: in which share of the samples the nearest other sample stays the same."""
    if not options["int8"]:
        return []
    found = []
    for kind, groups in (("texts", ("texts", "long texts")), ("pictures", ("pictures", "photos", "palette and CMYK"))):
        before, after = (np.concatenate([side[group] for group in groups]) for side in (ours, theirs))
        same, largest = same_nearest(before, after), float(np.abs(before - after).max())
        found.append(
            f"int8: of {len(before)} {kind}, {100 * same:.0f}% keep their nearest neighbour among the others; the "
            f"largest difference of a number is {largest:.1e}."
        )
    return found


def same_nearest(before_ND: np.ndarray, after_ND: np.ndarray) -> float:
    """The share of rows whose nearest other row, by cosine, stays the same.

    >>> import numpy as np
    >>> before = np.array([[1, 0], [0.8, 0.6], [0, 1]])
    >>> same_nearest(before, before)
    1.0
    """
    nearest = []
    for rows_ND in (before_ND, after_ND):
        cosine_NN = rows_ND @ rows_ND.T
        np.fill_diagonal(cosine_NN, -np.inf)
        nearest.append(cosine_NN.argmax(1))
    return float((nearest[0] == nearest[1]).mean())


FORMAT = Format(
    library="onnxruntime",
    hub=("onnx", "zero-shot-image-classification"),
    packages=("onnx", "onnxscript", "onnxruntime"),
    install="onnxruntime tokenizers pillow numpy",
    extra="onnx",
    misfit=_misfit,
    write=write,
    allowed=_allowed,
    notes=_notes,
    measured=_measured,
    options={"int8": False, "context": CONTEXT},
    use="""
import numpy as np, onnxruntime
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file("{folder}/textual/tokenizer.json")
ids = np.array([text.ids for text in tokenizer.encode_batch(["ein Hund", "a cat"])], np.int32)
text = onnxruntime.InferenceSession("{folder}/textual/model.onnx").run(None, dict(text=ids))[0]
""",
)
