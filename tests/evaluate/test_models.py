"""The models of an evaluation: where they run, and that a second evaluation runs no tower."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from mclip_kit.cli import cli
from mclip_kit.config.yaml import RenamedKey
from mclip_kit.errors import DiskError, RecipeError
from mclip_kit.evaluate import bitext, models
from mclip_kit.evaluate.base import Request
from mclip_kit.evaluate.baselines import baseline
from mclip_kit.evaluate.embedder import Embedder
from mclip_kit.evaluate.models import computed_on, open_cache, open_model
from mclip_kit.evaluate.same_images import open_older
from mclip_kit.features.cache import CACHE_VARIABLE, FeatureCache
from mclip_kit.models.device import on_device
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.student import load_student
from tests import tiny
from tests.interop.models import build
from tests.test_cli import assert_one_line

TOWERS = ("image", "teacher_text", "encoder", "projector")
PROJECTORS = {
    "blocks": {"kind": "transformer", "pool": "mean", "layers": 1},
    "linear": {"kind": "linear", "pool": "mean"},
}
Run = Callable[..., tuple[Result, dict[str, int], dict[str, Any]]]


@pytest.fixture(scope="module", params=PROJECTORS)
def folder(request: pytest.FixtureRequest, squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random towers: with an X-projector, and with a linear one."""
    model = build(squares, PROJECTORS[request.param], "none", 24, tiny.TEACHER)
    model.trained_languages, model.dims = ["de"], [8]
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in an empty folder; the inputs of each tower of the models that it loads, and results.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    seen: Counter[str] = Counter()

    def watched(name: Any, read: Callable[[Any], Any] = load) -> Any:
        model = read(name)
        for tower in (tower for tower in TOWERS if hasattr(model, tower)):
            hook = lambda module, inputs, output, tower=tower: seen.update({tower: len(inputs[0])})  # noqa: E731
            getattr(model, tower).register_forward_hook(hook)
        return model

    monkeypatch.setattr(models, "load", watched)
    monkeypatch.setattr(bitext, "load_student", lambda name: watched(name, load_student))

    def again(*words: str | Path, model: Path = folder, out: str = "out") -> Any:
        seen.clear()
        done = CliRunner().invoke(cli, ["eval", str(model), "--out", out, "--cache", "kept", *map(str, words)])
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / out / "results.json").read_text(encoding="utf-8"))
        return done, {tower: seen[tower] for tower in TOWERS if seen[tower]}, found

    return again


def numbers(found: dict[str, Any], *lists: str) -> list[Any]:
    """What an evaluation scored, without the model's name."""
    return [[{**row, "model": ""} for row in found[name]] for name in lists]


def test_a_second_evaluation_runs_no_tower(run, squares, folder, tmp_path):
    first, seen, found = run("--data", squares, "--dims", "8,full")
    texts = {"encoder": 36} | ({"projector": 36} if "projector" in seen else {})
    assert seen == {"image": 12, "teacher_text": 12, **texts}  # once, though --dims and the report embed again
    assert "rows to compute" in first.output
    _, seen, other = run("--data", squares, "--protocol", "xtd", "--langs", "fr,de", "--baseline", "teacher")
    assert seen == {"teacher_text": 24}  # what it had not read before: captions that are not English
    copy = shutil.copytree(folder, tmp_path / "copy")
    words = ("--protocol", "mclip", "--baseline", folder, "--dims", "5,8")
    _, seen, other = run("--data", squares, *words, model=copy)
    assert not seen
    assert {row["dims"] for row in other["widths"]} == {5, 8}
    _, seen, again = run("--data", squares, "--dims", "8,full")
    assert not seen
    assert numbers(again, "results", "widths", "intervals") == numbers(found, "results", "widths", "intervals")


def test_what_was_kept_gives_the_scores_of_what_is_computed_now(run, squares):
    run("--data", squares, "--langs", "de")
    _, _, kept = run("--data", squares)
    _, seen, computed = run("--data", squares, "--cache", "off")
    assert seen["image"] == 12
    assert numbers(kept, "results") == numbers(computed, "results")


