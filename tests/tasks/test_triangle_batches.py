"""What training reads is what it would compute; each input goes through a frozen tower once; pictures may be files."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_kit.config.recipe import Recipe, load
from mclip_kit.config.yaml import parse
from mclip_kit.data.captions import Captions, read_captions
from mclip_kit.data.corpora import Content
from mclip_kit.data.prepare.prepare import write_prepared
from mclip_kit.errors import DataError
from mclip_kit.evaluate.retrieval import evaluate
from mclip_kit.evaluate.validation import evaluator
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import Features, FrozenTowers
from mclip_kit.features.table import NoRoom, Table
from mclip_kit.models.multilingual_clip import MultilingualClip
from mclip_kit.tasks.triangle_batches import Feed
from mclip_kit.train import run as run_module
from mclip_kit.train.build import build_examples, build_model
from mclip_kit.train.logging import read_log
from mclip_kit.train.run import CACHE_VARIABLE, Run
from tests import tiny

FROZEN = ("image", "teacher_text", "encoder")
TRIKD = {
    "image-student_text": {"loss": "contrastive"},
    "teacher_text-student_text": {"loss": "contrastive", "weight": 0.1, "temperature": 0.376},
}


@pytest.fixture(autouse=True)
def no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


def tree(data: Path, **changes: Any) -> dict[str, Any]:
    """mCLIP's TriKD of projectors on frozen towers, ten steps."""
    whole = tiny.recipe(data)
    stage = {
        "name": "trikd",
        "train": ["projector", "clip_projector"],
        "edges": TRIKD,
        "data": "captions",
        "epochs": 1,
        "batch_size": 21,
        "lr": 2e-3,
    }
    whole |= {
        "teacher": whole["teacher"] | {"weights": "random"},
        "encoder": whole["encoder"] | {"weights": "random"},
        "projector": {"kind": "transformer", "layers": 1, "pool": "eos", "dropout": 0.1},
        "clip_projector": "linear",
        "evaluation": None,
        "stages": [stage],
    }
    return whole | changes


def recipe_of(data: Path, *changes: str, **more: Any) -> Recipe:
    whole = tree(data, **more)
    path = data.parent / f"recipe-{len(list(data.parent.glob('recipe-*')))}.yaml"
    return load(tiny.write_recipe(whole, path), changes)


class Watch:
    """What goes through each tower, a line an input."""

    def __init__(self, model: MultilingualClip) -> None:
        self.seen: dict[str, Counter[tuple[float, ...]]] = {tower: Counter() for tower in FROZEN}
        for tower, seen in self.seen.items():
            padding = model.encoder.tokenizer.pad if tower == "encoder" else 0
            getattr(model, tower).register_forward_hook(
                lambda module, inputs, output, seen=seen, padding=padding: seen.update(
                    tuple(np.trim_zeros(row.flatten().numpy() - padding, "b").tolist()) for row in inputs[0]
                )
            )

    def counts(self) -> dict[str, int]:
        """Inputs by tower; the counting starts again."""
        counts = {tower: seen.total() for tower, seen in self.seen.items()}
        for seen in self.seen.values():
            seen.clear()
        return counts


def trained(recipe: Recipe, folder: Path) -> tuple[Run, Watch]:
    made = Run(recipe, folder, evaluator(recipe))
    watch = Watch(made.model)
    made.go()
    return made, watch


# --- read or computed


EVALUATION = {"split": "valid", "languages": ["en", "de", "fr"], "every_epochs": 100}


@pytest.fixture(scope="module")
def computed(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of a run that computes everything in every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "LOG_EVERY", 1)
        folder = tmp_path_factory.mktemp("off")
        trained(recipe_of(squares, cache="off", evaluation=EVALUATION), folder / "run")
        assert not (folder / "features").exists()
        return read_log(folder / "run")


