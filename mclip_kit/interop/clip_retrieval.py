"""Embeddings of a prepared folder, in the layout that clip-retrieval's index command reads.

The layout is that of its writer (clip_retrieval/clip_inference/writer.py, https://github.com/rom1504/clip-retrieval):
`img_emb/img_emb_0.npy` and `text_emb/text_emb_0.npy`, float16 (R, D), L2-normalised, and `metadata/metadata_0.parquet`
with a row for each row of both. A row is a picture and one of its captions: a picture with five captions has five rows
with the same image embedding. Rows are ordered by picture.

Shapes: R rows, M pictures, D embedding.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from mclip_kit.data.captions import Captions
from mclip_kit.data.pictures import to_rgb
from mclip_kit.errors import DataError, first_line
from mclip_kit.files import check_new, new_folder, printable, write_text
from mclip_kit.interop.card import Export, write_card
from mclip_kit.interop.vector_files import IMAGES, ROWS, TEXTS, VectorFiles, digits_of
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.progress import tqdm
from mclip_kit.storage import place
from mclip_kit.urls import named

NAME = "clip-retrieval"
HUB = NAME, "zero-shot-image-classification"
BLOCK, BATCH = 512, 64
"""Pictures whose embeddings are in memory together, and those that are decoded together."""
LEFT_OUT = "left_out.tsv"
COLUMNS = pa.schema([(name, pa.string()) for name in ("image_path", "caption", "language", "image")])
USE = """
# clip-retrieval index --embeddings_folder {folder} --index_folder INDEX
# Its server loads only models that it knows by name: embed queries by the model, and send it the embeddings.
import mclip_kit
from clip_retrieval.clip_client import ClipClient

model = mclip_kit.load("MODEL")
client = ClipClient(url="http://localhost:1234/knn-service", indice_name="INDEX")
results = client.query(embedding_input=model.encode_text("ein Hund")[0].tolist())
"""


@dataclass
class Written:
    """What is in a folder of embeddings.

    Attributes:
        rows, pictures, files: how many; `files` of each kind.
        unreadable: name of a picture that is left out -> why.
        uncaptioned: pictures of the split that have no caption in these languages, and so no row.
        rounding: kind -> the largest difference between a stored number (float16) and the model's (float32).
    """

    rows: int = 0
    pictures: int = 0
    files: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    uncaptioned: int = 0
    rounding: dict[str, float] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Sentences about what the rows are, and about what is left out."""
        found = [
            "A row is a picture and one of its captions; a picture has as many equal image embeddings as it has "
            "captions. clip-retrieval's server shows equal ones once (`deduplicate`)."
        ]
        if self.uncaptioned:
            found.append(f"{self.uncaptioned} pictures of the split have no caption in these languages, and no row.")
        if self.unreadable:
            first = next(iter(self.unreadable.values()))
            found.append(
                f"{len(self.unreadable)} pictures cannot be read and are left out, with their captions; {LEFT_OUT} "
                f"names them. The first: {first}"
            )
        return found


def export(
    model: MultilingualClip,
    captions: Captions,
    folder: str | Path,
    split: str = "test",
    languages: list[str] | str = "all",
    rows: int = ROWS,
    source: Path | None = None,
) -> Written:
    """Write the embeddings of a split's pictures and captions; the folder is whole or not there.

    >>> from mclip_kit.interop.clip_retrieval import export
    >>> export(model, captions, "embeddings", languages=["en", "de"]).files
    1

    Args:
        model: embeds both; `encode_image` and `encode_text` give the same numbers before they are rounded to float16.
        captions: as `data.captions.read_captions` reads them.
        folder: to write; it must not exist.
        languages: codes, or `all`.
        rows: most rows of a file. Memory does not grow with it.
        source: the model's folder, for the card.
    Raises:
        CheckpointError: the folder exists, or an embedding is non-finite. Nothing is written.
        DataError: the split or a language has no caption, or no picture can be read. Nothing is written.
    """
    folder = place(folder)
    check_new(folder)
    chosen_R = captions.select(split, languages)
    chosen_R = chosen_R[np.argsort(captions.images[chosen_R], kind="stable")]
    with new_folder(folder) as part:
        written = _write(model, captions, chosen_R, part, rows)
        with_rows = len(np.unique(captions.images[chosen_R]))
        written.uncaptioned = len(captions.gallery(split)) - with_rows
        if not written.rows:
            first = next(iter(written.unreadable.values()))
            raise DataError(f"{captions.folder}: none of the {with_rows} {split} pictures can be read; {first}")
        if written.unreadable:
            lines = ["image\treason", *(f"{name}\t{why}" for name, why in written.unreadable.items()), ""]
            write_text(part / LEFT_OUT, "\n".join(map(printable, lines)))
        write_card(
            part,
            source,
            Export(NAME, NAME, NAME, USE.strip(), written.notes(), written.rounding, HUB),
        )
    return written


