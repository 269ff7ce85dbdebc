"""What `mclip-kit doctor` finds, in this environment and in broken ones."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from click.testing import CliRunner, Result

from mclip_kit.cli import cli
from mclip_kit.config.recipe import load
from mclip_kit.doctor import conclusion, diagnose, environment
from mclip_kit.doctor.environment import check_packages, check_room, check_versions, installed_version
from mclip_kit.doctor.findings import OK, PROBLEM, Finding
from mclip_kit.doctor.weights import check_weights
from tests import tiny
from tests.models.kinds import ENCODERS, save

Type = Callable[..., Result]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def type_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type a command in an empty folder, where the cache is empty and no hub answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return lambda *words: CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def recipe(squares: Path, tmp_path: Path) -> Path:
    """A tiny recipe over the tiny corpus."""
    return tiny.write_recipe(tiny.recipe(squares), tmp_path / "tiny.yaml")


def problems(result: Result) -> list[str]:
    """The problems that were printed, each with its fix."""
    lines = result.output.splitlines()
    return [f"{line} {after.strip()}" for line, after in pairwise(lines) if line.startswith(PROBLEM)]


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in its own process, without the outer environment's hub and proxies."""
    outer = {name: value for name, value in os.environ.items() if not name.lower().startswith(("hf_", "http", "all_p"))}
    return subprocess.run(
        [sys.executable, "-m", "mclip_kit.cli", "doctor", *words],
        cwd=folder,
        env={**outer, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_this_environment_is_sound(type_: Type) -> None:
    result = type_("doctor")
    assert result.exit_code == 0, result.output
    *lines, last = result.output.splitlines()
    assert last == "this environment is sound"
    assert {line[:9].strip() for line in lines} <= {"ok", "note"}
    for word in (
        "Python",
        "torch ",
        "import fairseq",
        "import transformers",
        "GPU",
        "CPU",
        "memory",
        "disk",
    ):
        assert any(line[9:].startswith(word) for line in lines), word


def test_a_recipe_of_new_towers_can_start(type_: Type, recipe: Path) -> None:
    result = type_("doctor", recipe)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"{recipe} can start"


def test_missing_weights_are_named_with_the_ways_around_them(type_: Type) -> None:
    result = type_("doctor", "altclip_full")
    assert result.exit_code == 1
    encoder, teacher, *data = problems(result)
    assert all(word in encoder for word in ("hf:xlm-roberta-large", "encoder: hf:DIR or fairseq:DIR", "HF_HOME"))
    assert all(word in teacher for word in ("ViT-L-14:openai", "local-dir:DIR or openai:FILE", "HF_HOME"))
    assert len(data) == 2
    assert result.output.splitlines()[-1] == "altclip_full cannot start: 4 problems"


def test_what_the_quickstart_makes_is_named_by_the_command_that_makes_it(type_: Type) -> None:
    encoder, teacher, *_ = problems(type_("doctor", "quickstart_trikd"))
    assert "encoders/e5-small" in encoder
    assert "mclip-kit import e5; or" in encoder
    assert "no such folder" in teacher
    assert "mclip-kit train quickstart; or" in teacher


def test_missing_data_says_how_to_prepare_it(type_: Type, recipe: Path) -> None:
    result = type_("doctor", recipe, "--set", "data.captions=nowhere", "--set", "data.bitext=nowhere/bitext")
    assert result.exit_code == 1
    captions, bitext = problems(result)
    assert captions.startswith("PROBLEM  data.captions: nowhere")
    assert captions.endswith("mclip-kit prepare CORPUS --out nowhere, or --set data.captions=DIR")
    assert "--out nowhere, or --set data.bitext=DIR" in bitext


@pytest.mark.parametrize("change", ["stages.2.languages=[en, xx]", "evaluation.languages=[xx]"])
def test_languages_that_the_data_has_not_are_a_problem(type_: Type, recipe: Path, change: str) -> None:
    (problem,) = problems(type_("doctor", recipe, "--set", change))
    assert "captions in xx; there are de, en, fr" in problem


def test_a_metric_that_no_stage_has_is_a_problem(type_: Type, recipe: Path) -> None:
    (problem,) = problems(type_("doctor", recipe, "--set", "evaluation.metric=mean_recal"))
    assert "evaluation.metric: there is no mean_recal; did you mean mean_recall?" in problem


def test_a_wrong_recipe_is_one_problem_and_the_machine_is_checked(type_: Type, recipe: Path) -> None:
    result = type_("doctor", recipe, "--set", "sede=3")
    assert result.exit_code == 1
    (problem,) = problems(result)
    assert "sede: unknown key; did you mean seed?" in problem
    assert "CPU:" in result.output
    assert "memory:" in result.output
    assert result.output.splitlines()[-1] == f"{recipe} cannot start: 1 problem"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.1.batch_size=5000", "too few for a batch of 5000"),
        ("stages.1.train=[student, nothing.*]", "nothing.*"),
        ("teacher.model.vision_cfg.patch_size=99", "cannot build this config"),
    ],
)
def test_what_only_the_run_itself_would_find_is_found(type_: Type, recipe: Path, change: str, message: str) -> None:
    result = type_("doctor", recipe, "--set", change)
    assert result.exit_code == 1, result.output
    (problem,) = problems(result)
    assert message in problem
    assert not (recipe.parent / "runs").exists()


