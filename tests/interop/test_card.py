"""The card of a model: what training, evaluation and export write into it, and what keeps it as it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import filter_repo_objects

from mclip_kit.cli import cli
from mclip_kit.interop import parity
from mclip_kit.interop.card import record
from mclip_kit.interop.export import export
from mclip_kit.interop.facts import evaluated, facts_of, hub_id, licences_of, parameters
from mclip_kit.interop.imports import multilingual_clip
from mclip_kit.interop.imports.source import given_clip
from mclip_kit.interop.origin import images, mark
from mclip_kit.models.multilingual_clip import load
from tests import tiny
from tests.interop.imports import published
from tests.interop.models import build
from tests.train.runs import recipe_of, train


def typed(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a run of all stages; scored, and compared with its own CLIP."""
    root = tmp_path_factory.mktemp("card")
    train(recipe_of(squares, root), root / "run")
    model = root / "run" / "model"
    again = typed("eval", model, "--data", squares, "--same-images", f"local-dir:{model / 'clip'}")
    assert again.exit_code == 0, again.output
    return model


def test_the_card_says_how_the_model_was_trained(trained: Path, squares: Path) -> None:
    card = ModelCard.load(trained / "README.md")
    assert card.data.language == ["de", "en", "fr"]
    assert card.data.library_name == "mclip-kit"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.datasets == [squares.name] or len(card.data.datasets) == 1
    for line in (
        "- Image tower: ViT, 16 pixels, CLIP embeddings of width 16; ",
        "- Text encoder: xlm-roberta, 1 layers, width 16; ",
        "- Projector: altclip, pool cls; ",
        " parameters; clip_projector none; text_cleaning ftfy.",
        "- Weights of image, teacher_text, encoder: trained from scratch.",
        "- Stage distill: trains student; mse on teacher_text-student_text; languages: all; lr 0.002.",
        "all: none needed, these tests",
        "- Leakage: no test set",
        "arXiv:2211.06679",
    ):
        assert line in card.content, line


def test_the_card_has_the_scores_of_eval_to_the_digit(trained: Path) -> None:
    (file,) = trained.parent.glob("eval/*/results.json")
    rows = [row for row in json.loads(file.read_text())["results"] if row["tower"] in ("student", "teacher")]
    text = (trained / "README.md").read_text()
    assert len(rows) == 4
    for row in rows:
        label = row["language"] + (", the CLIP's own text tower" if row["tower"] == "teacher" else "")
        numbers = [row["metrics"][f"{way}_retrieval_recall@{k}"] for way in ("image", "text") for k in (1, 5, 10)]
        assert f"| {label} | {' | '.join(f'{100 * number:.1f}' for number in numbers)} |" in text
    found = ModelCard.load(trained / "README.md").data.eval_results
    assert len(found) == 18
    german = next(row for row in rows if row["language"] == "de")
    (first,) = [result for result in found if result.metric_name == "T2I R@1, de"]
    assert first.metric_value == round(100 * german["metrics"]["image_retrieval_recall@1"], 2)


def test_an_evaluation_of_some_languages_keeps_the_scores_of_the_others(trained: Path, squares: Path) -> None:
    (file,) = trained.parent.glob("eval/*/results.json")
    results = json.loads(file.read_text())
    (before,) = facts_of(trained)["evaluations"]
    german = [row for row in results["results"] if row["language"] == "de"]
    german[0]["metrics"]["image_retrieval_recall@1"] = 0.123
    (after,) = evaluated(facts_of(trained), {"results": german}, german[0]["model"])
    assert [row["language"] for row in after["rows"]] == [row["language"] for row in before["rows"]]
    assert [row["metrics"]["image_retrieval_recall@1"] for row in after["rows"] if row["language"] == "de"] == [0.123]
    other = [row | {"split": "valid"} for row in german]
    assert len(evaluated(facts_of(trained), {"results": other}, german[0]["model"])) == 2


def test_image_vectors_that_are_the_same_are_said_to_be(trained: Path, squares: Path) -> None:
    line = f"Image vectors: those of local-dir:{trained / 'clip'}, bit for bit, on 12 pictures of {squares}, test;"
    assert line in (trained / "README.md").read_text()
    (file,) = trained.parent.glob("eval/*/results.json")
    (row,) = json.loads(file.read_text())["same_images"]
    assert (row["pictures"], row["differ"], row["largest"], row["unreadable"]) == (12, 0, 0.0, 0)


