"""How a command ends: an internal fault, a full memory, SIGTERM, --debug and --offline."""

import os
import re
import signal
import time
from pathlib import Path

import click
import huggingface_hub.constants as hub
import pytest
import torch
from click.testing import CliRunner, Result

from mclip_kit.cli.common import Commands
from mclip_kit.errors import DataError, RecipeError
from tests import processes


def ending(error: BaseException, *options: str) -> Result:
    """What is printed, and the exit code, when a command raises an error."""

    @click.group(cls=Commands)
    @click.option("--offline", is_flag=True)
    @click.option("--debug", is_flag=True)
    def cli(offline: bool, debug: bool) -> None:
        """As the real one."""

    @cli.command()
    def work() -> None:
        raise error

    return CliRunner().invoke(cli, [*options, "work"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_internal_fault_writes_a_report_and_exits_with_70(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mine.yaml").write_text("about: a recipe\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["mclip-kit", "train", "mine.yaml", "--set", "seed=2"])
    secret = "a row of data"  # a local variable of the traceback's frames
    result = ending(AssertionError("the impossible\nhappened"))
    assert result.exit_code == 70
    (line,) = result.output.splitlines()
    report = re.fullmatch(r"Error: an internal fault, AssertionError: the impossible; the report (\S+) has .*", line)
    assert report
    text = Path(report[1]).read_text(encoding="utf-8")
    for part in ("mclip_kit ", f"torch {torch.__version__.partition('+')[0]}", "train mine.yaml --set seed=2"):
        assert part in text
    assert "about: a recipe" in text
    assert "Traceback (most recent call last)" in text
    assert secret not in text.replace('secret = "a row of data"', "")
    assert list(here.glob("mclip-kit-crash-*.txt")) == [here / Path(report[1]).name]


def test_a_folder_that_cannot_be_written_gets_no_report(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setattr("mclip_kit.cli.crash.Path.cwd", lambda: Path("/proc"))
    line = ending(ZeroDivisionError("division by zero")).output
    assert "temporary" in line
    assert Path(line.partition("the report ")[2].split()[0]).is_file()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a.tsv: row 3: no caption"), "a.tsv: row 3: no caption"),
        (OSError(28, "No space left on device"), "a file that was being written: No space left on device"),
        (OSError(5, "Input/output error", "a.bin"), "a.bin: Input/output error"),
        (MemoryError(), "the memory is full"),
        (torch.OutOfMemoryError("CUDA out of memory."), "the memory is full (CUDA out of memory.)"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, line: str, here: Path) -> None:
    result = ending(error)
    assert result.exit_code == 2
    (printed,) = result.output.splitlines()
    assert printed.startswith(f"Error: {line}")
    assert not list(here.iterdir())


def test_debug_shows_the_traceback(here: Path) -> None:
    result = ending(RecipeError("x: wrong"), "--debug")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.output
    assert result.output.splitlines()[-1] == "Error: x: wrong"


@pytest.mark.parametrize("code", [0, 3])
def test_exit_codes_of_commands_pass(code: int) -> None:
    assert ending(click.exceptions.Exit(code)).exit_code == code
    assert ending(SystemExit(code)).exit_code == code


def test_offline_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    ending(DataError("x"), "--offline")
    assert hub.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


def test_sigterm_ends_preparation_as_ctrl_c_does(here: Path) -> None:
    pictures = here / "pictures"
    pictures.mkdir()
    (here / "pairs.tsv").write_text("image\ttext_en\n" + "a.png\tone\n" * 400_000, encoding="utf-8")
    words = ("prepare", "--pairs", "pairs.tsv", "--out", "data")
    child = processes.start(processes.command, *words)
    deadline = time.monotonic() + 120
    while not (here / ".data.part").is_dir():
        assert time.monotonic() < deadline
        assert child.poll() is None, child.stderr
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    child.wait()
    assert child.returncode == 143
    assert child.stderr.strip().splitlines()[-1].startswith("stopped; finished files are kept")
    assert "Traceback" not in child.stderr
    assert not (here / "data").exists()
