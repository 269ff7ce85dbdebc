"""The page in a browser: any language, examples, pictures like one's own; what is too large is refused."""

import contextlib
import io
import re
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("faiss", reason="the extra `search` is not installed")
pytest.importorskip("fastapi", reason="the extra `search` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `search` is not installed")

from mclip_kit.search import web
from mclip_kit.search.embed import embed_pictures
from mclip_kit.search.index import build
from mclip_kit.search.search import Search
from mclip_kit.search.web import build_page
from tests import tiny
from tests.interop.models import build as build_model

PHONE = 390


@pytest.fixture(scope="module")
def search(squares: Path, colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    model = build_model(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
    model.trained_languages = ["ar", "de", "en", "zh"]
    place = tmp_path_factory.mktemp("page")
    for file in colours.rglob("*.png"):
        file.with_suffix(".txt").write_text(f"a {file.stem}\n")
    embed_pictures(model, colours, place / "embeddings")
    for file in colours.rglob("*.txt"):
        file.unlink()
    build(place / "embeddings", place / "index")
    return Search(place / "index", model)


@pytest.fixture(scope="module")
def address(search: Search) -> Iterator[str]:
    with served(search) as found:
        yield found


@contextlib.contextmanager
def served(search: Search) -> Iterator[str]:
    """The page, served on a free port of this machine."""
    server = uvicorn.Server(uvicorn.Config(build_page(search), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def opened(browser: Any, address: str, width: int = 1280, fails: tuple[int, ...] = ()) -> Iterator[Any]:
    """The page in a tab; the console must stay empty but for answers with the statuses `fails`."""
    tab = browser.new_page(viewport={"width": width, "height": 800})
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request", lambda request: request.url.startswith((address, "data:", "blob:")) or complaints.append(request.url)
    )
    tab.goto(address)
    tab.wait_for_function("document.activeElement.id === 'query'")  # the page gives it the focus, after it is loaded
    yield tab
    others = [line for line in complaints if not any(f"status of {status}" in line for status in fails)]
    assert not others
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


def until(tab: Any, expression: str) -> None:
    """Wait until an expression is true in the page, which forbids what Playwright's own waiting needs."""
    for _ in range(300):
        if tab.evaluate(expression):
            return
        tab.wait_for_timeout(100)
    raise AssertionError(f"never true: {expression}; {tab.inner_text('#status')}")


def names(tab: Any, tower: str = "student") -> list[str]:
    """The names of the pictures in a grid; every picture is shown and has an alternative text."""
    grid = f"#{tower} .grid img"
    tab.wait_for_selector(grid)
    first = "all => all.slice(0, 6).every(i => i.complete && i.naturalWidth > 0)"
    until(tab, f"({first})([...document.querySelectorAll('{grid}')])")
    return tab.eval_on_selector_all(grid, "all => all.map(i => i.alt)")


def wanted(search: Search, query: str, tower: str = "student", top: int = web.PAGE) -> list[str]:
    return [hit.caption for hit in search.texts(query, top, tower)[0]]


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_a_query_of_any_language_by_keyboard(browser: Any, address: str, search: Search, width: int) -> None:
    with opened(browser, address, width) as tab:
        assert tab.evaluate("document.activeElement.id") == "query"
        tab.keyboard.type("rotes Quadrat links")
        tab.keyboard.press("Enter")
        assert names(tab)[: web.PAGE] == wanted(search, "rotes Quadrat links")
        assert tab.get_by_label("What do you look for?").input_value() == "rotes Quadrat links"
        assert "pictures for: rotes Quadrat links" in tab.inner_text("[role=status]")
        assert tab.evaluate(
            "[...document.querySelectorAll('button, input')].every(b => b.labels?.length || b.innerText)"
        )
        tab.focus("#student .grid button")
        tab.keyboard.press("Enter")
        until(tab, "document.querySelector('#status').innerText.includes('pictures like')")
        assert names(tab)[0] == wanted(search, "rotes Quadrat links")[0]


def test_an_example_and_the_old_clip_beside_it(browser: Any, address: str, search: Search) -> None:
    with opened(browser, address) as tab:
        tab.click("button[lang=ar]")
        assert names(tab)[: web.PAGE] == wanted(search, "قطة")
        assert tab.is_hidden("#teacher")
        tab.check("#compare")
        assert names(tab, "teacher")[: web.PAGE] == wanted(search, "قطة", "teacher")
        tab.fill("#query", "красное")
        tab.press("#query", "Enter")
        until(tab, "document.querySelector('#status').innerText.includes('Cyrillic')")


def test_more_pictures_come_as_one_scrolls_until_there_are_no_more(browser: Any, address: str, search: Search) -> None:
    with opened(browser, address) as tab:
        tab.fill("#query", "Quadrat")
        tab.press("#query", "Enter")
        until(tab, "scrollBy(0, 400), document.querySelectorAll('#student .grid li').length == 96")
        tab.evaluate("scrollTo(0, 0)")
        assert names(tab) == wanted(search, "Quadrat", top=96)
        tab.wait_for_selector("#more", state="hidden")


def test_a_window_that_has_room_is_filled_without_scrolling(browser: Any, address: str, search: Search) -> None:
    with opened(browser, address) as tab:
        tab.set_viewport_size({"width": 1280, "height": 9000})
        tab.fill("#query", "Quadrat")
        tab.press("#query", "Enter")
        until(tab, "document.querySelectorAll('#student .grid li').length == 96")
        assert names(tab) == wanted(search, "Quadrat", top=96)
        tab.wait_for_selector("#more", state="hidden")


def test_what_is_wrong_stays_to_be_read_when_more_pictures_come(browser: Any, address: str) -> None:
    held: list[Any] = []
    with opened(browser, address) as tab:
        tab.route(re.compile("/texts.*start=24"), lambda route: held.append(route))
        tab.set_viewport_size({"width": 1280, "height": 9000})
        tab.fill("#query", "Quadrat")
        tab.press("#query", "Enter")
        while not held:
            tab.wait_for_timeout(10)
        tab.fill("#query", "")
        tab.press("#query", "Enter")
        tab.wait_for_selector("#status.wrong")
        held[0].continue_()
        until(tab, "document.querySelectorAll('#student .grid li').length == 96")
        assert "Write what you look for" in tab.inner_text("#status")


def test_a_dropped_picture_finds_its_like_and_its_captions(
    browser: Any, address: str, search: Search, colours: Path
) -> None:
    file = sorted(colours.rglob("*.png"))[37]
    with opened(browser, address) as tab:
        tab.set_input_files("#file", file)
        assert names(tab)[0] == f"a {file.stem}"
        assert tab.locator("#captions li").count() == 5
        query = (
            "const f = new File([new Uint8Array(BYTES)], 'x.png', {type: 'image/png'}); const d = new DataTransfer();"
        )
        query = query.replace("BYTES", str(list(file.read_bytes())))
        tab.fill("#query", "blau")
        tab.press("#query", "Enter")
        assert names(tab)[: web.PAGE] == wanted(search, "blau")
        tab.evaluate(f"{query} d.items.add(f); document.dispatchEvent(new DragEvent('drop', {{dataTransfer: d}}))")
        until(tab, "document.querySelector('#status').innerText.includes('pictures like yours')")
        assert names(tab)[0] == f"a {file.stem}"


def bomb() -> bytes:
    """A PNG of a kilobyte that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_what_is_too_large_or_no_picture_is_refused_in_a_sentence(browser: Any, address: str, tmp_path: Path) -> None:
    files = {"large": bytes(50_000_000), "bomb": bomb(), "text": b"no picture", "svg": b"<svg onload='alert(1)'/>"}
    said = {"large": "larger than 10 MB", "bomb": "pixels", "text": "no picture that can be read", "svg": "no picture"}
    with opened(browser, address, fails=(413, 415)) as tab:
        for name, content in files.items():
            (tmp_path / f"{name}.png").write_bytes(content)
            tab.set_input_files("#file", tmp_path / f"{name}.png")
            tab.wait_for_selector("#status.wrong")
            assert said[name] in tab.inner_text("#status")
            assert not tab.locator("#student .grid li").count()
            tab.fill("#query", "rot")
            tab.press("#query", "Enter")
            names(tab)
        tab.fill("#query", "")
        tab.press("#query", "Enter")
        assert "Write what you look for" in tab.inner_text("#status")


def test_the_server_keeps_its_limits_whatever_the_page_does(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    testclient = pytest.importorskip("starlette.testclient", exc_type=Exception, reason="httpx is not installed")
    client = testclient.TestClient(build_page(search), base_url="http://127.0.0.1:7860")
    assert client.get("/").status_code == 200
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert (
        client.get("/texts", params={"q": "x" * 1001}).json()["sentence"].startswith("The query has 1,001 characters")
    )
    assert client.get("/texts", params={"q": "x", "start": 10**9}).status_code == 422
    assert client.get("/picture/96").status_code == 404
    assert client.get("/picture/-1").status_code == 404
    assert client.get("/docs").status_code == 404
    for content in (bytes(10_000_001), bomb(), b"", b"GIF89a"):
        answer = client.post("/like", content=content)
        assert answer.status_code in (413, 415)
        assert answer.json()["sentence"].endswith(".") or "can be read" in answer.json()["sentence"]
    chunks = (bytes(1_000_000) for _ in range(50))
    assert client.post("/like", content=chunks).status_code == 413
    held = io.BytesIO()
    Image.new("RGBA", (9, 9)).save(held, "PNG")
    assert len(client.post("/like", content=held.getvalue()).json()["hits"]) == web.PAGE


def test_a_turned_picture_is_like_itself_and_a_strip_is_refused(search: Search, colours: Path, tmp_path: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient", exc_type=Exception, reason="httpx is not installed")
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient = Image.linear_gradient("L").convert("RGB").resize((40, 20))
    gradient.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.open(next(colours.rglob("*.png"))).save(tmp_path / "other.png")
    embed_pictures(search.model, tmp_path, tmp_path / "embeddings")
    build(tmp_path / "embeddings", tmp_path / "index")
    own = Search(tmp_path / "index", search.model)
    client = testclient.TestClient(build_page(own), base_url="http://localhost")
    row = [Path(file.as_py()).name for file in own.rows["image_path"]].index("turned.jpg")
    first = client.get(f"/like/{row}").json()["hits"][0]
    assert (first["row"], first["score"]) == (row, 1.0)
    held = io.BytesIO()
    Image.new("L", (1, 60_000)).save(held, "PNG")
    answer = client.post("/like", content=held.getvalue())
    assert answer.status_code == 415
    assert "more than 250 times as long as wide" in answer.json()["sentence"]


def test_a_picture_that_was_deleted_is_told(search: Search, squares: Path, colours: Path, tmp_path: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient", exc_type=Exception, reason="httpx is not installed")
    shutil.copytree(colours, tmp_path / "pictures")
    embed_pictures(search.model, tmp_path / "pictures", tmp_path / "embeddings")
    build(tmp_path / "embeddings", tmp_path / "index")
    shutil.rmtree(tmp_path / "pictures")
    client = testclient.TestClient(build_page(Search(tmp_path / "index", search.model)), base_url="http://localhost")
    assert client.get("/texts", params={"q": "rot"}).status_code == 200
    for place in ("/picture/3", "/like/3"):
        assert "moved or deleted" in client.get(place).json()["sentence"]


def test_markup_in_names_and_captions_is_text(browser: Any, search: Search, tmp_path: Path) -> None:
    markup = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    for name, caption, colour in (("a", markup, "red"), (markup.replace("/", ""), "", "blue")):
        Image.new("RGB", (9, 9), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption)
    embed_pictures(search.model, tmp_path, tmp_path / "embeddings")
    build(tmp_path / "embeddings", tmp_path / "index")
    with served(Search(tmp_path / "index", search.model)) as address, opened(browser, address) as tab:
        tab.keyboard.type(markup)
        tab.keyboard.press("Enter")
        assert markup in names(tab)
        assert tab.evaluate("window.hacked") is None
        assert f"pictures for: {markup}" in tab.inner_text("[role=status]")