@pytest.mark.parametrize("change", ["weights", "preprocessing"])
def test_image_vectors_that_differ_are_counted(trained: Path, squares: Path, tmp_path: Path, change: str) -> None:
    other = load(trained)
    if change == "weights":
        other.image.class_embedding.data.add_(1e-3)
    else:
        other.clip[0].preprocess["mean"] = (0.4, 0.4, 0.4)
    other.save(tmp_path / "other" / "model")
    done = typed("eval", tmp_path / "other" / "model", "--data", squares, "--same-images", trained)
    assert done.exit_code == 0, done.output
    assert f"Image vectors: 12 of 12 pictures of {squares}, test have other vectors than {trained} gives" in done.output
    assert "embed the pictures again" in (tmp_path / "other" / "model" / "README.md").read_text()


def test_a_clip_that_is_not_there_is_one_line(trained: Path, squares: Path, tmp_path: Path) -> None:
    words = ("--data", squares, "--out", tmp_path, "--same-images")
    done = typed("eval", trained, *words, f"local-dir:{tmp_path / 'no'}")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    done = typed("eval", trained, "--task", "bitext", *words, trained)
    assert done.output == "Error: --same-images is for --task retrieval: leave it out of --task bitext\n"


def test_a_readme_that_was_changed_by_hand_stays(trained: Path, tmp_path: Path) -> None:
    assert record(tmp_path, {"recipe": "mine"}) is None
    assert record(tmp_path, {"recipe": "yours"}) is None
    readme = tmp_path / "README.md"
    assert "Recipe: yours." in readme.read_text()
    readme.write_text(readme.read_text() + "My own words.\n")
    assert "changed by hand; remove it" in str(record(tmp_path, {"recipe": "theirs"}))
    assert readme.read_text().endswith("My own words.\n")
    readme.unlink()
    assert record(tmp_path, {}) is None
    assert "Recipe: theirs." in readme.read_text()


def test_a_damaged_card_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text("[")
    said = str(record(tmp_path, {"recipe": "mine"}))
    assert said == f"{tmp_path / 'card.json'}: damaged; it is kept as damaged-card.json, and a new one was begun"
    assert (tmp_path / "damaged-card.json").read_text() == "["
    assert facts_of(tmp_path)["recipe"] == "mine"
    assert record(tmp_path, {"recipe": "other"}) is None
    (tmp_path / "card.json").write_text("[")
    said = str(record(tmp_path, {}))  # which README.md was written is not known any more
    assert "a new one was begun; " in said
    assert "README.md: not written" in said


def test_names_of_the_hub_become_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    names = ["hf:xlm-roberta-base", "hf-hub:timm/vit", "hf:mine", "local-dir:a/b", "new", "hf:/a", "hf:a/b/c"]
    assert [hub_id(name) for name in names] == ["xlm-roberta-base", "timm/vit", None, None, None, None, None]
    record(tmp_path, {"bases": {"encoder": "hf:xlm-roberta-base", "image": "ViT-B-32 openai"}})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == ["timm/vit_base_patch32_clip_224.openai", "xlm-roberta-base"]
    assert "Weights of encoder: from hf:xlm-roberta-base; its licence was not declared, and holds for" in card.content
    assert card.data.license is None


def test_the_card_counts_the_parameters_of_each_tower(trained: Path) -> None:
    model, card = load(trained, "cpu"), (trained / "README.md").read_text()
    counts = parameters(trained)
    towers = ("image", "teacher_text", "encoder", "projector")
    assert [counts[t] for t in towers] == [sum(p.numel() for p in getattr(model, t).parameters()) for t in towers]
    assert f"CLIP embeddings of width 16; {counts['image']:,} parameters." in card
    assert f"width 16; {counts['encoder']:,} parameters." in card
    assert f"pool cls; {counts['projector']:,} parameters; clip_projector none;" in card


@pytest.mark.parametrize(
    ("front", "found"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "other (mine)"),
        ("---\nlanguage: de\n---\n", ""),
        ("---\n: [\n---\n", ""),
        ("license: mit\n", ""),
        (None, ""),
    ],
)
def test_a_licence_is_what_the_front_matter_declares(tmp_path: Path, front: str | None, found: str) -> None:
    if front is not None:
        (tmp_path / "README.md").write_text(front)
    for name in (f"hf:{tmp_path}", f"local-dir:{tmp_path}", str(tmp_path)):
        assert licences_of([name, "new", "ViT-B-32 random"]) == {name: found}


