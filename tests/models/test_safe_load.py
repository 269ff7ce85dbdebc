"""Foreign weight files: what would run on load is refused unrun, the rest is read or named as damaged."""

import argparse
import builtins
import lzma
import os
import pickle
import shutil
import subprocess
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mclip_kit.data import fairseq_io
from mclip_kit.data.tokenizer import MODEL_FILE, train_sentencepiece
from mclip_kit.errors import CheckpointError
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.interop.imports.mclip import PROJECTOR, import_mclip
from mclip_kit.models.clip import build_clip
from mclip_kit.models.safe_load import read_pickle


class Call:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def calls(marker: Path) -> dict[str, Call]:
    """A callable's name -> a call of it that would make the marker file."""
    return {
        f"{os.name}.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "builtins.exec": Call(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "pathlib.Path.touch": Call(Path.touch, marker),
        "torch.serialization.save": Call(torch.save, 1, str(marker)),
        "numpy.save": Call(np.save, str(marker), 1),
    }


CALLS = sorted(calls(Path("marker")))
IN_THE_FILE = {  # what protocol 2 calls it, with Python 2's modules, where it is another name
    "builtins.eval": "eval",
    "builtins.exec": "exec",
    "subprocess.Popen": "commands.Popen",
    "pathlib.Path.touch": "getattr",
}


def refused(path: Path, call: str) -> tuple[str, str]:
    """How the message must begin, and what it must say."""
    return f"{path}: refused, ", f"reading it would run {call}; nothing was run"


def says(message: str, both: tuple[str, str]) -> bool:
    return message.startswith(both[0]) and both[1] in message and "\n" not in message


