"""Bars: drawn on a terminal; in a file plain lines at intervals."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from mclip_kit import progress
from mclip_kit.progress import tqdm

PACKAGE = Path(progress.__file__).parent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("every", "lines"), [(0.0, True), (1e9, False)])
def test_a_file_gets_whole_lines_at_intervals(every: float, lines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", every)
    out = io.StringIO()
    with tqdm(total=3, desc="stage 1/1 x", unit="step", file=out, mininterval=0) as bar:
        for loss in (3, 2, 1):
            bar.set_postfix_str(f"loss {loss}", refresh=False)
            bar.update()
    for leave in (True, False):
        list(tqdm(range(3), "reading", unit=" rows", file=out, leave=leave, mininterval=0))
    text = out.getvalue()
    assert ("stage 1/1 x: 2 of 3 steps" in text and "loss 2" in text and "reading: 2 of 3 rows," in text) == lines
    assert "\r" not in text
    assert "█" not in text
    assert all(line.startswith(("stage 1/1 x: ", "reading: ")) for line in text.splitlines())
    assert bool(text) == lines


def test_a_terminal_gets_a_bar() -> None:
    out = Terminal()
    list(tqdm(range(3), "reading", file=out, mininterval=0))
    assert "\rreading: 100%" in out.getvalue()


def test_a_quiet_process_draws_nothing_and_prints_no_notes(capsys: pytest.CaptureFixture[str]) -> None:
    out = Terminal()
    progress.note("loud")
    progress.set_quiet(True)
    try:
        list(tqdm(range(3), "reading", file=out, mininterval=0))
        progress.note("still")
        tqdm.write("a warning")
    finally:
        progress.set_quiet(False)
    assert not out.getvalue()
    assert capsys.readouterr().out == "loud\na warning\n"


def test_a_bar_made_in_part_closes_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    class Stopped(tqdm):
        left = 0

        def __setattr__(self, name: str, value: object) -> None:
            if not self.left:
                raise KeyboardInterrupt
            type(self).left -= 1
            super().__setattr__(name, value)

    for attributes in range(1000):  # a signal arrives before the attribute of this number
        Stopped.left = attributes
        try:
            bar = Stopped(range(3), file=Terminal())
        except KeyboardInterrupt:
            continue
        Stopped.left = 1000
        bar.close()
        break
    assert 10 < attributes < 999
    assert not unraisable


def test_all_bars_are_these() -> None:
    wrong = [p.name for p in PACKAGE.rglob("*.py") if p.name != "progress.py" and "from tqdm" in p.read_text("utf-8")]
    assert not wrong


def test_a_process_that_is_killed_while_it_draws_stops_no_other() -> None:
    code = (
        "import os, signal, sys\n"
        "from mclip_kit.progress import tqdm\n"
        "lock = tqdm.get_lock()\n"
        "if not (child := os.fork()):\n"
        "    lock.acquire()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.waitpid(child, 0)\n"
        "list(tqdm(range(3), 'reading'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_another_process_asks_for_lines_and_bars(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_bars", None)
    report = progress.relay()
    progress.note("a line")
    with progress.tqdm(total=30, desc="shards", unit="row") as bar:
        bar.update(4)
        assert report() == (["a line"], {"shards": (4, 30, "row")})
        bar.update(5)
        assert report() == ([], {"shards": (9, 30, "row")})
    assert report() == ([], {})
    assert capfd.readouterr() == ("", "")