@pytest.mark.parametrize(
    ("image", "encoder", "licence"),
    [("mit", "mit", "mit"), ("mit", "apache-2.0", None), ("mit", "", None), ("other (mine)", "other (mine)", None)],
)
def test_a_model_has_a_licence_if_its_bases_have_one(
    tmp_path: Path, image: str, encoder: str, licence: str | None
) -> None:
    bases = {"image": "local-dir:a", "encoder": "hf:./b", "projector": "new"}
    record(tmp_path, {"bases": bases, "licences": {"local-dir:a": image, "hf:./b": encoder}})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == licence
    assert f"- Weights of image: from local-dir:a, licence {image}, which holds" in card.content
    assert ("hf:./b; its licence was not declared" in card.content) == (encoder == "")
    assert (f"- Licence: {licence}, as all" in card.content) == (licence is not None)
    assert ("- Licence: none is declared here" in card.content) == (licence is None)


def test_an_image_tower_is_said_to_be_anothers_while_nothing_changes_it(squares: Path, tmp_path: Path) -> None:
    clip = published.clip(tmp_path / "clip")
    (tmp_path / "clip" / "README.md").write_text("---\nlicense: mit\n---\n")
    stages = tiny.recipe(squares)["stages"]
    for stage in stages:
        stage["epochs"] = 1
    recipe = recipe_of(squares, tmp_path, teacher={"model": clip}, stages=stages[1:2])
    train(recipe, tmp_path / "a")
    assert facts_of(tmp_path / "a" / "model")["licences"] == {clip: "mit"}
    card = (tmp_path / "a" / "model" / "README.md").read_text()
    assert f"- Image vectors: those of {clip}, bit for bit" in card
    assert "Not of pictures that EXIF turns, transparent pictures, grey pictures of 16 bits: train with" in card
    assert "`pictures: {exif: ignore, alpha: drop, depth: clip}`" in card
    tuned: dict[str, Any] = {"teacher": None, "encoder": None, "projector": None}
    tuned["init_from"] = str(tmp_path / "a" / "model")
    as_open_clip = {"exif": "ignore", "alpha": "drop", "depth": "clip"}
    train(recipe_of(squares, tmp_path, **tuned, stages=stages[1:2], pictures=as_open_clip), tmp_path / "b")
    card = (tmp_path / "b" / "model" / "README.md").read_text()
    assert f"- Image vectors: those of {clip}, bit for bit" in card
    assert "Not of" not in card
    assert "- Licence: mit, as all" in card
    train(recipe_of(squares, tmp_path, "evaluation.keep=last", **tuned, stages=stages[:1]), tmp_path / "c")
    card = (tmp_path / "c" / "model" / "README.md").read_text()
    assert f"- Image vectors: not those of {clip}, since the image tower was trained; embed pictures again." in card


def test_any_bit_of_the_saved_image_tower_counts(squares: Path, tmp_path: Path) -> None:
    model = build(squares, {"kind": "linear", "pool": "cls"}, "linear", 24, tiny.TEACHER)
    mark(model.clip[0], "new")
    model.save(tmp_path)
    assert images(model.clip[0], tmp_path) == {}
    mark(model.clip[0], "local-dir:a")
    found = images(model.clip[0], tmp_path)
    assert found["images"]["same"] is True
    record(tmp_path, found)
    assert "not those of local-dir:a, since the CLIP projector maps them" in (tmp_path / "README.md").read_text()
    bias = next(weight for weight in model.image.parameters() if weight.dim() == 1)
    with torch.no_grad():
        bias[0] = torch.nextafter(bias[0], bias[0] + 1)
    model.save(tmp_path)
    assert images(model.clip[0], tmp_path)["images"]["same"] is False


