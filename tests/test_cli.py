"""The command line: what a user types, and what comes of ten wrong inputs - one clear line, exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mclip_kit.cli import cli
from tests import tiny
from tests.shared import MCLIP_TINY, needs

Type = Callable[..., Result]


@pytest.fixture
def type_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type a command in an empty folder, where no hub answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda *words: CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def recipe(squares: Path, tmp_path: Path) -> Path:
    """A tiny recipe over a copy of the tiny corpus, which a test may damage."""
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "data")))
    return tiny.write_recipe(tiny.recipe(tmp_path / "data"), tmp_path / "tiny.yaml")


def assert_one_line(result: Result, *said: str) -> None:
    """Exit code 2, and a single line that says all of this."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1, result.output
    assert all(word in lines[0] for word in said), lines[0]


def test_help_lists_the_commands(type_: Type) -> None:
    result = type_("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in ("prepare", "train", "eval", "import", "recipes"))


def test_recipes_lists_each_with_its_line(type_: Type) -> None:
    lines = type_("recipes").output.splitlines()
    assert [line.split()[0] for line in lines] == [
        "altclip_full",
        "altclip_m9",
        "calibrate",
        "coco_finetune",
        "m2m",
        "mclip_plus",
        "mte",
        "multi30k_finetune",
        "quickstart",
        "quickstart_trikd",
        "quickstart_unpaired",
        "trikd_projectors",
    ]
    assert all(len(line.split()) > 4 for line in lines)


def test_train_then_eval_from_a_fresh_folder(type_: Type, recipe: Path, tmp_path: Path) -> None:
    trained = type_("train", recipe, "--set", "evaluation.every_epochs=9")
    assert trained.exit_code == 0, trained.output
    assert "image" in trained.output
    assert "frozen" in trained.output
    scored = type_("eval", "runs/tiny/model", "--data", "data", "--langs", "en,fr")
    assert scored.exit_code == 0, scored.output
    assert "teacher's own text, en" in scored.output
    written = json.loads((tmp_path / "runs/tiny/eval/data.test/results.json").read_text(encoding="utf-8"))
    assert [(row["tower"], row["language"]) for row in written["results"]] == [
        ("teacher", "en"),
        ("student", "en"),
        ("student", "fr"),
    ]
    assert (tmp_path / "runs/tiny/eval/data.test/retrieval.png").is_file()
    asked = type_("eval", "runs/tiny/model", "--langs", "en,fr", "--json")  # --data: what it was trained on
    assert asked.exit_code == 0, asked.output
    assert json.loads(asked.stdout)["results"] == written["results"]


def test_several_models_stand_in_one_table(type_: Type, recipe: Path, tmp_path: Path) -> None:
    assert type_("train", recipe, "--set", "evaluation=null").exit_code == 0
    one = ("--set", "evaluation=null", "--set", "stages.1.languages=[de]", "--set", "stages.2.languages=[de]")
    assert type_("train", recipe, "--out", "runs/one", *one).exit_code == 0
    scored = type_("eval", "runs/tiny/model", "runs/one/model", "--data", "data", "--langs", "de,fr")
    assert scored.exit_code == 0, scored.output
    rows = {line.split()[0]: line for line in scored.output.splitlines() if line.strip() and line[0] != "["}
    assert rows["de"].count("°") == 0
    assert rows["fr"].count("°") == 1
    assert "[1] runs/tiny/model" in scored.output
    assert "[2] runs/one/model" in scored.output
    rows = json.loads((tmp_path / "runs/one/eval/data.test/results.json").read_text())["results"]
    trained = {(row["model"], row["language"]): row["trained"] for row in rows if row["tower"] == "student"}
    assert trained["runs/tiny/model", "fr"]
    assert not trained["runs/one/model", "fr"]


def test_full_recipes_name_what_is_missing_and_both_ways_to_give_it(type_: Type, squares: Path) -> None:
    data = ("--set", f"data={{captions: {squares}, bitext: {squares / 'bitext'}}}")
    needs = {"altclip_full": ("xlm-roberta-large", "ViT-L-14"), "trikd_projectors": ("xlm-roberta-base", "ViT-B-32")}
    for name, missing in needs.items():
        result = type_("train", f"recipes/{name}.yaml", *data)
        assert_one_line(result, *missing, "encoder: hf:DIR", "local-dir:DIR", "HF_HOME")


def test_unknown_corpus(type_: Type) -> None:
    assert_one_line(type_("prepare", "emojis"), "emojis", "did you mean emoji?")


def test_a_folder_in_the_way_of_prepare(type_: Type, tmp_path: Path) -> None:
    (tmp_path / "data" / "emoji").mkdir(parents=True)
    assert_one_line(type_("prepare"), "data/emoji", "--out")


def test_missing_recipe(type_: Type) -> None:
    assert_one_line(type_("train", "recipes/quikstart.yaml"), "quikstart", "did you mean quickstart?")


def test_a_directory_that_is_not_there(type_: Type, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "deep" / "recipe.yaml"
    assert_one_line(type_("train", path), str(path))


def test_unprepared_data(type_: Type, recipe: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    assert_one_line(type_("train", recipe), "data", "mclip-kit prepare")


def test_unknown_key_and_wrong_type_in_one_go(type_: Type, recipe: Path) -> None:
    wrong = type_("train", recipe, "--set", "stages.0.lr=fast", "--set", "sede=2")
    assert_one_line(wrong, "stages.0.lr", "sede: unknown key; did you mean seed?")


def test_one_side_shorter(type_: Type, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "bitext"
    for suffix in ("bin", "idx", "txt"):
        shutil.copy(folder / f"valid.en-de.de.{suffix}", folder / f"train.en-de.de.{suffix}")
    result = type_("train", recipe, "--set", "evaluation=null")
    assert result.exit_code == 2
    assert "train.en-de: 72 en lines but 12 de lines" in result.output.splitlines()[-1]


def test_unreadable_pictures(type_: Type, recipe: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "data" / "images.npy"
    pictures.write_bytes(pictures.read_bytes()[:500])
    assert_one_line(type_("train", recipe), "data", "damaged", "prepare")


def test_too_few_pictures(type_: Type, recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "data" / "images.npy", np.zeros((3, 16, 16, 3), np.uint8))
    assert_one_line(type_("train", recipe), "images.npy has 3 pictures, its table 96")


def test_flat_pictures(type_: Type, recipe: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "data" / "images.npy", np.zeros((96, 16, 16), np.uint8))
    assert_one_line(type_("train", recipe), "images.npy", "not uint8 (N, S, S, 3)")


def test_a_damaged_manifest(type_: Type, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "manifest.json").write_text("{")
    (tmp_path / "config.json").write_text("{}")
    assert_one_line(type_("eval", tmp_path, "--data", tmp_path / "data"), "manifest.json", "damaged")


def test_empty_bitext(type_: Type, recipe: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "data" / "bitext").glob("*.idx"):
        file.unlink()
    assert_one_line(type_("train", recipe), "bitext", "no binarised sentences")


def test_unknown_language(type_: Type, recipe: Path) -> None:
    result = type_("train", recipe, "--set", "stages.1.languages=[de, xx]", "--set", "evaluation=null")
    assert result.exit_code == 2
    assert "xx" in result.output.splitlines()[-1]


def test_unknown_split(type_: Type, recipe: Path) -> None:
    result = type_("train", recipe, "--set", "evaluation.split=dev")
    assert result.exit_code == 2
    assert "'dev'" in result.output.splitlines()[-1]


def test_a_glob_that_matches_nothing(type_: Type, recipe: Path) -> None:
    assert_one_line(type_("train", recipe, "--set", "stages.1.train=[encoder.layer.77.*]"), "encoder.layer.77.*")


def test_no_model_folder(type_: Type, recipe: Path) -> None:
    assert_one_line(type_("eval", "data", "--data", "data"), "config.json", "not a complete model folder")


def test_unknown_clip_model_and_tag(type_: Type, recipe: Path) -> None:
    unknown = type_("train", recipe, "--set", "teacher={model: ViT-B-23, weights: train}")
    assert_one_line(unknown, "ViT-B-23", "did you mean ViT-B-32?")
    tag = type_(
        "train",
        recipe,
        *("--set", "teacher={model: ViT-B-32, weights: openia}"),
        *("--set", "stages.0.train=[image]", "--set", "stages.0.templates=[]"),
    )
    assert tag.exit_code == 2
    assert "openia" in tag.output


def test_a_clip_config_that_fits_no_picture(type_: Type, recipe: Path) -> None:
    result = type_("train", recipe, "--set", "teacher.model.vision_cfg.patch_size=32")
    assert_one_line(result, "teacher.model", "open_clip cannot build this config")


def test_a_spm_that_is_none(type_: Type, tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(b"nothing")
    result = type_("prepare", "--spm", tmp_path / "spm.model")
    assert_one_line(result, f"{tmp_path / 'spm.model'}: not a readable SentencePiece model")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "spm.model"]


@needs(MCLIP_TINY)
def test_import_mclip_says_where_its_parts_came_from(type_: Type, tmp_path: Path) -> None:
    command = [
        "import",
        "mclip",
        MCLIP_TINY / "mclip_tiny" / "checkpoint_best.pt.xz",
        "--xlmr",
        MCLIP_TINY / "xlmr_base",
    ]
    result = type_(*command, "--clip", MCLIP_TINY / "clip_base" / "ViT-B-32.pt.xz", "--out", "model")
    assert result.exit_code == 0, result.output
    for said in ("XLM-R: from the checkpoint, the same as", "CLIP: from the checkpoint, the same as", "0.0702"):
        assert said in result.output
    assert json.loads((tmp_path / "model" / "config.json").read_text())["made_from"] == "mCLIP's checkpoint_best.pt.xz"
    assert_one_line(type_(*command, "--out", "model"), "model", "exists already")


def test_import_mclip_of_what_is_none(type_: Type, tmp_path: Path) -> None:
    (tmp_path / "mclip.pt").write_bytes(b"not a checkpoint")
    (tmp_path / "xlmr").mkdir()
    assert_one_line(type_("import", "mclip", "mclip.pt", "--xlmr", "xlmr"), "mclip.pt", "not a weight file")
    assert_one_line(type_("import", "mclip", "none.pt", "--xlmr", "xlmr"), "none.pt", "missing")
    assert not (tmp_path / "models").exists()


def test_an_old_key_is_said_in_one_line(tmp_path: Path) -> None:
    recipe = tiny.write_recipe(tiny.recipe(tmp_path / "nowhere"), tmp_path / "tiny.yaml")
    done = CliRunner().invoke(
        cli, ["train", str(recipe), "--set", "stages.2.wise_ft=0.5", "--out", str(tmp_path / "run")]
    )
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("warning: ")
    assert "stages.2.wise_ft: the key is now called wise_ft_alpha" in lines[0]
    assert "nowhere" in lines[-1]