def test_other_weights_are_computed_again_those_of_the_changed_tower_alone(run, squares, folder, tmp_path):
    run("--data", squares)
    model = load(folder)
    with torch.no_grad():
        next(model.image.parameters()).mul_(1.01)
    model.save(tmp_path / "image")
    assert run("--data", squares, model=tmp_path / "image")[1] == {"image": 12}
    with torch.no_grad():
        next(model.projector.parameters()).mul_(1.01)
    model.save(tmp_path / "projector")
    seen = run("--data", squares, model=tmp_path / "projector")[1]
    assert seen == ({"encoder": 36, "projector": 36} if model.projector.blocks else {})  # a linear head is not kept


def test_vectors_of_autocast_are_kept_apart(run, squares):
    _, seen, full = run("--data", squares)
    done, lower_seen, lower = run("--data", squares, "--precision", "bf16", out="lower")
    assert lower_seen == seen
    assert "computed on: cpu, bf16" in done.output
    assert (full["device"], lower["device"]) == ("cpu", "cpu, bf16")
    _, seen, again = run("--data", squares, "--precision", "auto")  # float32 on the CPU
    assert not seen
    assert numbers(again, "results") == numbers(full, "results")
    assert not run("--data", squares, "--precision", "bf16", out="lower")[1]
    with (Path("kept") / next(path.name for path in Path("kept").glob("image-*")) / "table.json").open() as file:
        assert json.load(file)["device"] == "cpu"


