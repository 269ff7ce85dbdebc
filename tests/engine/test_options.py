"""The options --engine and --address, and what is said if there is no cluster to work on."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from mclip_kit import __version__, progress
from mclip_kit.cli import cli
from mclip_kit.engine import actors
from mclip_kit.engine.cluster import Cluster, connect, size
from mclip_kit.errors import DataError

RUNS = [["prepare"], ["extract", "quickstart"], ["embed", "model", "--images", "pictures", "--out", "out"]]


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", RUNS, ids=lambda words: words[0])
def test_an_address_without_ray_is_an_error(words: list[str]) -> None:
    done = CliRunner().invoke(cli, [*words, "--address", "10.0.0.1:6379"])
    assert done.exit_code == 2
    assert "add --engine ray" in done.output


def test_torchrun_and_ray_do_not_both_start_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = CliRunner().invoke(cli, ["prepare", "--engine", "ray"])
    assert done.exit_code == 2
    assert "without torchrun" in done.output


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "find_spec", lambda name: None)
    done = CliRunner().invoke(cli, ["prepare", "--engine", "ray"])
    assert done.exit_code == 2
    assert done.output == "Error: --engine ray needs Ray: pip install 'ray>=2.60'\n"


def test_processes_of_a_cluster_take_the_devices_of_their_nodes() -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    done = CliRunner().invoke(cli, [*RUNS[2], "--engine", "ray", "--device", "cpu"])
    assert done.exit_code == 2
    assert "--device: every process of --engine ray takes its node's; leave it out" in done.output


def test_an_address_without_a_cluster_is_one_line() -> None:
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(DataError, match=f"{address}: no Ray cluster there .*refused"), connect(address):
            pass
    with pytest.raises(DataError, match="the Ray Client is not supported"), connect("ray://10.0.0.1:10001"):
        pass


def test_a_node_that_does_not_fit_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_bars", None)  # which an actor sets
    older = actors.Actor("0.0", str(tmp_path), {}, False, []).start()
    assert f"has mclip-kit {__version__}, not 0.0; install the same everywhere" in str(older)
    elsewhere = actors.Actor(__version__, str(tmp_path / "none"), {}, False, []).start()
    assert str(elsewhere).startswith(f"{tmp_path / 'none'}: node ")
    assert str(elsewhere).endswith("cannot open it (No such file or directory); start in a shared folder")
    assert actors.Actor(__version__, str(tmp_path), {}, False, []).start() is None


def test_actors_are_one_a_core_one_a_gpu_or_one_a_node(capsys: pytest.CaptureFixture[str]) -> None:
    plain = [{"CPU": 16.0}, {"CPU": 8.0}, {"memory": 1.0}]
    assert size(plain, None, towers=False) == Cluster(24)
    assert size(plain, 3, towers=False) == Cluster(3)
    assert size(plain, 32, towers=False) == Cluster(32)
    assert capsys.readouterr().out == "--workers 32: the Ray cluster has 24 cores now; the others start with more\n"
    assert size(plain, None, towers=True) == Cluster(2, cpus=8, ahead=1)
    gpus = [*plain, {"CPU": 32.0, "GPU": 4.0}, {"CPU": 48.0, "GPU": 8.0}]
    assert size(gpus, None, towers=True) == Cluster(12, cpus=6, gpus=1, ahead=1)
    with pytest.raises(DataError, match="no node with a CPU"):
        size([{"memory": 1.0}], None, towers=False)