CACHES = {
    "tokens, fp32": ({"features": "tokens", "dtype": "fp32"}, 1e-6),
    "tokens, fp16": ({"features": "tokens", "dtype": "fp16"}, 1e-3),
    "tokens, int8": ({"features": "tokens", "dtype": "int8"}, 1e-2),
    "pooled, fp32": ({"features": "pooled", "dtype": "fp32"}, 1e-6),
    "auto": ("auto", 1e-3),
}


@pytest.mark.parametrize("kind", CACHES)
def test_training_on_what_was_kept_gives_the_same_losses(
    kind: str, squares: Path, tmp_path: Path, computed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, allowed = CACHES[kind]
    monkeypatch.setattr(run_module, "LOG_EVERY", 1)
    _, watch = trained(recipe_of(squares, cache=cache, evaluation=EVALUATION), tmp_path / "run")
    log = read_log(tmp_path / "run")
    steps = [row["step"] for row in computed if "loss" in row]
    assert steps == list(range(1, 11)) == [row["step"] for row in log if "loss" in row]
    for term in ("loss", *TRIKD):
        expected, found = ([row[term] for row in rows if term in row] for rows in (computed, log))
        assert found == pytest.approx(expected, rel=allowed)
    one = {"mean": 100 / 36, "teacher": 100 / 12}  # query of so many
    for name in (key for key in computed[0] if key.startswith(("mean_t2i", "mean_i2t", "teacher"))):
        expected, found = ([row[name] for row in rows if name in row] for rows in (computed, log))
        queries = 2 if name == "mean_i2t_r1" else 1  # pictures of the same square in two shades all but tie
        assert found == pytest.approx(expected, abs=queries * one[name.split("_")[0]] + 1e-6)
    assert max(watch.seen["teacher_text"].values()) == max(watch.seen["image"].values()) == 1
    assert "pooled" in kind or max(watch.seen["encoder"].values()) == 1


def test_every_kind_of_cache_draws_the_same(squares: Path, tmp_path: Path) -> None:
    """The bounds above are no accident: another seed's losses are elsewhere."""
    logs = []
    for number, seed in enumerate((1, 2)):
        trained(recipe_of(squares, f"seed={seed}", cache="off"), tmp_path / str(number))
        logs.append([row["loss"] for row in read_log(tmp_path / str(number)) if "loss" in row])
    assert logs[0] != pytest.approx(logs[1], rel=3e-2)


def test_a_projector_without_blocks_reads_pooled_states(squares: Path, tmp_path: Path) -> None:
    logs = {}
    for cache in ("off", "auto"):
        recipe = recipe_of(squares, cache=cache, projector={"kind": "mlp", "pool": "mean", "dropout": 0.1})
        _, watch = trained(recipe, tmp_path / cache / "run")
        logs[cache] = [row["loss"] for row in read_log(tmp_path / cache / "run") if "loss" in row]
    assert logs["auto"] == pytest.approx(logs["off"], rel=1e-2)
    assert max(watch.seen["encoder"].values()) == 1
    assert kinds(tmp_path / "auto" / "features") == ["image", "pooled_mean", "teacher"]


def kinds(root: Path) -> list[str]:
    return sorted(path.parent.name.rpartition("-")[0] for path in root.glob("*/table.json"))


# --- once


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus in five languages: four pairs with English."""
    content, corpus = tiny.content(), tiny.declaration()
    rows = []
    for row in content.rows:
        english = dict(row.texts)["en"]
        rows.append(replace(row, texts=[*row.texts, ("es", f"el {english}"), ("it", f"il {english}")]))
    out = tmp_path_factory.mktemp("five") / "data"
    languages = {"languages": ["en", "de", "fr", "es", "it"]}
    write_prepared(lambda: Content(rows, content.pixels), corpus.model_copy(update=languages), out)
    return out


def test_each_english_sentence_goes_through_the_teacher_once(five: Path, tmp_path: Path) -> None:
    whole = tree(five)
    align = whole["stages"][0] | {
        "name": "align",
        "data": "bitext",
        "edges": {"teacher_text-student_text": {"loss": "mse"}},
        "train": ["projector"],
    }
    stages = [align | {"epochs": 2}, whole["stages"][0] | {"epochs": 2}]
    recipe = recipe_of(five, stages=stages, cache="tokens")
    made, watch = trained(recipe, tmp_path / "runs" / "a")
    captions = read_captions(five)
    english = {captions.texts[row] for row in captions.select("train", ["en"])}
    all_texts = {captions.texts[row] for row in captions.select("train")}
    ids = {tuple(np.trim_zeros(row.numpy(), "b").tolist()) for row in made.model.teacher_tokens(sorted(english))}
    assert len(ids) == len(english) == 72
    extra = watch.seen["teacher_text"].keys() - ids
    assert watch.seen["teacher_text"].keys() >= ids
    assert len(extra) <= 1  # the empty text, of rows without an English one
    assert set(watch.seen["teacher_text"].values()) == set(watch.seen["image"].values()) == {1}
    assert watch.counts() == {"image": 72, "teacher_text": 72 + len(extra), "encoder": len(all_texts)}
    _, watch = trained(recipe, tmp_path / "runs" / "b")
    assert watch.counts() == {"image": 0, "teacher_text": 0, "encoder": 0}
    assert kinds(tmp_path / "runs" / "features") == ["image", "teacher", "tokens"]
    for name in ("projector.safetensors", "clip/open_clip_model.safetensors"):
        a, b = ((tmp_path / "runs" / run / "model" / name).read_bytes() for run in "ab")
        assert a == b


def test_extract_fills_what_training_only_reads(five: Path, tmp_path: Path) -> None:
    recipe = recipe_of(five, cache={"features": "tokens", "dtype": "int8"}, evaluation=None)
    made = Run(recipe, tmp_path / "run")
    watch = Watch(made.model)
    made.extract()
    assert all(watch.counts().values())
    assert kinds(tmp_path / "features") == ["image", "teacher", "tokens"]
    assert not (tmp_path / "run").exists()
    _, watch = trained(recipe, tmp_path / "run")
    assert watch.counts() == {"image": 0, "teacher_text": 0, "encoder": 0}


def test_extract_leaves_out_what_a_stage_changes(squares: Path, tmp_path: Path) -> None:
    whole = tree(squares)
    stages = [whole["stages"][0] | {"name": "first", "train": ["encoder", "projector"]}, whole["stages"][0]]
    made = Run(recipe_of(squares, stages=stages), tmp_path / "run")
    watch = Watch(made.model)
    made.extract()
    assert watch.counts()["encoder"] == 0
    assert kinds(tmp_path / "features") == ["image", "teacher"]


def test_a_tower_that_was_trained_is_kept_under_its_new_weights(squares: Path, tmp_path: Path) -> None:
    whole = tree(squares)
    first = whole["stages"][0] | {"name": "first", "train": ["encoder", "projector"]}
    made, watch = trained(recipe_of(squares, stages=[first, whole["stages"][0]], cache="tokens"), tmp_path / "run")
    assert kinds(tmp_path / "features") == ["image", "teacher", "tokens"]
    examples = build_examples(made.recipe.stages[1], made.recipe, made.model, made.captions)
    watch.counts()
    kept = FrozenTowers(made.model, FeatureCache(tmp_path / "features")).token_states(
        examples.tokens, examples.lengths_N
    )
    assert watch.counts()["encoder"] == 0
    assert torch.allclose(kept.take(), fresh(made.model, "token_states", examples.tokens), atol=5e-3)


# --- the key


@pytest.fixture(scope="module")
def built(squares: Path) -> MultilingualClip:
    return build_model(parse(tree(squares), Recipe, "tiny")).eval()


@pytest.fixture
def model(built: MultilingualClip) -> Iterator[MultilingualClip]:
    """The towers, as they were built at every test's start."""
    before = {name: value.clone() for name, value in built.state_dict().items()}
    how, preprocess = built.projector.pooling, dict(built.clip[0].preprocess)
    hooks = {tower: dict(getattr(built, tower)._forward_hooks) for tower in FROZEN}
    yield built
    built.load_state_dict(before)
    built.projector.pooling = how
    built.clip[0].preprocess = preprocess
    for tower, known in hooks.items():
        getattr(built, tower)._forward_hooks.clear()
        getattr(built, tower)._forward_hooks.update(known)


@pytest.fixture(scope="module")
def captions(squares: Path) -> Captions:
    return read_captions(squares)


def fresh(model: MultilingualClip, kind: str, *inputs: Any) -> torch.Tensor:
    """Features that are computed now, float32."""
    store = FeatureCache()
    features: Features = getattr(FrozenTowers(model, store), kind)(*inputs)
    return features.take()


TEXTS = ["red square", "blue square", "a green one"]
IMAGES = np.array([5, 2, 5, 9])
Change = Callable[[MultilingualClip], dict[str, Any]]
"""Changes the model, and says with which other arguments the store is opened."""


def nudge(name: str) -> Change:
    def change(model: MultilingualClip) -> dict[str, Any]:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[3] += 1e-4
        return {}

    return change


def other_mean(model: MultilingualClip) -> dict[str, Any]:
    model.clip[0].preprocess = {**model.clip[0].preprocess, "mean": (0.5, 0.4, 0.4)}
    return {}


def other_pool(model: MultilingualClip) -> dict[str, Any]:
    model.projector.pooling = "mean"
    return {}


CHANGES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda model: {}, set()),
    "another part's weight": (nudge("clip_projector.weight"), set()),
    "a weight of the image tower": (nudge("image.conv1.weight"), {"image"}),
    "a weight of the teacher": (nudge("teacher_text.token_embedding.weight"), {"teacher"}),
    "a weight of the encoder": (nudge("encoder.model.embeddings.word_embeddings.weight"), {"tokens", "pooled"}),
    "the preprocessing": (other_mean, {"image"}),
    "the pool": (other_pool, {"pooled"}),
    "the precision": (lambda model: {"precision": torch.bfloat16}, {"image", "teacher", "tokens", "pooled"}),
    "the stored type": (lambda model: {"dtype": "fp32"}, {"image", "teacher", "tokens", "pooled"}),
    "the stored type of token states": (lambda model: {"dtype": "int8"}, {"tokens"}),
}


