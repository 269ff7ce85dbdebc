"""An exported folder, read by transformers."""

import json

import torch
from PIL import Image
from transformers import (
    AltCLIPModel,
    AltCLIPProcessor,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)


def load(folder):  # type: ignore[no-untyped-def]
    """Functions that embed texts and files of pictures."""
    with open(f"{folder}/config.json", encoding="utf-8") as file:
        altclip = json.load(file)["model_type"] == "altclip"
    if altclip:
        model = AltCLIPModel.from_pretrained(folder)
        processor = AltCLIPProcessor.from_pretrained(folder, backend="pil")
    else:
        model = VisionTextDualEncoderModel.from_pretrained(folder)
        processor = VisionTextDualEncoderProcessor.from_pretrained(folder, backend="pil")

    def normalised(found):  # type: ignore[no-untyped-def]
        return torch.nn.functional.normalize(found.pooler_output, dim=-1)

    def encode_texts(texts):  # type: ignore[no-untyped-def]
        inputs = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            return normalised(model.get_text_features(**inputs))

    def encode_pictures(files):  # type: ignore[no-untyped-def]
        inputs = processor(images=[Image.open(file) for file in files], return_tensors="pt")
        with torch.no_grad():
            return normalised(model.get_image_features(**inputs))

    return encode_texts, encode_pictures
