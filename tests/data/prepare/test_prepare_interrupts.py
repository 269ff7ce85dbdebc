"""Ctrl-C, a kill and a second process: in the end, the folder is the same as without them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests import processes

PATIENCE = 300  # seconds; only a process that hangs takes so long
SLOW = """
import sys, time
from mclip_kit.data.prepare import binarize
from mclip_kit.cli import cli
hash_texts = binarize.hash_texts
binarize.hash_texts = lambda lines: time.sleep(0.02) or hash_texts(lines)
binarize.BLOCK, binarize.LARGE = 16, 0
cli(["prepare", *sys.argv[1:]])
"""
"""The command, slowed down, with small blocks; with two workers, in processes."""
READING = """
import os, sys, time
from mclip_kit.data.corpora import lines
from mclip_kit.data.prepare import reading
from mclip_kit.cli import cli
hash_texts, main = reading.hash_texts, os.getpid()

def slow(texts):
    if os.getpid() != main:
        print("reading", flush=True)
        time.sleep(0.02)
    return hash_texts(texts)

reading.hash_texts = slow
lines.BLOCK, lines.FEW = 16, 1
cli(["prepare", *sys.argv[1:]])
"""
"""The command, slowed down while worker processes read, which they print."""
PLAIN = "import sys; from mclip_kit.cli import cli; cli(['prepare', *sys.argv[1:]])"


@pytest.fixture
def words(tmp_path: Path, squares: Path) -> list[str]:
    """Arguments that prepare 1,200 sentence pairs; some of them are too long and are dropped."""
    english = [f"a red square and {n} black squares" for n in range(1200)]
    german = [f"ein rotes Quadrat und {n} schwarze" + " Quadrate" * (9 if n % 50 == 7 else 1) for n in range(1200)]
    return parallel(tmp_path, squares, english, german)


def parallel(folder: Path, squares: Path, english: list[str], german: list[str]) -> list[str]:
    """Write parallel files; returns the arguments that prepare them and drop long pairs."""
    (folder / "a.en").write_text("\n".join(english) + "\n")
    (folder / "a.de").write_text("\n".join(german) + "\n")
    spm = squares / "bitext" / "sentencepiece.bpe.model"
    rules = ["--set", "cleaning.max_tokens=80", "--set", "cleaning.too_long=drop"]
    return ["--bitext", f"en={folder / 'a.en'}", f"de={folder / 'a.de'}", "--spm", str(spm), *rules]


def start(code: str, words: list[str], out: Path, workers: int = 1, pipe: Any = None) -> processes.Child:
    """A command in its own process group; it and its workers keep the pipe open."""
    words = [*words, "--out", str(out), "--workers", str(workers)]
    return processes.start(run_code, pipe, code, words, session=True, merged=True)


def run_code(pipe: Any, code: str, words: list[str]) -> None:
    processes.script(code, *words)


def until_binarising(process: processes.Child, out: Path) -> None:
    """Wait until a .bin has content."""
    for _ in range(100 * PATIENCE):
        if any(path.stat().st_size for path in (out.parent / f".{out.name}.part").glob("bitext/.*.bin")):
            return
        assert process.poll() is None, process.stdout
        time.sleep(0.01)
    raise AssertionError("no .bin has content")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def undisturbed(words: list[str], out: Path) -> dict[str, bytes]:
    process = start(PLAIN, words, out)
    said = process.wait().stdout
    assert process.returncode == 0, said
    return content(out)


def interrupt(*words: str) -> None:
    from tests.data.prepare import interrupting  # here, for it changes the size of blocks

    interrupting.main(*words)


@pytest.mark.parametrize(("name", "every", "ending"), [("SIGKILL", 1, -signal.SIGKILL), ("SIGINT", 4, 130)])
def test_stopped_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path, squares, name, every, ending):
    english = [f"a red square {n}" for n in range(30)]
    words = parallel(tmp_path, squares, english, [f"Quadrat {n}" + " Quadrat" * (n % 9) for n in range(30)])
    words += ["--set", "cleaning.max_tokens=40", "--set", "splits.test=0.3"]
    done = processes.run(interrupt, name, str(every), str(tmp_path), *words)
    assert done.returncode == 0, done.stderr
    *stopped, (last, _, status, *_) = map(json.loads, done.stdout.splitlines())
    assert (len(stopped) > 25 / every, status) == (True, 0), last
    expected = content(tmp_path / "data")
    assert json.loads(expected["manifest.json"])["counts"]["left_out"]
    for moment, where, status, said, again, said_again in stopped:
        assert (status, again) == (ending, 0), (where, said, said_again)
        assert "Traceback" not in said + said_again, (where, said, said_again)
        assert content(tmp_path / str(moment) / "data") == expected, where
        left = {"data", "printed", "where"} | ({".data.lock"} if where.endswith(".lock") else set())
        assert {path.name for path in (tmp_path / str(moment)).iterdir()} == left
        assert name == "SIGKILL" or said.splitlines()[-1].startswith("stopped"), (where, said)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_binarising_ends_in_one_line_and_is_resumed(tmp_path, words, workers):
    process = start(SLOW, words, tmp_path / "data", workers)
    until_binarising(process, tmp_path / "data")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, workers too
    said = process.wait(timeout=PATIENCE).stdout
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("stopped")
    assert not (tmp_path / "data").exists()
    assert undisturbed(words, tmp_path / "data") == undisturbed(words, tmp_path / "other" / "data")


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_processes_that_read_end_with_their_parent(tmp_path, words, name):
    reading, writing = processes.FORKED.Pipe(duplex=False)
    process = start(READING, words, tmp_path / "data", 2, writing)
    writing.close()
    while "reading" not in process.stdout:
        assert process.poll() is None, process.stdout
        time.sleep(0.01)
    assert not reading.poll()
    (os.killpg if name == "SIGINT" else os.kill)(process.pid, signal.Signals[name])
    assert reading.poll(PATIENCE)  # the pipe ends when the last worker has ended
    said = process.wait(timeout=PATIENCE).stdout
    if name == "SIGINT":
        assert (process.returncode, "Traceback" in said) == (130, False), said
        assert said.splitlines()[-1].startswith("stopped")
    assert not (tmp_path / "data").exists()
    assert undisturbed(words, tmp_path / "data") == undisturbed(words, tmp_path / "other" / "data")


def test_the_workers_of_a_killed_process_hold_nothing_up(tmp_path, words):
    reading, writing = processes.FORKED.Pipe(duplex=False)
    process = start(SLOW, words, tmp_path / "data", 2, writing)
    writing.close()
    until_binarising(process, tmp_path / "data")
    assert not reading.poll()
    process.kill()
    assert reading.poll(PATIENCE)  # the pipe ends when the last worker has ended
    assert undisturbed(words, tmp_path / "data") == undisturbed(words, tmp_path / "other" / "data")


def test_a_killed_worker_ends_in_one_line(tmp_path, words):
    process = start(SLOW, words, tmp_path / "data", 2)
    until_binarising(process, tmp_path / "data")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(pid for pid in children if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    said = process.wait(timeout=PATIENCE).stdout
    assert (process.returncode, "Traceback" in said) == (2, False), said
    assert "a worker process was killed, probably because memory ran out" in said.splitlines()[-1]


def test_a_source_that_has_changed_since_is_read_again(tmp_path, words):
    process = start(SLOW, words, tmp_path / "data")
    until_binarising(process, tmp_path / "data")
    process.kill()
    process.wait()
    english = (tmp_path / "a.en").read_text()
    (tmp_path / "a.en").write_text(english.replace("red", "green"))
    after = undisturbed(words, tmp_path / "data")
    assert b"green" in after["bitext/train.en-de.en.txt"]
    assert after == undisturbed(words, tmp_path / "other" / "data")


def test_two_processes_do_not_prepare_the_same_folder_at_once(tmp_path, words):
    first = start(SLOW, words, tmp_path / "data")
    until_binarising(first, tmp_path / "data")
    os.kill(first.pid, signal.SIGSTOP)  # so that it cannot finish before the second one looks
    second = start(PLAIN, words, tmp_path / "data")
    said = second.wait(timeout=PATIENCE).stdout
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert said.startswith(f"Error: {tmp_path / 'data'}: another process is preparing it (process {first.pid} on ")
    assert said.endswith("; wait for it\n")
    assert said.count("\n") == 1
    said = first.wait(timeout=PATIENCE).stdout
    assert first.returncode == 0, said
    assert content(tmp_path / "data") == undisturbed(words, tmp_path / "other" / "data")
