"""A page to search in: a box that takes any language, a grid of pictures, the old CLIP beside it, pictures to drop.

It is made for one person on their own machine: it answers only to the names it was started with, loads nothing from
elsewhere, and keeps nothing of what it is given.
"""

import io
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool
from torch import Tensor

from mclip_kit.data.languages import TEACHER_LANGUAGE
from mclip_kit.errors import CheckpointError, DataError, first_line
from mclip_kit.search.search import Hit, Search, untrained_script
from mclip_kit.search.sheet import open_hit, open_raw

PAGE = 24
"""Pictures that are loaded at once."""
DEEPEST = 2400
"""The last picture of a search that can be scrolled to."""
LONGEST = 1000
"""Characters of a query."""
UPLOAD, PIXELS = 10_000_000, 50_000_000
"""Bytes and pixels of a picture that is dropped."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SIDE = 320
"""Pixels of a picture in the grid."""
CAPTIONS = 5000
"""Captions among which those of a dropped picture are looked for."""
EXAMPLES = {
    "en": ("English", "cat"),
    "zh": ("中文", "猫"),
    "es": ("Español", "gato"),
    "fr": ("Français", "chat"),
    "ru": ("Русский", "кот"),
    "ar": ("العربية", "قطة"),
    "ja": ("日本語", "猫"),
    "ko": ("한국어", "고양이"),
    "it": ("Italiano", "gatto"),
    "de": ("Deutsch", "Katze"),
    "hi": ("हिन्दी", "बिल्ली"),
    "pt": ("Português", "gato"),
    "tr": ("Türkçe", "kedi"),
    "id": ("Bahasa Indonesia", "kucing"),
    "fa": ("فارسی", "گربه"),
    "pl": ("Polski", "kot"),
    "uk": ("Українська", "кіт"),
    "nl": ("Nederlands", "kat"),
    "vi": ("Tiếng Việt", "con mèo"),
    "th": ("ไทย", "แมว"),
    "cs": ("Čeština", "kočka"),
    "he": ("עברית", "חתול"),
}
"""Language -> its own name, and a word in it."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Refused(Exception):
    """What a person cannot do, in a sentence, with the status of the answer."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def build_page(search: Search, hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The page's application, for any ASGI server.

    >>> page = build_page(Search("index", model))
    >>> page.title
    'Search'

    Args:
        search: what answers.
        hosts: names by which a browser may call it; others are refused, so that no web site can read it through a
            person's browser.
    """
    page = FastAPI(title="Search", docs_url=None, redoc_url=None, openapi_url=None)
    near = _Captions(search)
    contents = {name: files("mclip_kit.search").joinpath(name).read_text("utf-8") for name in ("page.js", "page.css")}
    html = _html(search)

    @page.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        if "*" not in hosts and host.rsplit(":", 1)[0] not in hosts and host not in hosts:
            response = Response("This page answers only to the names that it was started with.", 421)
        else:
            response = await answer(request)
        response.headers.update(HEADERS)
        return response

    @page.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return JSONResponse({"sentence": str(error)}, error.status)

    @page.get("/")
    def start() -> Response:
        return Response(html, media_type="text/html")

    @page.get("/page.js")
    def script() -> Response:
        return Response(contents["page.js"], media_type="text/javascript")

    @page.get("/page.css")
    def style() -> Response:
        return Response(contents["page.css"], media_type="text/css")

    @page.get("/texts")
    def texts(q: str, start: int = 0, tower: str = "student") -> dict[str, Any]:
        query = q.strip()
        if not query:
            raise Refused(422, "Write what you look for.")
        if len(query) > LONGEST:
            raise Refused(422, f"The query has {len(query):,} characters; at most {LONGEST:,} are read.")
        if tower not in ("student", "teacher"):
            raise Refused(422, "The text towers are student and teacher.")
        _check_start(start)
        hits = search.texts(query, start + PAGE, tower)[0]
        script = untrained_script(query, search.student.trained_languages) if tower == "student" else None
        note = f"This model was not trained on {script} script." if script else ""
        return {**_answer(search, hits, start), "note": note}

    @page.get("/like/{row}")
    def like(row: int, start: int = 0) -> dict[str, Any]:
        _check_start(start)
        try:
            hits = search.pictures(_open(search, row, open_raw), start + PAGE)[0]
        except DataError as error:
            raise Refused(404, f"This picture cannot be read any more: {error}.") from None
        return {**_answer(search, hits, start), "note": ""}

    @page.post("/like")
    async def dropped(request: Request) -> dict[str, Any]:
        content = await _body(request)
        return await run_in_threadpool(lambda: _of_picture(search, near, _picture(content)))

    @page.get("/picture/{row}")
    def picture(row: int) -> Response:
        small = _open(search, row)
        small.thumbnail((SIDE, SIDE))
        held = io.BytesIO()
        small.save(held, "WEBP", quality=85)
        return Response(held.getvalue(), media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})

    return page


