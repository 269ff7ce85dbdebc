"""An exported folder, read by sentence-transformers."""

from PIL import Image
from sentence_transformers import SentenceTransformer


def load(folder):  # type: ignore[no-untyped-def]
    """Functions that embed texts and files of pictures; None for pictures if the folder has texts alone."""
    model = SentenceTransformer(folder)

    def encode_pictures(files):  # type: ignore[no-untyped-def]
        return model.encode([Image.open(file) for file in files])

    return model.encode, encode_pictures if "image" in model.modalities else None