def _write(model: MultilingualClip, captions: Captions, chosen_R: np.ndarray, folder: Path, most: int) -> Written:
    """Embed block by block of pictures, and append to files of at most `most` rows."""
    written = Written()
    images_R = captions.images[chosen_R]
    distinct_M = np.unique(images_R)
    kinds, digits = {IMAGES: "image_path", TEXTS: "caption"}, digits_of(len(chosen_R), most)
    with (
        VectorFiles(folder, kinds, COLUMNS, model.width, most=most, digits=digits) as files,
        tqdm(total=len(chosen_R), desc="rows", unit="row") as bar,
    ):
        for start in range(0, len(distinct_M), BLOCK):
            block_M = distinct_M[start : start + BLOCK]
            first, last = np.searchsorted(images_R, [block_M[0], block_M[-1] + 1])
            image_MD, readable_M = _embed_pictures(model, captions, block_M, written.unreadable)
            place_R = np.searchsorted(block_M, images_R[first:last])
            kept_R = readable_M[place_R]
            rows = chosen_R[first:last][kept_R]
            if len(rows):
                text_RD = model.encode_text(captions.texts[rows].tolist()).numpy()
                table = _metadata(captions, rows)
                files.append({IMAGES: image_MD[place_R[kept_R]], TEXTS: text_RD}, table)
                written.rows += len(rows)
                written.pictures += int(readable_M.sum())
                for name, values in (("texts", text_RD), ("pictures", image_MD)):
                    apart = float(np.abs(values - values.astype(np.float16)).max())
                    written.rounding[name] = max(written.rounding.get(name, 0.0), apart)
            bar.update(last - first)
    written.files = files.number
    return written


def _embed_pictures(
    model: MultilingualClip, captions: Captions, images_M: np.ndarray, unreadable: dict[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (M, D), zeros where a picture cannot be read, and which can be, bool (M,)."""
    image_MD, readable_M = np.zeros((len(images_M), model.width), np.float32), np.zeros(len(images_M), bool)
    for start in range(0, len(images_M), BATCH):
        opened: dict[int, Image.Image] = {}
        for number, image in enumerate(images_M[start : start + BATCH].tolist(), start):
            try:
                opened[number] = captions.open(image)
                to_rgb(opened[number], model.clip[0].pictures)  # no pixels, or no way to RGB
            except DataError as error:
                opened.pop(number, None)
                unreadable[captions.names[image]] = first_line(error)
        if opened:
            places = list(opened)
            image_MD[places], readable_M[places] = model.encode_image(list(opened.values())).numpy(), True
    return image_MD, readable_M


def _metadata(captions: Captions, rows: np.ndarray) -> pa.Table:
    """The columns of clip-retrieval, and `language` and `image`, the picture's name in the prepared folder."""
    images = captions.images[rows].tolist()
    names = [printable(captions.names[image]) for image in images]
    paths = [printable(named(os.path.abspath(captions.files[image]))) for image in images] if captions.files else names
    columns = (paths, captions.texts[rows].tolist(), captions.languages[rows].tolist(), names)
    return pa.table(dict(zip(COLUMNS.names, columns, strict=True)), schema=COLUMNS)
