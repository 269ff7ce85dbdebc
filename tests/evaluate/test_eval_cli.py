"""mclip-kit eval as a user types it: tables, results.json, and wrong inputs in one line."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from mclip_kit.cli import cli
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import read_captions
from mclip_kit.data.leakage import Leak, as_json
from mclip_kit.evaluate.advice import eval_command
from mclip_kit.evaluate.report.tables import retrieval_rows
from mclip_kit.evaluate.retrieval import score
from mclip_kit.files import write_json
from mclip_kit.models.multilingual_clip import load
from mclip_kit.train.build import build_model
from tests import tiny
from tests.test_cli import assert_one_line

Eval = Callable[..., Result]
METRICS = {
    *(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)),
    *("mean_recall", "image_median_rank", "text_median_rank"),
}


@pytest.fixture(scope="module")
def folder(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random towers that claims to be trained on German."""
    model = build_model(parse(tiny.recipe(squares), Recipe, "tiny"))
    model.trained_languages, model.made_from, model.dims = ["de"], "a tiny encoder", [4]
    folder = tmp_path_factory.mktemp("run") / "model"
    model.save(folder)
    return folder


@pytest.fixture
def eval_(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Eval:
    """Run the command in an empty folder; results go to `out`."""
    monkeypatch.chdir(tmp_path)
    words = ["eval", str(folder), "--out", "out"]
    return lambda *more: CliRunner().invoke(cli, [*words, *(str(word) for word in more)])


def written(tmp_path: Path) -> dict[str, Any]:
    text = (tmp_path / "out" / "results.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_results_are_in_clip_benchmarks_names(eval_, squares, folder, tmp_path):
    done = eval_("--data", squares, "--langs", "de,fr")
    assert done.exit_code == 0, done.output
    found = written(tmp_path)
    assert {key: found[key] for key in ("data", "task", "split", "protocol", "comparisons", "leakage")} == {
        "data": str(squares),
        "task": "retrieval",
        "split": "test",
        "protocol": "any",
        "comparisons": [],
        "leakage": [],
    }
    teacher, german, french = found["results"]
    assert (teacher["tower"], teacher["language"], teacher["trained"]) == ("teacher", "en", None)
    assert (german["tower"], german["language"], german["trained"]) == ("student", "de", True)
    assert (french["language"], french["trained"]) == ("fr", False)
    about = {"dataset": "data", "model": str(folder), "pretrained": "a tiny encoder", "task": "zeroshot_retrieval"}
    assert german | about | {"split": "test", "n_images": 12, "n_captions": 12} == german
    assert set(german["metrics"]) == METRICS
    assert all(0 <= german["metrics"][name] <= 1 for name in METRICS if "rank" not in name)
    assert german["metrics"]["mean_recall"] == pytest.approx(
        np.mean([german["metrics"][name] for name in METRICS if "recall@" in name])
    )
    assert "gallery of 12 pictures, 12 captions a language, protocol any; T2I R@1 by chance is 8.33" in done.output


def test_image_retrieval_is_text_to_image_as_in_clip_benchmark():
    """Three captions a picture, so that the two ways differ."""
    theirs = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark comes with the extra `dev` only"
    )
    draw = np.random.default_rng(0)
    images_GD, of_Q = draw.normal(size=(20, 6)).astype(np.float32), np.arange(60) % 20
    texts_QD = (images_GD[of_Q] + draw.normal(size=(60, 6)) * 1.2).astype(np.float32)
    images_GD, texts_QD = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images_GD, texts_QD))
    groups_G, strata_G = np.arange(20), np.full(20, "all")
    (row,) = retrieval_rows({"de": score(images_GD, texts_QD, groups_G, of_Q, strata_G)}, {}, "student", [])

    class Given(torch.nn.Module):
        encode_image = encode_text = staticmethod(lambda inputs: inputs)

    captions = [[texts_QD[q] for q in np.flatnonzero(of_Q == image)] for image in range(20)]
    tokenize = lambda texts: torch.from_numpy(np.stack(texts))  # noqa: E731
    batches = [(torch.from_numpy(images_GD), captions)]
    expected = theirs.evaluate(Given(), batches, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])
    assert {name: row["metrics"][name] for name in expected} == pytest.approx(expected)
    assert expected["image_retrieval_recall@1"] != expected["text_retrieval_recall@1"]