def test_overrides_without_a_recipe_are_wrong_usage(type_: Type) -> None:
    assert type_("doctor", "--set", "seed=3").exit_code == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 runs here")
def test_fp16_needs_a_gpu(type_: Type, recipe: Path) -> None:
    (problem,) = problems(type_("doctor", recipe, "--set", "precision=fp16"))
    assert "--set precision=bf16" in problem


def test_the_files_of_a_folder_are_checked(type_: Type, recipe: Path, tmp_path: Path) -> None:
    def encoder(value: object) -> Finding:
        return check_weights(load(recipe, [f"encoder={value}"]))[0]

    folder = tmp_path / "xlmr"
    folder.mkdir()
    (folder / "model.pt.xz").write_bytes(b"x" * 2_000_000)
    assert "no dict.txt, sentencepiece.bpe.model there" in encoder(f"fairseq:{folder}").what
    for name in ("dict.txt", "sentencepiece.bpe.model"):
        (folder / name).touch()
    for value in (f"fairseq:{folder}", f"fairseq:{folder}/model.pt.xz"):
        found = encoder(value)
        assert (found.status, found.size, found.download) == (OK, 2_000_000, 0)
        assert found.what.endswith("2.0 MB, on disk")
    assert "no model.pt there" in encoder(f"fairseq:{folder}/model.pt").what
    assert "no config.json, model.safetensors there" in encoder(f"hf:{folder}").what
    (folder / "config.json").touch()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 7000000}}')
    assert encoder(f"hf:{folder}").size == 7_000_000
    assert "no such folder" in encoder("hf:/no/such/folder").what


def test_teachers_are_looked_for_by_tag_file_and_folder(type_: Type, recipe: Path, tmp_path: Path) -> None:
    def teacher(value: str) -> Finding:
        return check_weights(load(recipe, [f"teacher={value}"]))[0]

    (tmp_path / "clip.pt").write_bytes(b"x" * 1_000_000)
    for value in ("{model: 'openai:clip.pt'}", "{model: ViT-B/32, weights: clip.pt}"):
        assert teacher(value).size == 1_000_000
    (tmp_path / "folder.pt").mkdir()
    assert "no folder.pt there" in teacher("{model: 'openai:folder.pt'}").what
    assert "no cllp.pt there" in teacher("{model: 'openai:cllp.pt'}").what
    assert "no open_clip_config.json, *.safetensors there" in teacher(f"{{model: 'local-dir:{tmp_path}'}}").what
    assert "open_clip_config.json" in teacher("{model: 'hf-hub:org/name'}").what
    assert "open_clip knows no weights 'opnai' of ViT-B-32" in teacher("{model: ViT-B-32, weights: opnai}").what


