"""Recipes: what is shipped loads, what is wrong is refused in one line that names every key."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mclip_kit.config.recipe import Recipe, dump, load
from mclip_kit.config.yaml import RenamedKey, Section, find, shipped
from mclip_kit.errors import RecipeError
from tests import tiny

SHIPPED = [
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


def test_every_shipped_recipe_loads_and_they_are_counted() -> None:
    names = sorted(path.stem for path in shipped("recipes").glob("*.yaml"))
    assert names == SHIPPED
    for name in names:
        assert load(name).about


def test_every_field_is_documented() -> None:
    def sections(cls: type[Section]) -> list[type[Section]]:
        return [cls, *(deeper for sub in cls.__subclasses__() for deeper in sections(sub))]

    composite = {"teacher", "projector", "data", "stages", "evaluation"}
    bare = [
        f"{section.__name__}.{name}"
        for section in sections(Section)
        if section.__module__ in ("mclip_kit.config.recipe", "mclip_kit.config.stages")
        for name, field in section.model_fields.items()
        if not field.description and name not in composite
    ]
    assert not bare


def test_both_recipes_of_the_multilingual_text_encoder_are_the_papers() -> None:
    alone, plus = load("mte"), load("mclip_plus")
    assert plus.stages[:2] == alone.stages
    assert plus.stages[2:] == load("trikd_projectors").stages
    first, second = alone.stages
    assert (first.train, first.contrast) == (["decoder"], None)
    assert (first.steps, first.lr, first.warmup_steps) == (400000, 5e-4, 4000)
    assert (second.steps, second.lr, second.contrast and dict(second.contrast)) == (
        160000,
        1e-4,
        {"weight": 2.0, "temperature": 0.1},
    )
    for stage in (first, second):
        assert (stage.batch_tokens, stage.language_temperature, stage.label_smoothing) == (8 * 4096, 5, 0.1)
        assert (stage.betas, stage.language_linear) == ((0.9, 0.98), True)


TRANSLATE = {"kind": "translate", "name": "mt", "train": ["decoder"], "steps": 1, "batch_tokens": 64, "lr": 1e-3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train": ["projector"]}, "train names projector; a translation stage has encoder and decoder"),
        ({"steps": None}, "stages.0.steps:"),
        ({"batch_token": 3}, "stages.0.batch_token: unknown key; did you mean batch_tokens?"),
        ({"kind": "translation"}, "kind"),
        ({"directions": ["deen"]}, "stages.0.directions.0:"),
        ({"directions": ["de-en", "de-en"]}, "stages.0.directions: de-en is given twice"),
        ({"directions": []}, "stages.0.directions: is empty; give at least one item"),
        ({"contrast": {"weight": 1, "temp": 1}}, "stages.0.contrast.temp: unknown key; known: weight, temperature"),
    ],
)
def test_wrong_translation_stages_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    tree = {"about": "x", "encoder": dict(tiny.ENCODER), "data": {"bitext": "b"}, "stages": [TRANSLATE | change]}
    with pytest.raises(RecipeError) as raised:
        load(tiny.write_recipe(tree, tmp_path / "x.yaml"))
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {"model": "ViT-B-32", "weights": "random"}}, "no stage uses it"),
        ({"encoder": None}, "encoder: missing"),
        ({"parallel": "fsdp"}, "fsdp is for the triangle's stages"),
        ({"data": {"captions": "c"}}, "data.bitext is not given"),
    ],
)
def test_recipes_that_only_translate(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    encoder = dict(tiny.ENCODER) | {"weights": "random"}
    tree = {"about": "x", "encoder": encoder, "data": {"bitext": "b"}, "stages": [TRANSLATE]}
    assert load(tiny.write_recipe(tree, tmp_path / "x.yaml")).needs == {"encoder"}
    with pytest.raises(RecipeError, match=words):
        load(tiny.write_recipe(tree | change, tmp_path / "x.yaml"))


def test_a_decoder_needs_a_stage_that_translates(tmp_path: Path) -> None:
    tree = tiny.recipe(tmp_path) | {"decoder": {"layers": 1}}
    with pytest.raises(RecipeError, match="decoder is given, but no stage uses it"):
        load(tiny.write_recipe(tree, tmp_path / "x.yaml"))


def test_papers_figures() -> None:
    altclip, trikd = load("altclip_full"), load("trikd_projectors")
    first, second = altclip.stages
    assert (first.lr, first.weight_decay, first.betas, first.warmup_steps, first.epochs) == (
        1e-4,
        0.1,
        (0.99, 0.999),
        500,
        10,
    )
    assert (second.lr, second.weight_decay, second.warmup_steps, second.epochs, second.clip_norm) == (
        2e-6,
        0.05,
        2000,
        1,
        5,
    )
    assert first.batch_size == second.batch_size == 1024
    stage = trikd.stages[0]
    assert (stage.optimizer, stage.lr, stage.schedule, stage.batch_size, stage.clip_norm) == (
        "lamb_apex",
        1e-2,
        "inverse_sqrt",
        2048,
        2,
    )
    assert (stage.warmup_init_lr, stage.edges["image-student_text"].clamp) == (1e-7, "exp")
    assert stage.edges["teacher_text-student_text"].weight == 0.1
    assert stage.edges["teacher_text-student_text"].temperature == 0.376


def test_m2m_is_the_released_code() -> None:
    recipe = load("m2m")
    (stage,) = recipe.stages
    first, second = stage.edges.values()
    assert (first.loss, first.normalize, first.weight, second.loss, second.weight) == (
        "mse",
        "both",
        44,
        "relational",
        1,
    )
    assert (stage.languages, stage.train, stage.epochs, stage.batch_size) == (["en"], ["projector"], 50, 64)
    assert (stage.lr, stage.weight_decay, stage.warmup_steps) == (3e-4, 0.01, 50)
    assert (recipe.projector.kind, recipe.projector.hidden) == ("linear", 384)


def test_trunk_calibration_is_the_papers() -> None:
    (stage,) = load("calibrate").stages
    contrastive, pull = stage.edges.values()
    assert [*stage.edges] == ["centroid-student_text", "centroid-student_text+pull"]
    assert (contrastive.loss, contrastive.temperature, contrastive.weight) == ("contrastive", 0.02, 1)
    assert (pull.loss, stage.weight_decay, stage.betas, stage.clip_norm) == ("cosine", 0.01, (0.9, 0.999), 1)


def test_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("quickstart") == find("recipes/quickstart.yaml") == find("quickstart.yaml")


def test_a_dumped_recipe_loads_as_the_same(tmp_path: Path) -> None:
    recipe = load("trikd_projectors", ["stages.0.lr=3e-4"])
    assert recipe.stages[0].lr == 3e-4
    (tmp_path / "resolved.yaml").write_text(dump(recipe), encoding="utf-8")
    assert load(tmp_path / "resolved.yaml") == recipe


def test_overrides_reach_lists_mappings_and_absent_keys(tmp_path: Path) -> None:
    path = tiny.write_recipe(tiny.recipe(tmp_path), tmp_path / "tiny.yaml")
    changes = [
        "stages.1.languages=[de]",
        "stages.2.edges.image-student_text.weight=0.5",
        "seed=7",
        "evaluation.split=test",
    ]
    recipe = load(path, changes)
    assert recipe.stages[1].languages == ["de"]
    assert recipe.stages[2].edges["image-student_text"].weight == 0.5
    assert (recipe.seed, recipe.evaluation and recipe.evaluation.split) == (7, "test")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key with its nearest": ({"stages.0.learning_rte": 1}, "stages.0.learning_rte: unknown key"),
    "typo in a key": ({"stages.0.batchsize": 8}, "did you mean batch_size?"),
    "wrong type": ({"stages.0.lr": "fast"}, "stages.0.lr: "),
    "negative": ({"stages.0.lr": -1.0}, "stages.0.lr: "),
    "unknown edge": ({"stages.0.edges": {"image-text": {"loss": "mse"}}}, "stages.0.edges.image-text"),
    "an edge's second loss without a word": (
        {"stages.0.edges": {"image-teacher_text+": {"loss": "mse"}}},
        "stages.0.edges.image-teacher_text+: give image-teacher_text, ",
    ),
    "a sum over pairs that are summed anyway": (
        {"stages.2.edges": {"image-student_text": {"loss": "sigmoid", "positives": "image_sum"}}},
        "positives: image_sum is for contrastive",
    ),
    "kl with a learned temperature": (
        {"stages.2.edges": {"image-student_text": {"loss": "kl", "learned": True}}},
        "kl has a fixed temperature",
    ),
    "training a teacher that is only followed": (
        {"stages.2.edges": {"image-student_text": {"loss": "kl"}}, "stages.2.train": ["student", "teacher_text"]},
        "stages.2: train names teacher_text, which is on none of the stage's edges",
    ),
    "kl without a teacher": (
        {"stages.0.edges": {"image-teacher_text+kl": {"loss": "kl"}}},
        "edges.image-teacher_text+kl: kl is for edges of student_text; the teacher has no teacher",
    ),
    "a width twice": (
        {"stages.2.edges": {"image-student_text": {"loss": "kl", "dims": [4, 8, 4, "full"]}}},
        "stages.2.edges.image-student_text.dims: 4 is given twice",
    ),
    "widths without the whole": (
        {"stages.2.edges": {"image-student_text": {"loss": "kl", "dims": [4, 8]}}},
        "dims: full is missing",
    ),
    "the whole alone": (
        {"stages.2.edges": {"image-student_text": {"loss": "kl", "dims": ["full"]}}},
        "dims: full alone is what a loss without dims has",
    ),
    "no width": (
        {"stages.2.edges": {"image-student_text": {"loss": "kl", "dims": [0, "full"]}}},
        "stages.2.edges.image-student_text.dims.0: ",
    ),
    "unknown loss": ({"stages.1.edges": {"teacher_text-student_text": {"loss": "mle"}}}, "'mle'"),
    "pictures from bitext": ({"stages.2.data": "bitext"}, "stages.2: bitext has no pictures"),
    "tower off the edges": ({"stages.1.train": ["image"]}, "stages.1: train names image"),
    "no encoder": ({"encoder": None}, "encoder: missing"),
    "not a hub name": ({"encoder": "xlm-roberta-base"}, "hf:NAME_OR_DIR or fairseq:DIR"),
    "heads": ({"encoder.heads": 3}, "not a multiple of heads"),
    "new encoder never trained": (
        {"stages.1.train": ["projector"], "stages.2.train": ["projector"]},
        "no stage trains it",
    ),
    "two of a name": ({"stages.1.name": "teacher"}, "the same name"),
    "a start and towers": ({"init_from": "runs/x/model"}, "init_from brings its own towers"),
    "template": ({"stages.0.templates": ["an emoji"]}, "needs a {}"),
    "mse with a temperature": ({"stages.1.edges.teacher_text-student_text.learned": True}, "mse has no temperature"),
    "lamb on parts of weights": ({"parallel": "fsdp", "stages.1.optimizer": "lamb"}, "fsdp does not work with lamb"),
    "apex's lamb on parts of weights": (
        {"parallel": "fsdp", "stages.1.optimizer": "lamb_apex"},
        "fsdp does not work with lamb",
    ),
    "a first rate without a warm-up": ({"stages.0.warmup_init_lr": 1e-7}, "warmup_init_lr has no effect"),
    "a clamp of what is not learned": ({"stages.2.edges.image-student_text.clamp": "exp"}, "clamp has no effect"),
    "half way back from a stage in the middle": (
        {"stages.0.wise_ft_alpha": 0.5},
        "stages.0.wise_ft_alpha is for the last stage",
    ),
    "interpolation of adapters": (
        {"stages.2.wise_ft_alpha": 0.5, "lora": {"rank": 2}, "stages.2.train": ["lora"]},
        "stages.2.wise_ft_alpha is for whole weights, not for adapters",
    ),
    "patience for weights that are not kept": (
        {"evaluation": {"patience": 2, "keep": "last"}},
        "evaluation: patience ends a stage with its best weights: set keep: best",
    ),
    "unknown tracker": ({"trackers": ["visdom"]}, "trackers.0: "),
    "augment without effect": ({"stages.1.augment": {"shift": 1}}, "augment has no effect"),
    "seed below zero": ({"seed": -1}, "seed: "),
    "no room for a token": ({"encoder.positions": 2}, "encoder.positions: "),
    "no image in its place": (
        {"stages.1.edges.teacher_text-student_text.missing_teacher": "image"},
        "missing_teacher: image is for teacher_text-student_text on captions",
    ),
    "weights beside a file that has them": (
        {"teacher": {"model": "openai:clip.pt", "weights": "openai"}},
        "leave `weights` out",
    ),
    "unknown kind": (
        {"stages.0.kind": "translat"},
        "stages.0.kind: there is no kind 'translat'; did you mean translate?",
    ),
    "typo in a key of a kind": (
        {
            "stages.0": {
                "kind": "translate",
                "name": "x",
                "train": ["decoder"],
                "lr": 1.0,
                "steps": 1,
                "batchtokens": 99,
            }
        },
        "stages.0.batchtokens: unknown key; did you mean batch_tokens?",
    ),
    "a folder called as a kind of stage": ({"data.bitext": {"triangle": -1}}, "data.bitext.triangle: "),
    "a folder called as a member of a union": ({"data.bitext": {"str": 1, "sizes": 0}}, "data.bitext.sizes: "),
    "a projector of clip's space without clip": (
        {"stages": [TRANSLATE], "teacher": None, "projector": None, "clip_projector": "linear"},
        "clip_projector is given, but no stage uses it",
    ),
    "data not given": ({"data.bitext": None}, "data.bitext is not given"),
    "pretrained weights of a config": (
        {"teacher.weights": "openai"},
        "teacher: a model config starts from new weights",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_recipe_is_one_line_that_names_the_key(name: str, tmp_path: Path) -> None:
    changes, said = WRONG[name]
    tree = tiny.recipe(tmp_path)
    for path, value in changes.items():
        part: Any = tree
        *parents, last = path.split(".")
        for key in parents:
            part = part[int(key)] if isinstance(part, list) else part[key]
        part[int(last) if isinstance(part, list) else last] = value
    with pytest.raises(RecipeError) as error:
        load(tiny.write_recipe(tree, tmp_path / "wrong.yaml"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "wrong.yaml" in str(error.value)


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    tree = tiny.recipe(tmp_path)
    tree["sead"] = 1
    tree["stages"][0]["lr"] = "x"
    del tree["stages"][1]["epochs"]
    tree["encoder"]["depth"] = 3
    with pytest.raises(RecipeError) as error:
        load(tiny.write_recipe(tree, tmp_path / "wrong.yaml"))
    message = str(error.value)
    assert "sead: unknown key; did you mean seed?" in message
    assert "stages.0.lr" in message
    assert "stages.1.epochs: is missing" in message
    assert "encoder.depth: unknown key" in message
    assert "valid string" not in message


@pytest.mark.parametrize(
    "override", ["stages.9.lr=1", "stages.0.lr", "=3", "stages.x.lr=1", "seed.deep=1", "stages.0.lr=[1", "seed=[1,2]"]
)
def test_a_wrong_override_names_itself(override: str) -> None:
    with pytest.raises(RecipeError) as error:
        load("quickstart", [override])
    assert override.split("=")[0] in str(error.value)


@pytest.mark.parametrize(("text", "said"), [("a: [1", "not YAML"), ("- 1", "not a mapping"), ("", "not a mapping")])
def test_a_file_that_is_no_recipe(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        load(path)


def test_a_missing_file_suggests_a_shipped_name() -> None:
    with pytest.raises(RecipeError, match="did you mean quickstart"):
        load("recipes/quickstat.yaml")


def test_the_resolved_recipe_is_plain_yaml() -> None:
    tree = yaml.safe_load(dump(load("quickstart")))
    assert Recipe.model_validate(tree) == load("quickstart")


OLD = ["start", "stages.2.wise_ft", "stages.1.edges.teacher_text-student_text.without_teacher"]


def old_tree(folder: Path) -> dict[str, Any]:
    """A recipe that names its keys as version 0.1.0 did."""
    tree = tiny.recipe(folder)
    for part in ("teacher", "encoder", "projector"):
        del tree[part]
    tree |= {"start": "runs/x/model"}
    tree["data"]["bitext"] = {"start": 2.0, "wise_ft": 1.0}  # folders may be called anything
    tree["stages"][0] = deepcopy(tree["stages"][1]) | {"name": "first"}
    tree["stages"][1] |= {"data": "captions"}
    tree["stages"][1]["edges"]["teacher_text-student_text"]["without_teacher"] = "image"
    tree["stages"][2]["wise_ft"] = 0.5
    return tree


def test_old_names_of_keys_load_with_a_line_each(tmp_path: Path) -> None:
    path = tiny.write_recipe(old_tree(tmp_path), tmp_path / "old.yaml")
    with pytest.warns(RenamedKey) as lines:
        recipe = load(path)
    said = [str(line.message) for line in lines]
    assert len(said) == len(OLD)
    for key in OLD:
        assert any(f"old.yaml: {key} is now called " in line for line in said)
    assert recipe.init_from == "runs/x/model"
    assert recipe.stages[2].wise_ft_alpha == 0.5
    assert recipe.stages[1].edges["teacher_text-student_text"].missing_teacher == "image"
    assert recipe.data.bitexts == {"start": 2.0, "wise_ft": 1.0}


def test_a_key_that_moved_to_the_top_is_read_in_its_old_place(tmp_path: Path) -> None:
    said = "cache.workers is now called workers"
    for cache in ({"workers": 3}, {"features": "off", "workers": 3}):
        path = tiny.write_recipe(tiny.recipe(tmp_path) | {"cache": cache}, tmp_path / "moved.yaml")
        with pytest.warns(RenamedKey, match=said):
            recipe = load(path)
        assert (recipe.workers, recipe.cache.features) == (3, cache.get("features", "auto"))
    with pytest.warns(RenamedKey, match="--set cache.workers: the key is now called workers"):
        assert load(tiny.write_recipe(tiny.recipe(tmp_path), path), ["cache.workers=0"]).workers == 0
    tree = tiny.recipe(tmp_path) | {"cache": {"workers": 3}, "workers": 2}
    with pytest.raises(
        RecipeError, match=r"cache\.workers: is the old name of workers, which is given too; keep workers"
    ):
        load(tiny.write_recipe(tree, path))


def test_old_names_override_too(tmp_path: Path) -> None:
    path = tiny.write_recipe(tiny.recipe(tmp_path), tmp_path / "new.yaml")
    with pytest.warns(RenamedKey, match="--set stages.2.wise_ft: the key is now called wise_ft_alpha"):
        recipe = load(path, ["stages.2.wise_ft=0.25"])
    assert recipe.stages[2].wise_ft_alpha == 0.25


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    tree = tiny.recipe(tmp_path) | {"start": "a", "init_from": "b"}
    with pytest.raises(RecipeError, match="start: is the old name of init_from, which is given too; keep init_from"):
        load(tiny.write_recipe(tree, tmp_path / "both.yaml"))


def test_sigmoid_starts_as_siglip_does_and_an_edge_has_several_losses(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    edges = {"image-student_text": {"loss": "sigmoid", "learned": True}, "image-student_text+kl": {"loss": "kl"}}
    tree["stages"][2]["edges"] = edges
    found = load(tiny.write_recipe(tree, tmp_path / "x.yaml"))
    sigmoid, kl = found.stages[2].edges.values()
    assert (sigmoid.temperature, sigmoid.bias, kl.temperature) == (0.1, -10.0, 0.07)
    assert found.stages[2].vertices == {"image", "student_text", "teacher_text"}  # whom kl follows
    (tmp_path / "y.yaml").write_text(dump(found), encoding="utf-8")
    assert load(tmp_path / "y.yaml") == found
    alone = load(tmp_path / "x.yaml", ["stages.2.edges.image-student_text+kl.temperature=0.2"])
    assert alone.stages[2].edges["image-student_text+kl"].temperature == 0.2