def test_baselines_are_compared_with_the_model_with_intervals(eval_, squares, folder, tmp_path):
    captions = read_captions(squares)
    german = captions.texts[captions.select("test", ["de"])].tolist()
    (tmp_path / "de.tsv").write_text("".join(f"{text}\ta square\n" for text in german), encoding="utf-8")
    names = ["teacher", "closed-form", "translated:de.tsv", str(folder)]
    done = eval_("--data", squares, "--langs", "en,de", *(word for name in names for word in ("--baseline", name)))
    assert done.exit_code == 0, done.output
    assert all(f"against {name}, test" in done.output for name in names)
    found = written(tmp_path)
    towers = [(row["tower"], row["language"]) for row in found["results"]]
    assert sorted(towers) == sorted((tower, code) for tower in ("student", *names) for code in ("en", "de"))
    places = {(item["baseline"], item["language"], item["metric"]): item for item in found["comparisons"]}
    compared = ("image_retrieval_recall@1", "text_retrieval_recall@1", "mean_recall")
    assert len(places) == len(names) * len(("en", "de", "mean")) * len(compared)
    rows = {(row["tower"], row["language"]): row["metrics"] for row in found["results"]}
    for (name, code, metric), item in places.items():
        assert item["model"] == str(folder)
        assert item["low"] <= item["difference"] <= item["high"]
        if code != "mean":
            difference = rows["student", code][metric] - rows[name, code][metric]
            assert item["difference"] == pytest.approx(difference)
            assert (
                f"{100 * item['difference']:+.1f} [{100 * item['low']:+.1f}, {100 * item['high']:+.1f}]" in done.output
            )
        if name == str(folder):
            assert (item["low"], item["difference"], item["high"]) == (0, 0, 0)
    same = rows["translated:de.tsv", "de"]  # every caption the same: no better than chance
    assert same["image_retrieval_recall@1"] <= 1 / 12
    assert same["text_retrieval_recall@1"] == 0