def test_results_of_a_lower_precision_stay_beside_the_others(folder, squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(folder, tmp_path / "run" / "model")
    words = ["eval", str(model), "--data", str(squares), "--cache", "off", "--langs", "de"]
    for more in (["--precision", "bf16"], [], ["--precision", "auto"]):
        done = CliRunner().invoke(cli, [*words, *more, "--device", "cpu"])
        assert done.exit_code == 0, done.output
    assert "written over earlier results" in done.output  # auto is float32 on the CPU
    found = {path.name: path / "results.json" for path in (model.parent / "eval").iterdir()}
    name = f"{squares.name}.test"
    assert set(found) == {name, f"{name}.bf16"}
    kinds = {folder: json.loads(file.read_text(encoding="utf-8"))["precision"] for folder, file in found.items()}
    assert kinds == {name: "fp32", f"{name}.bf16": "bf16"}
    page = CliRunner().invoke(cli, ["report", str(model.parent), "--out", "page.html"])
    assert page.exit_code == 0, page.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"test of {squares.name}, protocol any, bf16" in text
    assert f"test of {squares.name}, protocol any<" in text
    card = (model / "README.md").read_text(encoding="utf-8")
    assert card.count("Percent, bf16; ranks by protocol `any`") == 1
    assert card.count("Percent, fp32; ranks by protocol `any`") == 1


def test_results_that_do_not_name_their_precision_are_float32(folder, squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(folder, tmp_path / "run" / "model")
    words = ["eval", str(model), "--data", str(squares), "--cache", "off", "--langs", "de"]
    assert CliRunner().invoke(cli, words).exit_code == 0
    (file,) = model.parent.glob("eval/*/results.json")
    known = json.loads(file.read_text(encoding="utf-8"))
    for row in (known, *known["results"]):
        del row["precision"]
    file.write_text(json.dumps(known), encoding="utf-8")
    assert CliRunner().invoke(cli, ["report", str(model.parent), "--out", "page.html"]).exit_code == 0
    assert "written over earlier results" in CliRunner().invoke(cli, words).output


def test_vectors_are_pooled_in_float32_under_bf16(folder, squares, tmp_path):
    request = Request("bitext", (folder,), squares, "test", "all", tmp_path, cache="off", precision="bf16")
    encoder = load(folder, "cpu").encoder
    texts = ["rot", "ein rotes Quadrat links, ein blaues rechts", "grün"]
    found_NH = bitext.embedder(request, folder / "encoder")[0](texts)
    tokens = encoder.tokenizer.encode(texts, encoder.positions)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ids_BT, mask_BT = encoder.pad(tokens)
        states_BTH = encoder(ids_BT, mask_BT)
    means = [own[: len(ids)].double().mean(0) for own, ids in zip(states_BTH, tokens, strict=True)]
    wanted_NH = torch.nn.functional.normalize(torch.stack(means), dim=-1).numpy()
    np.testing.assert_allclose(found_NH, wanted_NH, atol=1e-6)


def test_other_evaluations_read_the_same_vectors(run, squares, colours, folder, tmp_path):
    names = {code: dict(zip(tiny.COLOURS, names, strict=True)) for code, names in _names().items()}
    tree = {code: {"classnames": own, "templates": ["{c}", "a {c} square"]} for code, own in names.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    zeroshot = ("--task", "zeroshot", "--data", colours, "--classes", "own.yaml")
    _, seen, _ = run(*zeroshot, "--workers", "0", "--langs", "de")
    assert (seen["image"], seen["teacher_text"], seen["encoder"]) == (96, 12, 12)
    assert run(*zeroshot)[1]["encoder"] == 12
    assert not run(*zeroshot)[1]
    (copy := shutil.copytree(folder, tmp_path / "copy") / "clip" / "open_clip_model.safetensors").unlink()
    _, seen, first = run("--task", "bitext", "--data", squares, model=copy.parents[1])  # its CLIP is not read
    assert set(seen) == {"encoder", "projector"}
    _, seen, second = run("--task", "bitext", "--data", squares)
    assert not seen
    assert numbers(first, "results") == numbers(second, "results")


def _names() -> dict[str, list[str]]:
    return {"en": list(tiny.COLOURS), "de": [names[1] for names in tiny.COLOURS.values()]}


def test_an_encoder_alone_is_kept_too(folder, squares, tmp_path, monkeypatch):
    request = Request("bitext", (folder / "encoder",), squares, "test", "all", tmp_path, cache=str(tmp_path / "kept"))
    texts = ["rot", "ein rotes Quadrat links", "grün"]
    wanted_NH = bitext.mean_pooled(load(folder, "cpu").encoder)(texts)
    found_NH = bitext.embedder(request, folder / "encoder")[0](texts)
    np.testing.assert_allclose(found_NH, wanted_NH, atol=1e-6)
    embed = bitext.embedder(request, folder / "encoder")[0]
    monkeypatch.setattr("mclip_kit.features.table.fill_shards", lambda *_, **__: pytest.fail("it is computed again"))
    assert np.array_equal(embed(texts), found_NH)


@pytest.mark.parametrize("dims", [None, 5])
def test_a_student_that_is_kept_has_the_bits_of_encode_text(folder, squares, tmp_path, dims):
    request = Request("bitext", (folder,), squares, "test", "all", tmp_path, cache=str(tmp_path / "kept"))
    model, cache = open_model(request, folder)
    texts = [f"{colour} {place} {n}" for n in range(4) for colour in tiny.COLOURS for place in tiny.PLACES]
    wanted_ND = load(folder, "cpu").encode_text(texts, dims=dims).numpy()
    for _ in range(2):
        assert np.array_equal(Embedder(model, cache, dims).whole_student(texts), wanted_ND)
    assert np.array_equal(Embedder(model, FeatureCache(), dims).whole_student(texts), wanted_ND)


def test_the_device_reaches_every_tower(folder, squares, tmp_path):
    request = Request("retrieval", (folder,), squares, "test", "all", tmp_path, cache="off")
    loaded: list[MultilingualClip] = []

    def opened(name: str) -> tuple[MultilingualClip, FeatureCache]:
        model, cache = open_model(request, name)
        loaded.append(model)
        return model, cache

    with on_device("meta"):
        assert computed_on(request) == "meta"
        cache = opened(str(folder))[1]
        baseline(str(folder), None, "test", "all", "any", opened)  # type: ignore[arg-type]
        older, other = open_older(str(folder)), open_older(f"local-dir:{folder / 'clip'}")
    assert cache.facts["device"] == "meta"
    weights = [*other.model.state_dict().values(), *(w for m in (*loaded, older) for w in m.state_dict().values())]
    assert {weight.device.type for weight in weights} == {"meta"}
    assert len(loaded) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cuda"], "device: 'cuda' cannot be used here; use auto or cpu"),
        (["--precision", "fp16"], "precision: fp16 needs a GPU; use bf16 or fp32"),
        (["--precision", "fp16", "--same-images", "ViT-B-32 none"], "precision: fp16 needs a GPU; use bf16 or fp32"),
        (["--device", "meta"], "device: 'meta' has no numbers, so nothing can be computed on it; use auto or cpu"),
        (["--device", "hpu"], "device: 'hpu' cannot be used here; use auto or cpu"),
        (["--cache", "no/folder"], "no/folder: cannot be written: "),
        (["--cache", "no"], "--cache 'no': is a file; give a folder, its URL, or off"),
        (["--cache", ""], "--cache '': is empty; give a folder, its URL, or off"),
        (["--task", "translation", "--cache", "off"], "--cache is for --task retrieval, zeroshot and bitext"),
    ],
)
def test_what_cannot_be_is_one_line(folder, squares, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").write_text("a file where a folder is wanted")
    assert_one_line(
        CliRunner().invoke(cli, ["eval", str(folder), "--data", str(squares), "--out", "out", *words]), message
    )


def test_off_is_read_in_any_case(folder, squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["eval", str(folder), "--data", str(squares), "--out", "out", "--cache", "OFF"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_is_told_with_what_to_do(folder, squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mclip_kit.features.filling.FULL", 0)
    done = CliRunner().invoke(cli, ["eval", str(folder), "--data", str(squares), "--out", "out", "--cache", "kept"])
    assert_one_line(done, "image features would take ", " GB free; --cache names another folder, or off")


def test_a_cache_that_stops_being_writable_is_told_with_what_to_do(folder, squares, tmp_path, monkeypatch):
    def full(place: Path, *_: Any, **__: Any) -> None:
        raise DiskError(f"{place}: cannot be written: Permission denied; choose another place")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mclip_kit.features.table.check_room", full)
    done = CliRunner().invoke(cli, ["eval", str(folder), "--data", str(squares), "--out", "out", "--cache", "kept"])
    assert_one_line(done, "choose another place; --cache names another folder, or off")
    monkeypatch.setattr("mclip_kit.evaluate.retrieval_run.open_model", lambda request, _: full(request.out / "x.png"))
    done = CliRunner().invoke(cli, ["eval", str(folder), "--data", str(squares), "--out", "out", "--cache", "kept"])
    assert_one_line(done, "x.png: cannot be written: Permission denied; choose another place")
    assert "--cache" not in done.output


def test_vectors_are_where_the_run_keeps_features(squares, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    model = tmp_path / "runs" / "one" / "model"
    model.mkdir(parents=True)
    request = Request("retrieval", (model,), squares, "test", "all", tmp_path)
    assert open_cache(request, model).root == model.parent / "features"  # no run's: beside the model
    tree = tiny.recipe(squares)
    recipe = tiny.write_recipe(tree, model.parent / "recipe.yaml")
    assert open_cache(request, model).root == tmp_path / "runs" / "features"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "variable"))
    assert open_cache(request, model).root == tmp_path / "variable"
    tiny.write_recipe({**tree, "cache": {"folder": "named"}}, recipe)
    assert open_cache(request, model).root == Path("named")
    tiny.write_recipe({**tree, "cache": "off"}, recipe)
    assert open_cache(request, model).root is None
    recipe.write_text("stages: of an earlier version\n", encoding="utf-8")
    assert open_cache(request, model).root == tmp_path / "variable"
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "below"))
    assert open_cache(request, model).root is None
    assert "vectors are not kept; --cache FOLDER keeps them" in capsys.readouterr().out
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))  # a user may write it, but it is no folder
    assert open_cache(request, model).root is None
    assert "vectors are not kept; --cache FOLDER keeps them" in capsys.readouterr().out


def test_vectors_of_a_part_of_a_model_folder_are_not_in_the_model_folder(folder, squares, tmp_path, monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    request = Request("bitext", (folder / "encoder",), squares, "test", "all", tmp_path)
    assert open_cache(request, folder / "encoder").root == folder.parent / "features"


def test_the_recipe_of_an_earlier_run_is_read_without_a_word(squares, tmp_path, recwarn):
    tree = tiny.recipe(squares)
    (tmp_path / "one").mkdir()
    tiny.write_recipe({**tree, "cache": {"workers": 0, "folder": "named"}}, tmp_path / "one" / "recipe.yaml")
    request = Request("retrieval", (), squares, "test", "all", tmp_path)
    assert open_cache(request, tmp_path / "one" / "model").root == Path("named")
    assert not [warning for warning in recwarn.list if warning.category is RenamedKey]


def test_half_precision_is_refused_before_a_model_is_loaded(squares, tmp_path):
    request = Request("retrieval", (), squares, "test", "all", tmp_path, precision="fp16")
    with on_device("cpu"), pytest.raises(RecipeError, match="fp16 needs a GPU"):
        open_model(request, tmp_path / "nowhere")
