"""An exported folder, read by open_clip."""

import json

import open_clip
import torch
from PIL import Image


def load(folder):  # type: ignore[no-untyped-def]
    """Functions that embed texts and files of pictures."""
    with open(f"{folder}/open_clip_config.json", encoding="utf-8") as file:
        text = json.load(file)["model_cfg"]["text_cfg"]
    if "hf_model_name" in text:  # open_clip takes this path from the current folder, not from the config's
        text["hf_model_name"] = f"{folder}/text"
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", text_cfg=text)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()

    def encode_texts(texts):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            return model.encode_text(tokenizer(texts), normalize=True)

    def encode_pictures(files):  # type: ignore[no-untyped-def]
        pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
        with torch.no_grad():
            return model.encode_image(pixels, normalize=True)

    return encode_texts, encode_pictures