class Hub(BaseHTTPRequestHandler):
    """Answers HEAD as the hub does: a large file is on another server, and its size is in a header."""

    def do_HEAD(self) -> None:
        there = self.path.endswith("/resolve/main/open_clip_model.safetensors")
        self.send_response(302 if there else 404)
        headers = {"X-Repo-Commit": COMMIT, "ETag": '"0"', "Content-Length": "0"}
        large = {"X-Linked-Size": "234000000", "X-Linked-ETag": '"1"', "Location": "http://elsewhere.invalid/1"}
        for name, value in {**headers, **(large if there else {"X-Error-Code": "EntryNotFound"})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that has one file."""
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_in_the_cache_and_weights_to_be_downloaded(recipe: Path, hub: str, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--org--encoder"
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "pytorch_model.bin", "sentencepiece.bpe.model"):
        (snapshot / name).write_bytes(b"x" * 1_000_000)
    words = [str(recipe), "--set", "encoder=hf:org/encoder", "--set", "teacher={model: ViT-L-14, weights: openai}"]
    done = run(words, tmp_path, HF_HUB_CACHE=str(cache.parent), HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       encoder hf:org/encoder: 3.0 MB, in the cache\n" in done.stdout
    assert "note     teacher ViT-L-14:openai: 0.2 GB, 0.2 GB of it to be downloaded\n" in done.stdout
    assert not done.stderr


def test_a_broken_package_is_a_finding_and_no_traceback(tmp_path: Path, recipe: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise OSError('libtorch_cuda.so: cannot open\\nmore')\n")
    done = run([str(recipe)], tmp_path, PYTHONPATH=str(tmp_path / "broken"), HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "PROBLEM  import fairseq: OSError: libtorch_cuda.so: cannot open\n" in done.stdout
    assert "memory:" in done.stdout
    assert "cannot start" in done.stdout.splitlines()[-1]


def test_versions_are_compared_with_requirements() -> None:
    required = ["torch==2.11.*", "numpy>=1.26; python_version >= '3.11'", "emoji>=2; extra == 'demo'", "timm>=1.0.17"]
    found = check_versions(required, {"torch": "2.11.0+cpu", "numpy": "1.25.2"}.get)
    assert [finding.status for finding in found] == [OK, PROBLEM, PROBLEM]
    assert found[1].what.split() == ["numpy", "1.25.2", ">=1.26"]
    assert found[1].fix == "pip install 'numpy>=1.26'"
    assert "missing" in found[2].what


def test_either_build_of_fairseq_is_enough() -> None:
    required = ["ve-fairseq==0.12.3", "fairseq-fixed==0.12.3.1; python_version < '3'"]
    assert check_versions(required, {"fairseq-fixed": "0.12.3.1"}.get)[0].status == OK
    assert check_versions(required, {"fairseq-fixed": "0.12.2"}.get)[0].status == PROBLEM
    assert check_versions(required, {}.get)[0].status == PROBLEM


def test_what_packages_require_of_each_other_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.status for finding in check_packages()} == {OK}
    others = {"torch": "2.15.0", "tokenizers": "0.1"}
    monkeypatch.setattr(environment, "installed_version", lambda name: others.get(name) or installed_version(name))
    torch, *of_others = [finding for finding in check_packages() if finding.status == PROBLEM]
    assert torch.what.split() == ["torch", "2.15.0", "==2.11.0"]
    assert {finding.what.split()[-1] for finding in of_others if finding.what.startswith("torch ")} == {"torchvision)"}
    assert any(f.what.startswith("tokenizers") and f.what.endswith("(required by transformers)") for f in of_others)


def test_too_little_room_is_a_problem(type_: Type) -> None:
    assert [finding.status for finding in check_room(10**6, 10**6)] == [OK, OK, OK]
    assert [finding.status for finding in check_room(10**17, 10**6)] == [PROBLEM, PROBLEM, OK]
    assert "the weights take 100000000.0 GB" in check_room(0, 10**17)[2].what


def test_the_last_line_counts() -> None:
    found = [Finding(PROBLEM, "x", "y"), *diagnose("no-such-recipe")]
    assert conclusion(None, found) == "this environment is not sound: 2 problems"


def test_an_encoder_is_checked_as_a_run_does(type_: Type, squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    tree["stages"], tree["teacher"]["weights"] = tree["stages"][1:2], "random"
    tree["data"]["max_unknown"] = 1.0
    recipe = tiny.write_recipe(tree, tmp_path / "one.yaml")
    good = save(ENCODERS["t5"], tmp_path / "given" / "t5", ends="")
    result = type_("doctor", recipe, "--set", f"encoder=hf:{good}", "--set", "evaluation=null")
    assert result.exit_code == 0, result.output
    assert "their weights are finite" in result.output
    assert "note     the encoder's tokenizer adds no token at the start, so pool: cls" in result.output

    def spoilt() -> Any:
        model = ENCODERS["bert"]()
        model.embeddings.word_embeddings.weight.data[3, 0] = float("nan")
        return model

    bad = save(spoilt, tmp_path / "given" / "bad")
    (problem,) = problems(type_("doctor", recipe, "--set", f"encoder=hf:{bad}", "--set", "evaluation=null"))
    assert f"encoder hf:{bad}: embeddings.word_embeddings.weight is not finite" in problem


HEAVY = (
    "train.run.Run",
    "evaluate.validation.evaluator",
    "interop.imports.mclip.import_mclip",
    "models.multilingual_clip.load",
    "models.text_encoder.encoder_within",
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train RECIPE --set data.bitext=nowhere", "nowhere: no binarised sentences"),
        ("train RECIPE --set data.captions=nowhere", "nowhere: not a prepared corpus"),
        ("extract RECIPE --set data.captions=nowhere", "nowhere: not a prepared corpus"),
        ("train RECIPE --set encoder=fairseq:nowhere", "encoder fairseq:nowhere: missing"),
        ("train RECIPE --set encoder=hf:/no/where", "encoder hf:/no/where: /no/where/config.json is missing"),
        (
            "train RECIPE --set teacher.weights=null --set teacher.model=local-dir:no",
            "no/open_clip_config.json: missing",
        ),
        ("train RECIPE --set teacher.weights=null --set teacher.model=openai:no.pt", "no.pt: missing"),
        (
            "train RECIPE --set init_from=./no --set teacher=null --set encoder=null --set projector=null",
            "no/config.json: missing",
        ),
        ("export open-clip no", "no/config.json: missing"),
        ("export fairseq no --out x", "no: contains no encoder"),
        ("import mclip no.pt --xlmr no", "no.pt: missing"),
    ],
)
def test_what_is_missing_is_said_before_anything_heavy_is_imported(
    words: str, message: str, type_: Type, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("the heavy part has begun")

    for part in HEAVY:
        monkeypatch.setattr(f"mclip_kit.{part}", fail)
    result = type_(*[recipe if word == "RECIPE" else word for word in words.split()])
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1


def test_these_checks_import_no_heavy_package() -> None:
    code = (
        "import sys\n"
        "from mclip_kit.config.recipe import load\n"
        "from mclip_kit.doctor.places import check_places\n"
        "from mclip_kit.errors import DataError\n"
        "try: check_places(load('altclip_full'))\n"
        "except DataError: pass\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'fairseq'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