def zipped(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def legacy(content: Any, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def bare(content: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def bare_new(content: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def packed(content: Any, path: Path) -> Path:
    path.write_bytes(lzma.compress(zipped(content, path).read_bytes(), preset=0))
    return path.rename(path.with_name(f"{path.name}.xz"))


def packed_legacy(content: Any, path: Path) -> Path:
    path.write_bytes(lzma.compress(legacy(content, path).read_bytes(), preset=0))
    return path.rename(path.with_name(f"{path.name}.xz"))


FORMS = [zipped, legacy, bare, packed, packed_legacy]


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["alone", "in a dict", "in options", "beside weights"])
def test_a_file_that_would_run_something_is_refused_unrun(
    tmp_path: Path, form: Callable[[Any, Path], Path], name: str, place: str
) -> None:
    marker = tmp_path / "marker"
    call = calls(marker)[name]
    weights = [1.0, 2.0] if form is bare else torch.ones(2)  # a bare pickle of a tensor calls more than this
    content = {
        "alone": call,
        "in a dict": {"args": [1, (call,)]},
        "in options": {"args": Namespace(seed=1, inner=Namespace(run=call)), "model": OrderedDict()},
        "beside weights": {"model": OrderedDict(a=weights), "args": None, "cfg": {"model": {"x": call}}},
    }[place]
    path = form(content, tmp_path / "model.pt")
    assert says(refusal(lambda: read_pickle(path)), refused(path, IN_THE_FILE.get(name, name)))
    assert not marker.exists()


@pytest.mark.parametrize("name", CALLS)
def test_these_files_do_run_something_in_a_careless_reader(tmp_path: Path, name: str) -> None:
    """Else the tests above would prove nothing."""
    marker = tmp_path / "marker"
    called = pickle.loads(pickle.dumps(calls(marker)[name], protocol=2))
    if isinstance(called, subprocess.Popen):
        called.wait()
    assert marker.exists() or Path(f"{marker}.npy").exists()


def test_a_newer_pickle_protocol_runs_nothing(tmp_path: Path) -> None:
    for call in calls(tmp_path / "marker").values():
        refusal(lambda call=call: read_pickle(bare_new({"args": call}, tmp_path / "model.pt")))  # type: ignore[misc]
    assert not (tmp_path / "marker").exists()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rest of a fairseq folder."""
    folder = tmp_path_factory.mktemp("vocabulary")
    tokenizer = train_sentencepiece(["two dogs run along the beach"], folder / MODEL_FILE, 40, 1.0)
    fairseq_io.write_dictionary(tokenizer.pieces(), folder / "dict.txt")
    return folder


@pytest.mark.parametrize("form", [zipped, legacy, packed])
@pytest.mark.parametrize(
    "where", ["encoder folder", "encoder file", "teacher", "teacher weights", "mclip", "mclip's xlmr"]
)
def test_every_way_in_refuses_it(
    tmp_path: Path, vocabulary: Path, form: Callable[[Any, Path], Path], where: str
) -> None:
    marker = tmp_path / "marker"
    call = calls(marker)["subprocess.Popen"]
    path = form({"args": Namespace(run=call), "model": {PROJECTOR: torch.ones(2, 2)}}, tmp_path / "model.pt")
    mclip = zipped({"model": {PROJECTOR: torch.ones(2, 2)}}, tmp_path / "mclip.pt")
    shutil.copy(vocabulary / MODEL_FILE, tmp_path)
    shutil.copy(vocabulary / "dict.txt", tmp_path)
    ways: dict[str, Callable[[], Any]] = {
        "encoder folder": lambda: named_encoder(f"fairseq:{tmp_path}"),
        "encoder file": lambda: named_encoder(f"fairseq:{path}"),
        "teacher": lambda: build_clip(f"openai:{path}"),
        "teacher weights": lambda: build_clip("ViT-B-32", str(path)),
        "mclip": lambda: import_mclip(path, tmp_path / "xlmr"),
        "mclip's xlmr": lambda: import_mclip(mclip, path),
    }
    assert says(refusal(ways[where]), refused(path, "commands.Popen"))
    assert not marker.exists()


@pytest.mark.parametrize("form", [zipped, legacy, packed, packed_legacy])
def test_what_fairseqs_files_hold_is_read(tmp_path: Path, form: Callable[[Any, Path], Path]) -> None:
    weights = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(2).half(), c=torch.tensor(3))
    tied = torch.randn(3)
    numbers = [np.float64(1.5), np.float32(0.1), np.int64(2**40), np.int32(-3), np.bool_(True), np.float64("nan")]
    options = Namespace(lr=[1e-4, 2], langs=("en", "de"), inner=Namespace(deep={"a": {1, 2}}), none=None)
    content = {
        "args": options,
        "model": weights,
        "extra_state": {"best": numbers[0], "meters": OrderedDict(train=[(10, "loss", numbers)])},
        "tied": [tied, tied],
        "optimizer_history": [],
    }
    found = read_pickle(form(content, tmp_path / "model.pt"))
    assert isinstance(found["model"], OrderedDict)
    assert found["args"] == options
    assert type(found["args"]) is argparse.Namespace
    assert [(k, t.dtype, t.tolist()) for k, t in found["model"].items()] == [
        (k, t.dtype, t.tolist()) for k, t in weights.items()
    ]
    ours = found["extra_state"]["meters"]["train"][0][2]
    assert [type(number) for number in ours] == [type(number) for number in numbers]
    assert ours[:-1] == numbers[:-1]
    assert np.isnan(ours[-1])
    assert found["tied"][0].data_ptr() == found["tied"][1].data_ptr()


def test_numbers_of_numpy_1_are_read(tmp_path: Path) -> None:
    """Files of before 2024 name numpy.core where NumPy 2 has numpy._core."""
    path = bare({"loss": np.float64(2.5)}, tmp_path / "new.pkl")
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    legacy({"model": {}, "loss": np.float64(2.5)}, path)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert read_pickle(path) == {"model": {}, "loss": 2.5}


def test_states_of_random_generators_and_all_kinds_of_numbers_are_read(tmp_path: Path) -> None:
    """As trainers save them; also under the names of NumPy 1."""
    kinds = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
    content = {"random": np.random.RandomState(1).get_state(), **{kind: np.arange(3).astype(kind) for kind in kinds}}
    content |= {f"number {kind}": np.ones(1, kind)[0] for kind in kinds}
    path = legacy(content, tmp_path / "model.pt")
    old = tmp_path / "old.pt"
    old.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert old.read_bytes() != path.read_bytes()
    for file in (path, old):
        found = read_pickle(file)
        assert found["random"][0] == "MT19937"
        for key in content.keys() - {"random"}:
            assert found[key].dtype == content[key].dtype
            assert np.array_equal(found[key], content[key])


@pytest.mark.parametrize("form", FORMS[:2] + FORMS[3:])
def test_a_whole_pickled_model_is_refused_with_a_way_that_works(
    tmp_path: Path, form: Callable[[Any, Path], Path]
) -> None:
    model = nn.Linear(2, 2)
    path = form(model, tmp_path / "model.pt")
    message = refusal(lambda: read_pickle(path))
    assert says(message, refused(path, "torch.nn.modules.linear.Linear"))
    assert "content.state_dict()" in message
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert torch.equal(read_pickle(tmp_path / "weights.pt")["weight"], model.weight)


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    path = zipped({"a": np.array([{}], dtype=object)}, tmp_path / "model.pt")
    assert str(path) in refusal(lambda: read_pickle(path))


def test_weights_outlive_their_file(tmp_path: Path) -> None:
    weights = {"a": torch.randn(1000)}
    plain, xz = zipped(weights, tmp_path / "plain.pt"), packed(weights, tmp_path / "packed.pt")
    for path in (plain, xz):
        found = read_pickle(path)
        path.unlink()
        assert torch.equal(found["a"], weights["a"])


class Small(nn.Module):
    """Nested modules, a buffer, a buffer that state_dict leaves out, half precision, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.map = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.map.weight
        self.small = nn.Parameter(torch.randn(3, 2).half().t())
        self.register_buffer("input_resolution", torch.tensor(224))
        self.numbers: list[int] = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        shift = self.small.float().sum() + self.input_resolution  # type: ignore[operator]
        return self.tied(self.map(self.inner(x).mean((2, 3)))) + shift + self.numbers[0]


def archive(kind: str, path: Path) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(1)
    module = Small().eval()
    script = torch.jit.script(module) if kind == "script" else torch.jit.trace(module, torch.randn(2, 3, 8, 8))
    script.save(str(path))
    return path, module.state_dict()


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "xz"])
@pytest.mark.parametrize("kind", ["script", "trace"])
def test_a_torchscript_archive_gives_its_state_dict(tmp_path: Path, kind: str, pack: bool) -> None:
    path, expected = archive(kind, tmp_path / "model.pt")
    theirs = torch.jit.load(path).state_dict()
    if pack:
        path.with_suffix(".xz").write_bytes(lzma.compress(path.read_bytes(), preset=0))
        path = path.with_suffix(".xz")
    found = read_pickle(path)
    assert found.keys() == theirs.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


class Writer(nn.Module):
    """A module that writes a file when TorchScript restores it."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.marker = marker

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, str, bool]:
        return self.weight, self.marker, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
        self.weight = state[0]
        self.marker = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])


def test_a_torchscript_archive_that_would_run_something_is_refused_unrun(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    torch.jit.script(Writer(str(marker))).save(str(path))
    torch.jit.load(path)
    assert marker.exists()  # what a careless reader does
    marker.unlink()
    assert refusal(lambda: read_pickle(path)).startswith(f"{path}: ")
    assert refusal(lambda: build_clip(f"openai:{path}")).startswith(f"{path}: ")
    assert not marker.exists()


@pytest.mark.parametrize("name", CALLS)
def test_a_pickle_inside_a_torchscript_archive_is_refused_unrun(tmp_path: Path, name: str) -> None:
    path, _ = archive("script", tmp_path / "model.pt")
    evil, marker = tmp_path / "evil.pt", tmp_path / "marker"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for item in source.namelist():
            content = source.read(item)
            if item.endswith("/data.pkl"):
                content = pickle.dumps({"weight": calls(marker)[name]}, protocol=2)
            target.writestr(item, content)
    called = IN_THE_FILE.get(name, name)
    assert says(refusal(lambda: read_pickle(evil)), refused(evil, called if "." in called else f"__builtin__.{called}"))
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_truncated_torchscript_archive_is_refused(tmp_path: Path, kept: float) -> None:
    path, _ = archive("trace", tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert refusal(lambda: read_pickle(path)).startswith(f"{path}: damaged")


def test_a_torchscript_archive_without_its_tensors_is_refused(tmp_path: Path) -> None:
    path, _ = archive("trace", tmp_path / "model.pt")
    less = tmp_path / "less.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(less, "w") as target:
        for item in source.namelist():
            if not item.endswith("/data/0"):
                target.writestr(item, source.read(item))
    assert refusal(lambda: read_pickle(less)).startswith(f"{less}: damaged")


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


def a_zip_like_torchscript(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", pickle.dumps(()))


OTHER_FILES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no weights here\n" * 50),
    "a page of the web": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "a zip": a_zip,
    "a zip like TorchScript": a_zip_like_torchscript,
    "a half integer": lambda path: path.write_bytes(b"\x80\x02\x8a"),
}


@pytest.mark.parametrize("pack", [False, True], ids=["plain", "xz"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, kind: str, pack: bool) -> None:
    path = tmp_path / "model.pt"
    OTHER_FILES[kind](path)
    if pack:
        path = tmp_path / "model.pt.xz"
        path.write_bytes(lzma.compress((tmp_path / "model.pt").read_bytes()))
    assert refusal(lambda: read_pickle(path)).startswith(f"{path}: damaged, or not a weight file")


def test_what_is_no_xz_is_refused(tmp_path: Path) -> None:
    path = zipped({"a": 1}, tmp_path / "model.pt.xz")
    assert refusal(lambda: read_pickle(path)).startswith(f"{path}: damaged")


@pytest.mark.parametrize("name", ["missing.pt", "missing.pt.xz", "."])
def test_what_is_no_file_is_missing(tmp_path: Path, name: str) -> None:
    assert refusal(lambda: read_pickle(tmp_path / name)) == f"{tmp_path / name}: missing"


@pytest.mark.parametrize("zipped_format", [True, False], ids=["zip", "legacy"])
def test_no_damage_ends_otherwise_than_in_our_error(tmp_path: Path, zipped_format: bool) -> None:
    content = {"args": Namespace(a=1, b=[1.5, "x"], n=np.float64(2)), "model": {"a": torch.randn(3, 4)}, "t": 2**40}
    path = tmp_path / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped_format)
    whole, random, refused = path.read_bytes(), np.random.default_rng(1), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 1000), 3):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_pickle(path)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 100
