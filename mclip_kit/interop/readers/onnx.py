"""An exported folder, read by onnxruntime, tokenizers, PIL and numpy alone."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def load(folder):  # type: ignore[no-untyped-def]
    """Functions that embed texts and files of pictures."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["mclip_kit"]
    preprocess = json.loads((folder / "visual" / "preprocess_cfg.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))  # it cuts and pads, too
    tokenizer.encode_special_tokens = True  # a token's name in a text is text
    textual, visual = (onnxruntime.InferenceSession(folder / name / "model.onnx") for name in ("textual", "visual"))

    def encode_texts(texts):  # type: ignore[no-untyped-def]
        ids_NT = np.array([text.ids for text in tokenizer.encode_batch(texts)], np.int32)
        return textual.run(None, {"text": ids_NT})[0]

    def encode_pictures(files):  # type: ignore[no-untyped-def]
        pictures = [pixels(to_rgb(Image.open(file), config["pictures"]), preprocess) for file in files]
        return visual.run(None, {"image": np.stack(pictures)})[0]

    return encode_texts, encode_pictures


def to_rgb(picture, how):  # type: ignore[no-untyped-def]
    """The picture in RGB, as the model was trained: see `pictures` in config.json."""
    if how["exif"] == "apply":
        picture = ImageOps.exif_transpose(picture)
    if how["depth"] == "scale" and picture.mode.startswith("I"):  # 16-bit grey
        picture = Image.fromarray((np.asarray(picture) / 257).round().clip(0, 255).astype(np.uint8))
    if how["alpha"] == "white" and picture.has_transparency_data:
        seen = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return picture.convert("RGB")


def pixels(picture, preprocess):  # type: ignore[no-untyped-def]
    """Pixels (3, S, S), float32, as torchvision resizes, crops and normalises."""
    size = preprocess["size"]
    height, width = size if isinstance(size, list) else (size, size)
    filters = Image.Resampling[preprocess["interpolation"].upper()]
    if preprocess["resize_mode"] == "squash":
        picture = picture.resize((width, height), filters)
    else:  # the short side becomes S; then the middle is cut out
        short, long = sorted(picture.size)
        long = int(width * long / short)
        picture = picture.resize((width, long) if picture.width <= picture.height else (long, width), filters)
        left, top = (round((side - width) / 2) for side in picture.size)  # 0.5 and 2.5 go down, 1.5 goes up
        picture = picture.crop((left, top, left + width, top + width))
    shares_HWC = np.asarray(picture, np.float32) / 255
    mean, std = (np.array(preprocess[key], np.float32) for key in ("mean", "std"))
    return ((shares_HWC - mean) / std).transpose(2, 0, 1)
