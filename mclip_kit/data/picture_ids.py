"""One spelling for a picture's name, so that corpora which share pictures can be compared and joined."""

import os
import re

PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
COCO = re.compile(r"coco_[a-z]+20\d\d_0*(\d+)")


def picture_id(name: str, source: str | None) -> str:
    """What two names of one picture have in common.

    COCO's pictures go by their number, whatever corpus names them. Others go by the name without folder, ending and
    `#...`, in lower case and inside their source. Without a source the name is only known to its own corpus, and its
    case may matter; an address is kept whole, as only the whole of it is unique.

    Args:
        name: a file name, a number or an address.
        source: where the pictures are from (`Corpus.pictures`).
    """
    if "://" in name:
        return name.strip()
    stem = _stem(name)
    coco = COCO.fullmatch(stem.lower())
    if coco:
        return f"coco:{int(coco[1])}"
    if source is None:
        return stem
    number = source == "coco" and stem.isascii() and stem.isdigit()
    return f"{source}:{int(stem) if number else stem.lower()}"


def _stem(name: str) -> str:
    base = name.strip().partition("#")[0].rsplit("/", 1)[-1]
    stem, ending = os.path.splitext(base)
    return stem if ending.lower() in PICTURES else base
