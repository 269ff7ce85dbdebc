"""Commands on URLs, in a bucket in memory: the same as on folders, and no path of this machine in what they leave."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from mclip_kit import urls
from mclip_kit.cli import cli
from mclip_kit.config.recipe import load as load_recipe
from mclip_kit.doctor.weights import check_weights
from mclip_kit.interop.encoders import named_encoder
from mclip_kit.models.clip import build_clip
from mclip_kit.storage import copies
from tests import tiny
from tests.storage.buckets import bucket, contents, new_machine

__all__ = ["bucket"]


def run(*words: object, code: int = 0) -> str:
    """What a command prints, as if a process of its own ran it; no copy is named by its path."""
    copies._seen.clear()
    done = CliRunner().invoke(cli, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    assert str(urls.root()) not in done.output, done.output
    return str(done.output)


def put(system: Any, folder: Path, to: str) -> None:
    """Copy a folder into a bucket, as other programs do."""
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe_file(f"{to}/{file.relative_to(folder)}", file.read_bytes())


def check_no_paths(system: Any, top: str = "/") -> None:
    """No object has a path of this machine in it."""
    for name, content in contents(system, top).items():
        assert str(urls.root()).encode() not in content, name


def recipe(system: Any, data: str, epochs: int = 1) -> str:
    """A recipe of one stage on captions in a bucket, in the bucket, too; its name."""
    tree = tiny.recipe(Path("DATA"))
    tree["data"] = {"captions": data, "bitext": f"{data}/bitext"}  # whose vocabulary the encoder has
    tree["teacher"]["weights"] = "random"
    tree["stages"] = [tree["stages"][2] | {"epochs": epochs}]
    system.pipe_file("/b/recipes/tiny.yaml", yaml.safe_dump(tree).encode())
    return "memory://b/recipes/tiny.yaml"


def test_train_eval_report_and_search_by_urls(
    bucket: Any, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(bucket, squares, "/b/data/squares")
    out = run("train", recipe(bucket, "memory://b/data/squares"), "--out", "memory://b/runs/tiny")
    assert "memory://b/runs/tiny/model: done; score it with: mclip-kit eval memory://b/runs/tiny/model" in out
    found = contents(bucket, "/b/runs/tiny")
    assert {"recipe.yaml", "leakage.json", "metrics.jsonl", "checkpoints/last.pt", "model/config.json"} <= found.keys()
    assert any("tfevents" in name for name in found)
    assert b"memory://b/data/squares/bitext" in found["recipe.yaml"]
    assert "holds a run already" in run(
        "train", "memory://b/recipes/tiny.yaml", "--out", "memory://b/runs/tiny", code=2
    )

    new_machine(tmp_path / "second", monkeypatch)
    model = "memory://b/runs/tiny/model"
    for _ in range(2):  # the second time over earlier results
        said = run("eval", model, "--baseline", model, "--same-images", model)
    assert "written over earlier results: memory://b/runs/tiny/eval/squares.test/results.json" in said
    results = json.loads(bucket.cat("/b/runs/tiny/eval/squares.test/results.json"))
    assert (results["folder"], results["models"]) == ("memory://b/data/squares", [model])
    assert "Retrieval on squares" in bucket.cat("/b/runs/tiny/model/README.md").decode()

    tuned = tiny.recipe(Path("D")) | {"init_from": model, "data": {"captions": "memory://b/data/squares"}}
    tuned = {name: value for name, value in tuned.items() if name not in ("teacher", "encoder", "projector")}
    tuned["stages"] = tuned["stages"][2:]
    new_machine(tmp_path / "third", monkeypatch)
    (finding,) = check_weights(load_recipe(tiny.write_recipe(tuned, tmp_path / "tuned.yaml")))
    assert (finding.status, str(finding)[-10:]) == ("ok", "in storage")
    assert not list(urls.root().rglob("*.safetensors"))  # looking up is not bringing
    assert named_encoder(f"hf:{model}/encoder").width == tiny.ENCODER["width"]
    assert build_clip(f"local-dir:{model}/clip").width == tiny.TEACHER["embed_dim"]
    run("export", "clip-retrieval", model, "--data", "memory://b/data/squares", "--out", "memory://b/exported")
    assert "memory://b/exported: exists already" in run(
        "export", "clip-retrieval", model, "--data", "memory://b/data/squares", "--out", "memory://b/exported", code=2
    )
    run("report", "memory://b/runs/tiny", "--out", "memory://b/report.html")
    page = bucket.cat("/b/report.html").decode()
    assert "its pictures are not shown" not in page
    assert page.count("data:image/") >= 1
    run("embed", model, "--images", "memory://b/data/squares", "--out", "memory://b/vectors")
    run("embed", model, "--images", "memory://b/data/squares", "--out", "memory://b/vectors")  # again
    run("index", "memory://b/vectors", "--out", "memory://b/index")

    new_machine(tmp_path / "fourth", monkeypatch)
    said = run("search", "memory://b/index", "rot", "--top", 2)
    assert "memory://b/data/squares/images.npy@" in said
    check_no_paths(bucket)
    assert not {name for name in bucket.find("/b") if "features" in name or "/." in name}