def four(model: MultilingualClip, captions: Captions, store: FeatureCache) -> dict[str, Features]:
    """Every kind of features; pooled ones as a projector without blocks asks for them."""
    frozen, tokens = FrozenTowers(model, store), model.student_tokens(TEXTS)
    blocks, model.projector.blocks = model.projector.blocks, None
    try:
        pooled = frozen.pooled(tokens)
    finally:
        model.projector.blocks = blocks
    return {
        "image": frozen.images(captions, IMAGES),
        "teacher": frozen.teacher_texts(TEXTS),
        "tokens": frozen.token_states(tokens),
        "pooled": pooled,
    }


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_an_output_is_its_key(
    name: str, model: MultilingualClip, captions: Captions, tmp_path: Path
) -> None:
    four(model, captions, FeatureCache(tmp_path, log=lambda line: None))
    change, anew = CHANGES[name]
    options = change(model)
    watch = Watch(model)
    said: list[str] = []
    found = four(model, captions, FeatureCache(tmp_path, log=said.append, **options))
    assert {line.split()[0].partition("_")[0] for line in said} == anew
    wanted = {"image": 3 * ("image" in anew), "teacher_text": 3 * ("teacher" in anew)}
    assert watch.counts() == {**wanted, "encoder": 3 * ("tokens" in anew) + 3 * ("pooled" in anew)}
    kept = {kind: features.take() for kind, features in found.items()}
    close = 2e-2 if options.get("dtype") == "int8" or "precision" in options else 2e-3
    store = FeatureCache()
    for kind, features in four(model, captions, store).items():
        assert torch.allclose(kept[kind], features.take(), atol=close * float(kept[kind].abs().max()))