def test_zero_shot_classification_of_class_folders(eval_, colours, tmp_path):
    names = {language: dict(zip(tiny.COLOURS, words, strict=True)) for language, words in _colour_names().items()}
    tree = {code: {"classnames": own, "templates": ["{c} square", "a {c} square"]} for code, own in names.items()}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    done = eval_("--task", "zeroshot", "--data", colours, "--classes", "own.yaml")
    assert done.exit_code == 0, done.output
    found = written(tmp_path)
    assert (found["task"], found["comparisons"]) == ("zeroshot", [])
    rows = {(row["tower"], row["language"]): row for row in found["results"]}
    assert list(rows) == [("teacher", "en"), ("student", "en"), ("student", "de")]
    row = rows["student", "de"]
    about = {"dataset": "colours", "task": "zeroshot_classification", "n_images": 96, "n_classes": 6, "trained": True}
    assert row | about == row
    assert set(row["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert "top-1 by chance is 16.67" in done.output
    few = eval_("--task", "zeroshot", "--data", colours, "--classes", "own.yaml", "--langs", "de")
    assert few.exit_code == 0, few.output
    assert [(row["tower"], row["language"]) for row in written(tmp_path)["results"]] == [
        ("teacher", "en"),
        ("student", "de"),
    ]


def _colour_names() -> dict[str, list[str]]:
    return {"en": list(tiny.COLOURS), "de": [names[1] for names in tiny.COLOURS.values()]}


def test_classes_of_one_name_are_printed_and_count_as_misses(eval_, colours, tmp_path):
    for name in ("red", "blue"):
        shutil.copytree(colours / name, tmp_path / "two" / name)
    (tmp_path / "own.yaml").write_text("de: {classnames: [blau, blau], templates: ['{c}']}", encoding="utf-8")
    done = eval_("--task", "zeroshot", "--data", "two", "--classes", "own.yaml")
    assert "classes that share a name with another class, and count as misses: de 2" in done.output
    assert written(tmp_path)["results"][0]["metrics"]["acc1"] == 0


def test_synsets_take_imagenets_names_in_five_languages(eval_, colours, tmp_path):
    pytest.importorskip("clip_benchmark", reason="clip-benchmark comes with the extras `eval` and `dev` only")
    for name, synset in {"red": "n01440764", "blue": "n01443537", "grey": "n01514859"}.items():
        shutil.copytree(colours / name, tmp_path / "imagenet" / synset)
    done = eval_("--task", "zeroshot", "--data", "imagenet")
    assert done.exit_code == 0, done.output
    rows = written(tmp_path)["results"]
    assert [row["language"] for row in rows] == ["en", "en", "ar", "it", "ja", "zh"]
    assert {row["n_classes"] for row in rows} == {3}
    assert eval_("--task", "zeroshot", "--data", "imagenet", "--langs", "de").exit_code == 0
    teacher, german = written(tmp_path)["results"]  # Babel-ImageNet has no German for hen
    assert (teacher["n_classes"], german["language"], german["n_classes"], german["n_images"]) == (3, "de", 2, 32)


def test_acc5_of_few_classes_is_null(eval_, colours, tmp_path):
    for name in ("red", "blue"):
        shutil.copytree(colours / name, tmp_path / "two" / name)
    (tmp_path / "own.yaml").write_text("de: {classnames: [blau, rot], templates: ['{c}']}", encoding="utf-8")
    done = eval_("--task", "zeroshot", "--data", "two", "--classes", "own.yaml")
    assert done.exit_code == 0, done.output
    assert written(tmp_path)["results"][0]["metrics"]["acc5"] is None


def test_wrong_words_end_in_one_line(eval_, squares, colours, tmp_path):
    assert_one_line(eval_("--data", squares, "--baseline", "techer"), "techer", "translated:FILE")
    (tmp_path / "few.tsv").write_text("Quadrat\tsquare\n", encoding="utf-8")
    missing = eval_("--data", squares, "--langs", "de", "--baseline", "translated:few.tsv")
    assert_one_line(missing, "few.tsv: no English for 'Quadrat", "of mclip-kit data show ")
    assert_one_line(eval_("--data", squares, "--classes", "own.yaml"), "--classes is for --task zeroshot")
    assert_one_line(eval_("--data", squares, "--langs", "ja"), "no test captions in ja")
    zeroshot = ("--task", "zeroshot", "--data", colours)
    assert_one_line(eval_(*zeroshot, "--baseline", "teacher"), "--baseline", "--task retrieval")
    (tmp_path / "own.yaml").write_text("de: {classnames: [blau], templates: ['{c}']}", encoding="utf-8")
    for words, message in (
        ([], "class 'black' is not a synset of ImageNet; name the classes with --classes FILE.yaml"),
        (["--classes", "own.yaml"], "own.yaml: de: classnames has 1 names, but the data has 6 classes"),
    ):
        wrong = eval_(*zeroshot, *words)
        assert wrong.exit_code == 2
        assert wrong.output.splitlines()[-1] == f"Error: {message}"  # after a progress bar
    assert not (tmp_path / "out").exists()


def test_shorter_embeddings_are_scored_in_rows_of_their_own(eval_, squares, folder, tmp_path):
    done = eval_("--data", squares, "--langs", "de,fr", "--dims", "4,7,full")
    assert done.exit_code == 0, done.output
    found = written(tmp_path)
    widths = {(row["dims"], row["language"]): row for row in found["widths"]}
    assert set(widths) == {(width, language) for width in (4, 7, 16) for language in ("en", "de", "fr")}
    whole = {row["language"]: row["metrics"] for row in found["results"]}
    assert all(widths[16, language]["metrics"] == whole[language] for language in whole)
    model, captions = load(folder, "cpu"), read_captions(squares)
    rows_Q, images_G = captions.select("test", ["fr"]), captions.gallery("test")
    vectors = [
        model.encode_image([Image.fromarray(captions.pixels[image]) for image in images_G], dims=4).numpy(),
        model.encode_text(captions.texts[rows_Q].tolist(), dims=4).numpy(),
    ]
    places_Q = np.searchsorted(images_G, captions.images[rows_Q])
    own = score(*vectors, captions.groups[images_G], places_Q, captions.strata[images_G]).scores()
    for k in (1, 5, 10):
        by_hand = own[f"t2i_r{k}"] / 100
        assert widths[4, "fr"]["metrics"][f"image_retrieval_recall@{k}"] == pytest.approx(by_hand)
    lines = done.output.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("width "))
    assert [line.split()[0] for line in lines[head + 1 : head + 4]] == ["4", "7", "16"]
    assert ["°" in line for line in lines[head + 1 : head + 4]] == [False, True, False]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Shorter embeddings" in page
    assert "--dims 4,7,full" in page
    written_row = next(line for line in page.splitlines() if line.startswith('<tr><th scope="row">4</th>'))
    assert f">{100 * widths[4, 'fr']['metrics']['image_retrieval_recall@1']:.1f}</td>" in written_row


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dims", "4,x"], "--dims 4,x: 'x' is no width; give numbers and full, such as 32,64,full"),
        (["--dims", "4,,8"], "--dims 4,,8: '' is no width"),
        (["--dims", "0"], "'0' is no width"),
        (["--dims", "full,full"], "--dims full,full: full is given twice"),
        (["--dims", "17"], "have 16 numbers; leave it out"),
        (["--dims", "4", "--task", "bitext"], "--dims is for --task retrieval: leave it out of --task bitext"),
    ],
)
def test_wrong_widths_end_in_one_line(eval_, squares, words, said):
    assert_one_line(eval_("--data", squares, *words), said)


