"""The tiny corpus as a person would have it: pictures in a folder, and captions beside them."""

from collections.abc import Collection
from pathlib import Path

from PIL import Image

from tests import tiny


def write_photos(folder: Path, languages: Collection[str] = ("en", "de", "fr")) -> None:
    """Write the pictures as NAME.png, English captions as NAME.txt, others as NAME.LANG.txt."""
    folder.mkdir()
    content = tiny.content()
    assert content.pixels is not None
    for row, pixels in zip(content.rows, content.pixels, strict=True):
        Image.fromarray(pixels).save(folder / f"{row.image}.png")
        for language, text in row.texts:
            name = f"{row.image}.txt" if language == "en" else f"{row.image}.{language}.txt"
            if language in languages:
                (folder / name).write_text(f"{text}\n", encoding="utf-8")


def write_tables(folder: Path, languages: Collection[str] = ("en", "de", "fr")) -> None:
    """The same captions as a table of the pictures in photos/, table.tsv, and as parallel files, lines.LANG."""
    rows = tiny.content().rows
    table = ["image\tcaption", *(f"photos/{row.image}.png\t{dict(row.texts)['en']}" for row in rows)]
    (folder / "table.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    for language in languages:
        lines = [dict(row.texts)[language] for row in rows]
        (folder / f"lines.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