def test_only_changed_inputs_are_computed(model: MultilingualClip, captions: Captions, tmp_path: Path) -> None:
    assert captions.pixels is not None
    FrozenTowers(model, FeatureCache(tmp_path)).teacher_texts(TEXTS)
    FrozenTowers(model, FeatureCache(tmp_path)).images(captions, IMAGES)
    watch, frozen = Watch(model), FrozenTowers(model, FeatureCache(tmp_path))
    frozen.teacher_texts(["red square", "blue square!", " a  green\tone "])  # spaces decide nothing
    pixels = np.array(captions.pixels)
    pixels[2, 0, 0, 0] ^= 1
    changed = replace(captions, pixels=pixels)
    features = frozen.images(changed, IMAGES)
    assert watch.counts() == {"image": 1, "teacher_text": 1, "encoder": 0}
    pixels_NCHW = torch.stack([model.clip[0].transform(changed.picture(int(image))) for image in IMAGES])
    with torch.no_grad():
        assert torch.allclose(features.take(), model.image(pixels_NCHW), atol=2e-3)


# --- where it lies, and whether


def test_off_in_yaml_is_off(squares: Path, tmp_path: Path) -> None:
    path = tiny.write_recipe(tree(squares), tmp_path / "tiny.yaml")
    plain = path.read_text(encoding="utf-8")
    wanted = {
        "cache: off\n": ("off", "fp16"),
        "cache: on\n": ("auto", "fp16"),
        "cache: tokens\n": ("tokens", "fp16"),
        "cache:\n  features: pooled\n  dtype: fp32\n": ("pooled", "fp32"),
        "cache:\n  features: off\n": ("off", "fp16"),
        "cache:\n  dtype: int8\n": ("auto", "int8"),
    }
    for text, expected in wanted.items():
        path.write_text(plain + text, encoding="utf-8")
        cache = load(path).cache
        assert (cache.features, cache.dtype) == expected
    path.write_text(plain, encoding="utf-8")
    for change, features in (("cache=off", "off"), ("cache=tokens", "tokens"), ("cache.features=off", "off")):
        assert load(path, [change]).cache.features == features