def test_leaks_of_a_run_are_repeated(folder, squares, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "run" / "model")
    leak = Leak(f"{squares} train", f"{squares} test", "pictures", 3, 12)
    write_json(tmp_path / "run" / "leakage.json", as_json([leak]))
    monkeypatch.chdir(tmp_path)
    words = ("eval", str(folder), "--langs", "de", "--data", str(squares), "--baseline", "run/model", "--out", "out")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert f"leak, run/model: {leak.line()}" in done.output
    assert written(tmp_path)["leakage"] == [{"model": "run/model", **asdict(leak)}]


def test_a_model_of_non_finite_numbers_finds_nothing(folder, squares, tmp_path, monkeypatch):
    model = load(folder)
    model.projector.requires_grad_(False)
    for parameter in model.projector.parameters():
        parameter.fill_(float("nan"))
    model.save(tmp_path / "nan")
    monkeypatch.chdir(tmp_path)
    words = ("eval", "nan", "--langs", "de", "--data", str(squares), "--baseline", "teacher", "--out", "out")
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "student text: 12 of 12 embeddings are non-finite (NaN or inf)" in done.output
    (row,) = (row for row in written(tmp_path)["results"] if row["tower"] == "student")
    assert {value for name, value in row["metrics"].items() if "rank" not in name} == {0}
    assert all(item["high"] <= 0 for item in written(tmp_path)["comparisons"])


def test_a_split_without_english_has_no_line_of_the_teacher(eval_, squares, tmp_path):
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "data")))
    table = tmp_path / "data" / "captions.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\ten\ttest\t", "\ten\tvalid\t"), encoding="utf-8")
    done = eval_("--data", "data")
    assert done.exit_code == 0, done.output
    assert [(row["tower"], row["language"]) for row in written(tmp_path)["results"]] == [
        ("student", "de"),
        ("student", "fr"),
    ]


