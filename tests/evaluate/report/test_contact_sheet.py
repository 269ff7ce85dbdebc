from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageFont

from mclip_kit.evaluate.gallery import QueryResult
from mclip_kit.evaluate.report import contact_sheet, fonts
from mclip_kit.evaluate.report.contact_sheet import draw

QUERIES = {
    "de": "roter Apfel",
    "ru": "красное яблоко",
    "ar": "تفاحة حمراء",
    "zh": "红苹果",
    "ja": "赤いりんご",
    "ko": "빨간 사과",
}


def grey_row(language: str, query: str, right: tuple[bool, ...] = (False,) * 5) -> QueryResult:
    return QueryResult(language, query, [np.full((32, 32, 3), 128, np.uint8) for _ in right], list(right))


def drawn(folder: Path, rows: list[QueryResult]) -> np.ndarray:
    """The written picture (height, width, 3)."""
    path = folder / "retrieval.png"
    draw(rows, path, "A title", "Pictures: made up")
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has_ink(pixels: np.ndarray, row: int) -> bool:
    """Whether the text column of a row holds a query, which alone is drawn in the darkest colour."""
    top = contact_sheet.HEADER + row * contact_sheet.ROW
    column = pixels[top : top + contact_sheet.ROW, : contact_sheet.MARGIN + contact_sheet.TEXT]
    return bool((np.abs(column.astype(int) - ImageColor.getrgb(contact_sheet.INK)).max(axis=2) < 30).any())


def only_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "candidates", lambda language, size: iter([fonts.default(size)]))


def test_every_script_gives_a_png_of_plausible_size(tmp_path):
    pixels = drawn(tmp_path, [grey_row(language, query) for language, query in QUERIES.items()])
    assert pixels.shape == (
        contact_sheet.HEADER + len(QUERIES) * contact_sheet.ROW + contact_sheet.FOOTER,
        contact_sheet.WIDTH,
        3,
    )
    assert (tmp_path / "retrieval.png").stat().st_size > 10_000
    assert [file.name for file in tmp_path.iterdir()] == ["retrieval.png"]


def test_only_right_pictures_are_framed(tmp_path):
    verdicts = [(False, True, False, False, True), (False,) * 5]
    pixels = drawn(tmp_path, [grey_row("en", "red apple", verdict) for verdict in verdicts])
    for i, verdict in enumerate(verdicts):
        for j, right in enumerate(verdict):
            left, top, side = contact_sheet.place(i, j, 5)
            assert pixels[top + side // 2, left + side // 2].tolist() == [128, 128, 128]
            ring = pixels[top - contact_sheet.RING_GAP - contact_sheet.RING // 2 - 1, left + side // 2]
            assert tuple(ring) == (ImageColor.getrgb(contact_sheet.RIGHT) if right else (255, 255, 255))


@pytest.mark.parametrize("columns", [1, 3, 5, 10])
def test_any_number_of_pictures_stays_inside_the_margins(columns):
    left, top, side = contact_sheet.place(0, columns - 1, columns)
    assert left + side <= contact_sheet.WIDTH - contact_sheet.MARGIN
    assert top >= contact_sheet.HEADER
    assert side <= contact_sheet.SIDE


def test_a_script_without_a_font_is_named_and_not_drawn(tmp_path, monkeypatch):
    only_default(monkeypatch)
    pixels = drawn(tmp_path, [grey_row(language, query) for language, query in QUERIES.items()])
    assert [has_ink(pixels, i) for i in range(len(QUERIES))] == [True, False, False, False, False, False]


@pytest.mark.parametrize("language", QUERIES)
def test_a_script_with_a_font_is_drawn(tmp_path, language):
    if fonts.pick(QUERIES[language], language, 20) is None:
        pytest.skip("no font for this script is installed")
    assert has_ink(drawn(tmp_path, [grey_row(language, QUERIES[language])]), 0)


def test_odd_input_is_drawn_without_complaint(tmp_path, monkeypatch):
    drawn(tmp_path, [])
    drawn(
        tmp_path,
        [grey_row("", ""), grey_row("xx", "\x00 \ud800 👍🏽"), grey_row("de", "x" * 300), grey_row("fr", "a " * 300)],
    )
    only_default(monkeypatch)
    draw([grey_row("日本", "apple")], tmp_path / "retrieval.png", "タイトル", "脚注 ©")


def test_long_texts_wrap_shrink_and_are_cut():
    font, lines = contact_sheet.fit(fonts.default(34), "a red apple on a table", 200, 150, 18)
    assert font.size == 34
    assert " ".join(lines) == "a red apple on a table"
    font, lines = contact_sheet.fit(fonts.default(34), "a red apple on a table " * 9, 200, 150, 18)
    assert font.size == 18
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 200 for line in lines)


def test_han_and_kana_wrap_between_characters_but_not_before_punctuation():
    pieces = contact_sheet.PIECE.findall("「赤い」りんご、IKEA の椅子。")
    assert pieces == ["「赤", "い」", "り", "ん", "ご、", "IKEA ", "の", "椅", "子。"]


def test_a_font_is_refused_for_a_single_missing_glyph():
    font = ImageFont.load_default(20)
    assert fonts.covers(font, "red apple")
    assert not fonts.covers(font, "red apple 赤")
    assert not fonts.covers(font, "Łódź")


def test_chinese_japanese_and_korean_use_their_own_face(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(ImageFont, "truetype", lambda file, size, index, layout_engine: opened.append(index))
    for language in ("ja", "ko", "zh", "zh-CN", "zh_TW", "en"):
        list(fonts._open([tmp_path / "NotoSansCJK-Regular.ttc"], language, 20))
    assert opened == [0, 1, 2, 2, 3, 0]


def test_without_raqm_arabic_is_joined_and_reordered(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "RAQM", False)
    assert fonts.visible("قلب") == "\ufe90\ufee0\ufed7"  # qaf initial, lam medial, beh final, from the right
    assert fonts.visible("لا") == "\ufefb"
    assert fonts.visible("دار 12 (ب)") == "(\ufe8f) 12 \ufead\ufe8d\ufea9"
    assert fonts.visible("red apple") == "red apple"
    if fonts.pick(QUERIES["ar"], "ar", 20) is not None:
        assert has_ink(drawn(tmp_path, [grey_row("ar", QUERIES["ar"])]), 0)