def test_an_import_names_its_source_and_whose_image_tower_it_has(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = published.clip(tmp_path / "clip")

    def imported(place: str, given: str, weights: str | None, base: Path | None) -> Any:
        model = build(squares, {"kind": "linear", "pool": "mean"}, "none", 24, tiny.TEACHER)
        model.clip[0] = given_clip(given, weights, place)
        return model

    monkeypatch.setattr(multilingual_clip, "import_multilingual_clip", imported)  # the hub is not asked
    done = typed("import", "multilingual-clip", "M-CLIP/XLM-R", "--clip", clip, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == ["M-CLIP/XLM-R"]
    assert f"- Weights of image, teacher_text: from {clip}; its licence was not declared" in card.content
    assert "- Weights of encoder, projector: from hf-hub:M-CLIP/XLM-R; its licence was not declared" in card.content
    assert f"- Image vectors: those of {clip}, bit for bit" in card.content


def test_a_fairseq_folder_has_the_card_of_the_encoder_and_is_sent(trained: Path, tmp_path: Path, sent) -> None:
    words = ("export", "fairseq", trained, "--out", tmp_path / "out")
    done = typed(*words, "--push-to-hub", "me/encoder")
    assert done.exit_code == 0, done.output
    assert sent[1] == ("me/encoder", sorted(path.name for path in (tmp_path / "out").iterdir()))
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "fairseq"
    assert card.data.eval_results is None
    for words_ in ("# The text encoder of a multilingual CLIP", "- Weights of encoder: trained", "XLMRModel.from_pre"):
        assert words_ in card.content
    for words_ in ("- Image", "Image vectors", "## Retrieval on", "## The same as"):
        assert words_ not in card.content
    assert typed(*words).output.endswith("exists already; remove it or choose another --out\n")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is sent to the hub, which is not asked."""
    calls: list[Any] = []

    class Commit:
        commit_url = "https://huggingface.co/commit/1"

    def upload(self: HfApi, *, repo_id: str, folder_path: Path, ignore_patterns: str) -> Commit:
        names = sorted(path.name for path in Path(folder_path).iterdir())
        calls.append((repo_id, list(filter_repo_objects(names, ignore_patterns=ignore_patterns))))
        return Commit()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, exist_ok: calls.append((repo, exist_ok)))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return calls


def test_a_model_and_an_export_are_sent_with_their_cards(trained: Path, tmp_path: Path, sent, monkeypatch) -> None:
    (trained / "damaged-card.json").write_text("[")
    done = typed("push", trained, "me/model")
    (trained / "damaged-card.json").unlink()
    assert done.output == f"{trained}: sent to https://huggingface.co/commit/1\n"
    assert sent[0] == ("me/model", True)
    assert {"README.md", "card.json", "config.json", "clip"} <= set(sent[1][1])
    assert "damaged-card.json" not in sent[1][1]
    del sent[:]
    model = load(trained, "cpu")
    monkeypatch.setattr(parity, "read", lambda reader, folders, wanted: [parity.own(model, wanted)])  # read elsewhere
    words = ("export", "open-clip", trained, "--push-to-hub", "me/export", "--context", "32")
    done = typed(*words, "--out", tmp_path / "a", "--repo", "me/other")
    assert done.output == "Error: --repo me/other: --push-to-hub sends it to me/export; leave --repo out\n"
    done = typed(*words, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert sent[1] == ("me/export", sorted(path.name for path in (tmp_path / "a").iterdir()))
    config = json.loads((tmp_path / "a" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "me/export"


def test_the_card_of_an_export_has_the_models_scores(trained: Path, tmp_path: Path, monkeypatch) -> None:
    model = load(trained, "cpu")
    monkeypatch.setattr(parity, "read", lambda reader, folders, wanted: [parity.own(model, wanted)])
    export(model, "transformers", tmp_path / "out", trained)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "transformers"
    assert len(card.data.eval_results) == 18
    for words in ("| texts | 0.0e+00 |", "AutoProcessor.from_pretrained", "## Retrieval on", "- Stage contrast:"):
        assert words in card.content


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (ConnectionError("no route"), "the hub did not take it: no route; "),
        (PermissionError("403 Forbidden: not yours\nmore"), "the hub did not take it: 403 Forbidden: not yours; "),
    ],
)
def test_what_the_hub_says_is_one_line_and_the_folder_stays(trained: Path, sent, monkeypatch, wrong, said) -> None:
    def create(self: HfApi, repo: str, exist_ok: bool) -> None:
        raise wrong

    monkeypatch.setattr(HfApi, "create_repo", create)
    (trained / "damaged-card.json").write_text("[")
    done = typed("push", trained, "me/model")
    (trained / "damaged-card.json").unlink()
    assert done.exit_code == 2
    assert done.output == (
        f"Error: me/model: {said}{trained} stays as it is; send it again with mclip-kit push {trained} me/model\n"
    )


def test_what_cannot_be_sent_is_said_before(trained: Path, tmp_path: Path, sent, monkeypatch) -> None:
    assert "give ORG/NAME" in typed("push", trained, "model").output
    assert typed("push", tmp_path, "me/model").output.startswith(f"Error: {tmp_path / 'README.md'}: missing")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for words in (
        ("push", trained, "a/b"),
        ("export", "onnx", trained, "--out", tmp_path / "x", "--push-to-hub", "a/b"),
    ):
        done = typed(*words)
        assert done.exit_code == 2
        assert done.output == "Error: a/b: the hub is switched off; unset HF_HUB_OFFLINE to push\n"
    assert not sent
    assert not (tmp_path / "x").exists()