def test_off_keeps_nothing(squares: Path, tmp_path: Path) -> None:
    _, watch = trained(recipe_of(squares, "cache=off", evaluation=EVALUATION), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert max(watch.seen["encoder"].values()) > 1


def test_where_features_lie(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places(*changes: str) -> list[str]:
        made = Run(recipe_of(squares, *changes), tmp_path / "runs" / "run")
        made.extract()
        return sorted(str(path.parent.parent.relative_to(tmp_path)) for path in tmp_path.rglob("image-*/table.json"))

    assert places() == ["runs/features"]
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert places() == ["named", "runs/features"]
    assert places(f"cache.folder={tmp_path / 'own'}") == ["named", "own", "runs/features"]


def test_what_has_no_room_is_computed_or_refused(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = Table._check_room

    def small(self: Table, missing: np.ndarray, work: Any) -> None:
        if "tokens" in self.name:
            raise NoRoom(f"{self.name} would take 9 GB, and {self.folder} has 1 GB free")
        check(self, missing, work)

    monkeypatch.setattr(Table, "_check_room", small)
    with pytest.raises(NoRoom, match=r"9 GB.*cache\.dtype=int8.*cache=auto"):
        trained(recipe_of(squares, cache="tokens"), tmp_path / "refused")
    capsys.readouterr()
    _, watch = trained(recipe_of(squares, "stages.0.epochs=2", cache="auto"), tmp_path / "auto")
    assert "1 GB free: computed in every step instead" in capsys.readouterr().out
    assert max(watch.seen["encoder"].values()) > 1
    assert kinds(tmp_path / "features") == ["image", "teacher", "tokens"]


# --- pictures as files


def as_files(squares: Path, folder: Path) -> Path:
    """The same corpus, each picture a PNG."""
    tiny.corpus(folder)
    captions = read_captions(folder)
    assert captions.pixels is not None
    (folder / "pictures").mkdir()
    for name, picture in zip(captions.names, captions.pixels, strict=True):
        Image.fromarray(np.asarray(picture)).save(folder / "pictures" / f"{name}.png")
    with open(folder / "images.tsv", encoding="utf-8", newline="") as handle:
        header, *rows = csv.reader(handle, delimiter="\t")
    lines = ["\t".join([*header, "file"]), *("\t".join([*row, f"pictures/{row[0]}.png"]) for row in rows)]
    (folder / "images.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "images.npy").unlink()
    return folder


@pytest.fixture(scope="module")
def files(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_files(squares, tmp_path_factory.mktemp("files") / "data")


BROKEN = (0, 1, 2)  # pictures of the training split
BROKEN_VALID = 3


@pytest.fixture
def broken(squares: Path, tmp_path: Path) -> Path:
    """A corrupt, a missing and a truncated picture in training, and a corrupt one in the valid split."""
    folder = as_files(squares, tmp_path / "data")
    corrupt, missing, truncated, valid = (read_captions(folder).files[image] for image in (*BROKEN, BROKEN_VALID))
    corrupt.write_bytes(b"no picture at all")
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    valid.write_bytes(b"")
    return folder


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/*/*.bin"))}


def test_files_give_the_same_features_as_an_array(
    files: Path, captions: Captions, model: MultilingualClip, tmp_path: Path
) -> None:
    images = np.arange(96)
    expected = FrozenTowers(model, FeatureCache(tmp_path / "array", "fp32")).images(captions, images)
    of_files = read_captions(files)
    assert of_files.pixels is None
    for workers in (0, 2):
        store = FeatureCache(tmp_path / f"files-{workers}", "fp32", workers=workers)
        found = FrozenTowers(model, store).images(of_files, images)
        assert torch.allclose(found.take(), expected.take(), atol=1e-6)
        assert not found.unreadable().any()
    assert bytes_of(tmp_path / "files-0") == bytes_of(tmp_path / "files-2") != {}
    watch = Watch(model)
    FrozenTowers(model, FeatureCache(tmp_path / "files-0", "fp32")).images(of_files, images[::-1])
    assert watch.counts()["image"] == 0


def test_workers_see_the_same_pictures_as_unreadable(broken: Path, model: MultilingualClip, tmp_path: Path) -> None:
    for workers in (0, 2):
        found = FrozenTowers(model, FeatureCache(tmp_path / str(workers), workers=workers)).images(
            read_captions(broken), np.arange(96)
        )
        assert list(np.flatnonzero(found.unreadable())) == [*BROKEN, BROKEN_VALID]
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "2") != {}


def test_a_file_of_another_shape_is_read_as_the_teacher_reads_it(files: Path, model: MultilingualClip) -> None:
    captions = read_captions(files)
    buffer = io.BytesIO()
    Image.effect_mandelbrot((40, 24), (-2, -1, 1, 1), 20).convert("L").save(buffer, "JPEG")
    odd = files / "odd.jpg"
    odd.write_bytes(buffer.getvalue())
    found = fresh(model, "images", replace(captions, files=[odd]), np.array([0]))
    with torch.no_grad():
        expected = model.image(model.clip[0].transform(Image.open(odd).convert("RGB"))[None])
    assert torch.allclose(found, expected, atol=1e-5)


def test_unreadable_pictures_are_left_out_and_named_once(
    broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tree(broken)
    stages = [whole["stages"][0] | {"name": name, "batch_size": 20} for name in ("first", "second")]
    cache = {"features": "auto", "max_bad_fraction": 0.05}
    recipe = recipe_of(broken, stages=stages, cache=cache, evaluation=EVALUATION)
    made, _ = trained(recipe, tmp_path / "runs" / "a")
    paths = [str(read_captions(broken).files[image]) for image in BROKEN]
    said = capsys.readouterr().out
    assert [said.count(f"{path}: not a readable picture; it is left out") for path in paths] == [1, 1, 1]
    assert (tmp_path / "runs" / "a" / "unreadable.txt").read_text(encoding="utf-8").splitlines() == sorted(paths)
    rows = read_log(tmp_path / "runs" / "a")
    assert {row["step"] for row in rows} >= {0, 10}  # 216 rows less nine are ten batches of twenty
    assert all(0 <= row["mean_t2i_r1"] <= 100 for row in rows if "mean_t2i_r1" in row)
    examples = build_examples(made.recipe.stages[0], made.recipe, made.model, made.captions)
    feed = made._feed(made.recipe.stages[0], made.trained[0], examples)
    assert set(examples.images_N) - set(feed.examples.images_N) == set(BROKEN)
    assert len(feed.examples) == len(examples) - 9
    batch = feed.batch(np.arange(len(feed.examples)))
    assert (batch["image_BE"].norm(dim=1) > 0).all()
    expected = fresh(made.model, "images", read_captions(broken), feed.examples.images_N)
    assert torch.allclose(batch["image_BE"], expected, atol=5e-3)
    trained(recipe, tmp_path / "runs" / "b")  # what was known from before is said again, as it is another run
    assert (tmp_path / "runs" / "b" / "unreadable.txt").is_file()


def test_an_unreadable_picture_is_no_query_and_no_answer(broken: Path, model: MultilingualClip) -> None:
    results = evaluate(model, read_captions(broken), "valid", ["en", "de"])
    assert {name: len(result.t2i_Q) for name, result in results.items()} == {"teacher": 11, "en": 11, "de": 11}
    assert {result.gallery for result in results.values()} == {11}


def test_a_mended_picture_is_seen(broken: Path, files: Path, model: MultilingualClip, tmp_path: Path) -> None:
    captions, images = read_captions(broken), np.arange(6)
    store = FeatureCache(tmp_path / "features")
    assert FrozenTowers(model, store).images(captions, images).unreadable().sum() == 4
    for image in (*BROKEN, BROKEN_VALID):
        captions.files[image].write_bytes(read_captions(files).files[image].read_bytes())
    watch = Watch(model)
    found = FrozenTowers(model, FeatureCache(tmp_path / "features")).images(captions, images)
    assert not found.unreadable().any()
    assert watch.counts()["image"] == 4


@pytest.mark.parametrize("augment", [None, {"shift": 1}])
def test_too_many_unreadable_pictures_end_the_run(augment: dict[str, int] | None, broken: Path, tmp_path: Path) -> None:
    stage = tree(broken)["stages"][0] | ({"augment": augment} if augment else {})
    recipe = recipe_of(broken, stages=[stage])
    with pytest.raises(DataError, match=r"of 72 pictures cannot be read, such as .*red-.*\.png.*max_bad_fraction"):
        trained(recipe, tmp_path / "run")


def test_an_unreadable_picture_of_a_live_tower_shows_another_of_its_batch(broken: Path, tmp_path: Path) -> None:
    stage = tree(broken)["stages"][0] | {"train": ["image", "projector"], "augment": {}}
    recipe = recipe_of(broken, stages=[stage], cache={"features": "auto", "max_bad_fraction": 0.05})
    made = Run(recipe, tmp_path / "run")
    examples = build_examples(recipe.stages[0], recipe, made.model, made.captions)
    feed: Feed = made._feed(recipe.stages[0], made.trained[0], examples)
    assert len(feed.examples) == len(examples) == 216
    rows = np.flatnonzero(np.isin(examples.images_N, [0, 5, 9, 2]))
    images = examples.images_N[rows]
    batch = feed.batch(rows)
    bad = np.isin(images, BROKEN)
    good_again = np.resize(np.flatnonzero(~bad), bad.sum())
    for field in ("pixels_BCHW", "groups_B", "languages_B", "has_teacher_B", "mask_BT", "states_BTH"):
        if field in batch:
            assert torch.equal(batch[field][bad], batch[field][good_again]), field
    assert (batch["pixels_BCHW"].flatten(1).std(1) > 0).all()
    assert torch.equal(batch["groups_B"][~bad], torch.from_numpy(examples.groups_N[rows[~bad]]))
    made.go()
    named = (tmp_path / "run" / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(named) == sorted(str(read_captions(broken).files[image]) for image in BROKEN)