def test_pictures_that_cannot_be_read_are_an_error_and_no_score(eval_, squares, tmp_path):
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "data")))
    (tmp_path / "data" / "images.npy").unlink()
    names = (tmp_path / "data" / "images.tsv").read_text(encoding="utf-8").splitlines()
    rows = ["\t".join(("image", "group", "stratum", "file")), *(f"{line}\tnone.png" for line in names[1:])]
    (tmp_path / "data" / "images.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = eval_("--data", "data", "--langs", "de")
    assert_one_line(
        done,
        "data: none of its test pictures is there, such as data/none.png; put them back, or prepare it with --again",
    )
    for image in ("red-left-3", "grey-below-3"):
        rows[1:] = [f"{line[:-8]}bad.png" if line.startswith(image) else line for line in rows[1:]]
    (tmp_path / "data" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "data" / "images.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    done = eval_("--data", "data", "--langs", "de")
    assert done.exit_code == 2
    assert "Error: data, test, de: there is nothing to rank" in done.output
    assert "Traceback" not in done.output
    table = tmp_path / "data" / "images.tsv"
    table.write_text(table.read_text().replace("none.png", "").replace("bad.png", ""), encoding="utf-8")
    message = "put the pictures, under the names of mclip-kit data show data --table images, into data/pi"
    assert_one_line(eval_("--data", "data", "--langs", "de"), message)
    (tmp_path / "data" / "pictures").mkdir()
    for name in read_captions(squares).names:
        Image.new("RGB", (16, 16), "red").save(tmp_path / "data" / "pictures" / name, "PNG")
    assert eval_("--data", "data", "--langs", "de").exit_code == 0  # the advice works


def test_every_evaluation_has_a_folder_of_its_own(folder, squares, colours, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(folder, run / "model")
    shutil.copytree(folder, run / "model-wise_ft")
    shutil.copytree(squares, tmp_path / "other" / "data")
    monkeypatch.chdir(tmp_path)

    def eval_model(*words: str, model: str = "model") -> str:
        done = CliRunner().invoke(cli, ["eval", str(run / model), *map(str, words)])
        assert done.exit_code == 0, done.output
        assert "computed on: " in done.output
        return next(line for line in done.output.splitlines() if line.startswith("written"))

    squares_data = ["--data", squares, "--langs", "de"]
    assert eval_model(*squares_data).startswith("written: run/eval/data.test/results.json, ")
    assert eval_model(*squares_data).startswith("written over earlier results: run/eval/data.test/results.json, ")
    assert " run/eval/data.test-2/results" in eval_model("--data", squares)
    assert eval_model(*squares_data).startswith("written over earlier results: run/eval/data.test/results.json, ")
    assert " run/eval/data.valid/results" in eval_model(*squares_data, "--split", "valid")
    assert " run/eval/data.test.xtd/results" in eval_model(*squares_data, "--protocol", "xtd")
    assert " run/eval/data.test-3/results" in eval_model("--data", "other/data", "--langs", "de")
    assert " run/eval/data.test.model-wise_ft/results" in eval_model(*squares_data, model="model-wise_ft")
    bitext = ["--data", squares, "--task", "bitext", "--sentences", "5"]
    assert " run/eval/data.test.bitext/results" in eval_model(*bitext)
    done = CliRunner().invoke(cli, ["report", str(run), "--out", "all.html"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    for title in (
        "Image-text retrieval, test of data, protocol any",
        "Image-text retrieval, valid of data, protocol any",
        "Image-text retrieval, test of data, protocol xtd",
        "Retrieval of parallel sentences, test of data",
    ):
        assert page.count(f"<h2>{title}</h2>") == 1
    assert "model-wise_ft" in page
    found = json.loads((run / "eval" / "data.test" / "results.json").read_text(encoding="utf-8"))
    assert found["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")
    assert f"evaluated on {found['device']}" in page
    assert {(row["n_images"], row["protocol"]) for row in found["results"]} == {(12, "any")}


def test_a_report_reads_what_earlier_versions_wrote(folder, squares, tmp_path):
    found = {"data": "data/x", "task": "retrieval", "split": "test", "protocol": "any", "results": []}
    about = {"language": "de", "tower": "student", "task": "zeroshot_retrieval", "split": "test", "dataset": "x"}
    row = about | {"model": "m", "metrics": {"mean_recall": 0.5}}
    write_json(tmp_path / "run" / "eval" / "results.json", found | {"results": [row]})
    row = about | {"model": "m", "metrics": {"acc1": 0.25}, "task": "zeroshot_classification"}
    write_json(tmp_path / "run" / "eval_zeroshot" / "results.json", found | {"task": "zeroshot", "results": [row]})
    words = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Image-text retrieval, test of x" in page
    assert "Zero-shot classification, test of x" in page
    assert "50.0" in page
    assert "25.0" in page


def test_the_command_that_train_prints_scores_the_model(folder, squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "my run" / "model")
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "own data")))
    table = tmp_path / "own data" / "captions.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("\ttest\t", "\ttrain\t"), encoding="utf-8")
    for path in (tmp_path / "own data" / "bitext").glob("test*"):
        path.unlink()
    texts = tiny.recipe(squares)
    texts["data"] |= {"captions": None, "bitext": "own data/bitext"}
    texts |= {"stages": texts["stages"][1:2], "evaluation": None}
    texts["teacher"]["weights"] = "random"
    for tree, words in (
        (tiny.recipe(squares), f"--data {squares}"),
        (tiny.recipe(Path("own data")), "--data 'own data' --split valid"),
        (texts, "--task bitext --data 'own data' --split valid"),
    ):
        command = eval_command(Path("my run/model"), parse(tree, Recipe, "tiny"))
        assert command == f"mclip-kit eval 'my run/model' {words}"
        done = CliRunner().invoke(cli, shlex.split(command)[1:])
        assert done.exit_code == 0, done.output


WRONG = """
import sys
from click.testing import CliRunner
from mclip_kit.cli import cli
for line in sys.stdin:
    done = CliRunner().invoke(cli, line.split())
    print("torch" in sys.modules, done.exit_code, done.output.strip().splitlines()[-1])
"""


def test_wrong_words_are_found_before_torch_is_imported(folder, squares, colours, tmp_path):
    (tmp_path / "few.yaml").write_text("de: {classnames: [blau], templates: ['{c}']}", encoding="utf-8")
    (tmp_path / "few.tsv").write_text("Quadrat\tsquare\n", encoding="utf-8")
    tiny.without_hashes(Path(shutil.copytree(squares, tmp_path / "text")))
    for table in ("images.tsv", "captions.tsv"):
        lines = (tmp_path / "text" / table).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / "text" / table).write_text(lines[0], encoding="utf-8")
    (tmp_path / "text" / "images.npy").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(folder)
    model, data = f"{folder}", f"--data {squares}"
    cases = {
        f"{model} --data none": "none: not a prepared corpus",
        f"{model} {data} --split dev": "no captions in split 'dev'; there are test, train, valid",
        f"{model} {data} --langs de,ja": "no test captions in ja; there are de, en, fr",
        f"{model} {data} --langs ,": "--langs names no language",
        f"none {data}": "none: no such folder; give a model folder",
        f"{tmp_path}/run {data}": f"run: is a run, not a model folder; give {tmp_path}/run/model",
        f"{squares} {data}": "config.json: missing",
        f"{model} {data} --task translation": "translator.json: missing",
        f"{squares} {data} --task bitext": "contains no encoder",
        f"{model} {data} --task bitext --langs de,fr": "no test pair within de, fr",
        f"{model} {data} --task bitext --split dev": "no sentences in split 'dev'; there are test, train, valid",
        f"{model} {data} --baseline techer": "techer: give teacher, closed-form, translated:FILE or a model folder",
        f"{model} {data} --baseline translated:none.tsv": "none.tsv: missing",
        f"{model} {data} --baseline translated:{tmp_path}/few.tsv": "few.tsv: no English for",
        f"{model} --data {tmp_path}/text": "has no pictures to find; its sentences are for --task bitext",
        f"{model} --data {colours} --task zeroshot --classes none.yaml": "--classes none.yaml: no such file",
        f"{model} --data {colours} --task zeroshot --classes {tmp_path}/few.yaml": "has 1 names",
        f"{model} --data {tmp_path}/no --task zeroshot": "no: no such folder",
    }
    cases = {f"eval {words}": message for words, message in cases.items()} | {
        f"report {squares} --out r.html": "no eval/DATA.SPLIT/results.json and no metrics.jsonl",
        f"export open-clip {squares} --out {tmp_path}/o": "config.json: missing",
        f"export fairseq {squares} --out {tmp_path}/o": "contains no encoder",
    }
    asked = [sys.executable, "-c", WRONG]
    done = subprocess.run(asked, input="\n".join(cases), capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stdout
    for line, (words, message) in zip(lines, cases.items(), strict=True):
        assert line.startswith("False 2 Error: "), (words, line)
        assert message in line, (words, line)