def _of_picture(search: Search, near: "_Captions", picture: Image.Image) -> dict[str, Any]:
    try:
        picture_1D = search.encode_pictures(picture)
    except DataError as error:
        raise Refused(415, f"This picture cannot be used: {str(error).removeprefix('a PIL picture: ')}.") from None
    hits = search.vectors(picture_1D, PAGE)[0]
    return {**_answer(search, hits, 0), "note": "", "captions": near.of(picture_1D), "more": False}


def _check_start(start: int) -> None:
    if not 0 <= start < DEEPEST:
        raise Refused(422, f"A search shows its first {DEEPEST:,} pictures.")


def _answer(search: Search, hits: list[Hit], start: int) -> dict[str, Any]:
    listed = [
        {"row": hit.row, "score": round(hit.score, 3), "name": hit.caption or Path(hit.file).name}
        for hit in hits[start:]
    ]
    return {"hits": listed, "more": start + PAGE < min(search.count, DEEPEST)}


def _open(search: Search, row: int, read: Callable[[str], Image.Image] = open_hit) -> Image.Image:
    """A picture of the index; `Refused` if it cannot be shown."""
    if not 0 <= row < len(search.rows):
        raise Refused(404, "There is no such picture.")
    try:
        return read(search.rows["image_path"][row].as_py())
    except (OSError, DataError, Image.DecompressionBombError):
        raise Refused(404, "This picture has been moved or deleted since it was indexed.") from None


async def _body(request: Request) -> bytes:
    """What was uploaded; no more of it is read than the limit."""
    too_large = Refused(413, f"This file is larger than {UPLOAD // 1_000_000} MB.")
    if int(request.headers.get("content-length") or 0) > UPLOAD:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > UPLOAD:
            raise too_large
    return bytes(content)


def _picture(content: bytes) -> Image.Image:
    """An uploaded picture; its size is looked at before its pixels are decoded."""
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = picture.size
        if width * height > PIXELS:
            raise Refused(413, f"This picture has {width:,} x {height:,} pixels; at most {PIXELS:,} are read.")
        picture.load()
    except Image.DecompressionBombError:
        raise Refused(413, f"This picture has too many pixels; at most {PIXELS:,} are read.") from None
    except Refused:
        raise
    except Exception as error:  # PIL's decoders raise many classes on damaged files
        known = ", ".join(FORMATS)
        raise Refused(415, f"This is no picture that can be read ({known}): {first_line(error)}") from None
    return picture


class _Captions:
    """The captions of an index, by their nearness to a picture; they are embedded when a picture is dropped first."""

    def __init__(self, search: Search) -> None:
        self._search, self._lock = search, threading.Lock()
        self._texts: list[str] = []
        self._text_ND = torch.empty(0)

    def of(self, picture_1D: Tensor, top: int = 5) -> list[dict[str, Any]]:
        """The captions nearest to a picture's vector, and their scores; none if the index has no captions."""
        with self._lock:
            if not self._texts:
                distinct = dict.fromkeys(filter(None, self._search.rows["caption"].to_pylist()))
                self._texts = list(distinct)[:CAPTIONS]
                self._text_ND = self._search.encode(self._texts) if self._texts else self._text_ND
        if not self._texts:
            return []
        scores_N = picture_1D[0] @ self._text_ND.T
        best = torch.topk(scores_N, min(top, len(self._texts)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"text": self._texts[row], "score": round(score, 3)} for row, score in found]


def _html(search: Search) -> str:
    """The page, with what it knows of its model."""
    languages = search.student.trained_languages
    codes = [code for code in EXAMPLES if code in languages] or list(EXAMPLES)
    shown = {
        "count": f"{search.count:,}",
        "languages": escape(", ".join(languages)) or "not known",
        "teacher": TEACHER_LANGUAGE,
        "examples": "\n".join(
            f'<li><button type="button" class="example" lang="{code}" dir="auto" data-query="{escape(query)}">'
            f"<small>{escape(name)}</small> {escape(query)}</button></li>"
            for code, (name, query) in ((code, EXAMPLES[code]) for code in codes[:12])
        ),
        "upload": str(UPLOAD),
    }
    text = files("mclip_kit.search").joinpath("page.html").read_text("utf-8")
    for name, value in shown.items():
        text = text.replace(f"{{{{ {name} }}}}", value)
    return text


def serve(search: Search, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C.

    Args:
        host: 127.0.0.1, or an address of this machine; 0.0.0.0: all of them, for everyone in the network.
        port: 0: a free one.
        ready: takes the page's address as soon as a browser can open it.
    Raises:
        CheckpointError: another program has the port, or the host is not an address of this machine.
    """
    import uvicorn

    shown = f"[{host}]" if ":" in host else host
    page = build_page(search, ("*",) if host in ("0.0.0.0", "::") else (*LOOPBACK, shown))
    search.texts("dog")  # whatever is loaded at first use
    search.pictures(Image.new("RGB", (8, 8)))
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno and error.errno > 0 else first_line(error)
        raise CheckpointError(f"--host {host} --port {port}: {why}; choose others") from None
    with listening:
        ready(f"http://{shown}:{listening.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(page, log_level="warning")).run([listening])
