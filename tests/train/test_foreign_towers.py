"""Towers that a user brings, as a run builds them: bad weights and impossible settings are named before any step."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_kit.config.recipe import Recipe
from mclip_kit.errors import CheckpointError, DataError, MclipError, RecipeError
from mclip_kit.features.cache import FeatureCache
from mclip_kit.features.extract import FrozenTowers
from mclip_kit.models.finite import first_nonfinite
from mclip_kit.models.lora import adapt, merge
from mclip_kit.models.multilingual_clip import MultilingualClip, load
from mclip_kit.models.text_encoder import pretrained_encoder
from mclip_kit.train.build import build_model
from mclip_kit.train.run import Run
from tests.models.kinds import DECODERS, ENCODERS, save
from tests.train.runs import only_stage, recipe_of


def only(data: Path, folder: Path, *changes: str, **tree: Any) -> Recipe:
    """The tiny recipe's stage that teaches the student texts."""
    return recipe_of(data, folder, "evaluation=null", *changes, **(only_stage(data, 1) | tree))


def refusal(recipe: Recipe, folder: Path) -> MclipError:
    with pytest.raises(MclipError) as error:
        Run(recipe, folder)
    assert "\n" not in str(error.value)
    return error.value


@pytest.fixture(scope="module")
def built(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the tiny recipe's towers."""
    folder = tmp_path_factory.mktemp("built")
    model = build_model(recipe_of(squares, folder, *[]))
    assert isinstance(model, MultilingualClip)
    model.save(folder / "model")
    return folder / "model"


def spoil(model: Any, name: str, value: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf")])
def test_a_weight_of_the_encoder_is_named_with_its_folder(squares: Path, tmp_path: Path, value: float) -> None:
    def maker() -> Any:
        model = ENCODERS["bert"]()
        spoil(model, "encoder.layer.1.output.dense.weight", value)
        return model

    folder = save(maker, tmp_path / "bad")
    error = refusal(only(squares, tmp_path, encoder=f"hf:{folder}"), tmp_path / "run")
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"encoder hf:{folder}: encoder.layer.1.output.dense.weight is not finite (NaN or inf)")


@pytest.mark.parametrize("tower", ["image", "teacher_text"])
def test_a_weight_of_the_teacher_is_named_with_its_folder(
    squares: Path, built: Path, tmp_path: Path, tower: str
) -> None:
    model = load(built)
    name = next(name for name, weight in getattr(model, tower).named_parameters() if weight.numel() > 4)
    spoil(getattr(model, tower), name, float("inf"))
    model.clip[0].save(tmp_path)
    error = refusal(only(squares, tmp_path, teacher={"model": f"local-dir:{tmp_path}"}), tmp_path / "run")
    assert str(error).startswith(f"{tower} local-dir:{tmp_path}: {name} is not finite")


@pytest.mark.parametrize("tower", ["encoder", "projector"])
def test_a_weight_of_a_model_to_start_from_is_named(squares: Path, built: Path, tmp_path: Path, tower: str) -> None:
    model = load(built)
    name = next(name for name, weight in getattr(model, tower).named_parameters() if weight.numel() > 4)
    spoil(getattr(model, tower), name, float("nan"))
    model.save(tmp_path / "bad")
    towers = {"teacher": None, "encoder": None, "projector": None, "init_from": str(tmp_path / "bad")}
    error = refusal(only(squares, tmp_path, **towers), tmp_path / "run")
    assert str(error).startswith(f"{tower} {tmp_path / 'bad'}: {name.removeprefix('model.')} is not finite")


def test_a_sum_that_overflows_is_no_weight_that_is_inf() -> None:
    module = torch.nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(3e38)
    assert not module.weight.sum().isfinite()
    assert first_nonfinite(module) is None


def test_features_name_the_tower_and_the_weight(built: Path) -> None:
    model = load(built, device="cpu")
    model.sources = {"teacher_text": "local-dir:somewhere"}
    towers = FrozenTowers(model, FeatureCache(None, log=lambda line: None))
    towers.teacher_texts(["a red square"])
    spoil(model.teacher_text, "text_projection", float("inf"))
    towers = FrozenTowers(model, FeatureCache(None, log=lambda line: None))
    with pytest.raises(DataError, match=r"^teacher_text local-dir:somewhere: text_projection is not finite"):
        towers.teacher_texts(["a red square"])


def test_a_loss_that_is_bad_before_any_update_is_not_blamed_on_lr(squares: Path, tmp_path: Path) -> None:
    run = Run(only(squares, tmp_path, "stages.0.max_nonfinite=1", "cache.features=off"), tmp_path / "run")
    run.model.projector.register_forward_hook(lambda module, given, out: out * float("nan"))
    with pytest.raises(DataError, match="no update came before, so lr is not the cause"):
        run.go()


@pytest.mark.parametrize(("kind", "name"), [("albert", "AlbertModel"), ("xlm", "XLMModel"), ("mpnet", "MPNetModel")])
def test_checkpointing_that_an_encoder_lacks_is_named(squares: Path, tmp_path: Path, kind: str, name: str) -> None:
    encoder = save(ENCODERS[kind], tmp_path / kind)
    error = refusal(only(squares, tmp_path, "stages.0.checkpointing=true", encoder=f"hf:{encoder}"), tmp_path / "run")
    assert isinstance(error, RecipeError)
    assert str(error) == f"stages.0.checkpointing: {name} cannot; set it to false"
    Run(only(squares, tmp_path, encoder=f"hf:{encoder}"), tmp_path / "run")


def test_the_first_token_of_a_decoder_is_not_pooled(squares: Path, tmp_path: Path) -> None:
    encoder = save(DECODERS["qwen3"], tmp_path / "qwen", ends="")
    recipe = only(squares, tmp_path, encoder=f"hf:{encoder}")
    assert str(refusal(recipe, tmp_path / "run")).startswith(
        "projector.pool: cls reads the first token, which in a qwen3"
    )
    build_model(only(squares, tmp_path, "projector.pool=eos", encoder=f"hf:{encoder}"))


def test_an_mt5_trains_and_its_model_comes_back(squares: Path, tmp_path: Path) -> None:
    encoder = save(ENCODERS["mt5"], tmp_path / "mt5")
    changes = ["projector.pool=mean", "stages.0.epochs=1", "stages.0.checkpointing=true", "data.max_unknown=1"]
    run = Run(only(squares, tmp_path, *changes, encoder=f"hf:{encoder}"), tmp_path / "run")
    before = run.model.encoder.model.shared.weight.detach().clone()
    run.go()
    shutil.rmtree(encoder)
    model = load(tmp_path / "run" / "model", device="cpu")
    texts = ["a red square", "", "Quadrat rot"]
    assert torch.equal(model.encode_text(texts), run.model.eval().encode_text(texts))
    assert not torch.equal(before, run.model.encoder.model.shared.weight)


def test_a_distilbert_trains_with_adapters_checkpointing_and_layer_decay(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    encoder = save(ENCODERS["distilbert"], tmp_path / "encoder")
    changes = ["lora={rank: 2}", "stages.0.train=[lora, projector]", "stages.0.checkpointing=true"]
    changes += ["stages.0.layer_decay=0.5", "stages.0.epochs=1", "data.max_unknown=1"]
    run = Run(only(squares, tmp_path, *changes, encoder=f"hf:{encoder}"), tmp_path / "run")
    run.go()
    before, after = pretrained_encoder(str(encoder)).state_dict(), load(tmp_path / "run" / "model").encoder.state_dict()
    assert before.keys() == after.keys()
    changed = {name.rpartition("attention.")[2] for name in before if not torch.equal(before[name], after[name].cpu())}
    assert changed == {"q_lin.weight", "v_lin.weight"}


def test_adapters_without_known_layers_and_towers_that_cannot_checkpoint_are_refused_before_a_step(
    squares: Path, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    encoder = f"hf:{save(ENCODERS['xlnet'], tmp_path / 'encoder')}"
    lora = ["lora={rank: 2}", "stages.0.train=[lora, projector]", "projector.pool=mean"]
    error = refusal(only(squares, tmp_path, *lora, encoder=encoder), tmp_path / "run")
    assert str(error).startswith("lora.targets: no layers of this encoder, of type xlnet")
    frozen = ["stages.0.train=[teacher_text, projector]", "stages.0.checkpointing=true", "projector.pool=mean"]
    frozen += ["data.max_unknown=1", "stages.0.epochs=1"]
    Run(only(squares, tmp_path, *frozen, encoder=encoder), tmp_path / "run").go()


def test_adapters_on_layers_with_other_names_say_the_names(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the extra `lora` is not installed")
    encoder = pretrained_encoder(str(save(ENCODERS["mt5"], tmp_path)))
    how = {"rank": 2, "alpha": 2, "dropout": 0.0}
    with pytest.raises(
        RecipeError, match="no layer is called query, value; the encoder's are k, o, q, v, wi_0"
    ) as error:
        adapt(encoder, targets=["query", "value"], **how)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    adapt(encoder, targets=["q", "v"], **how)  # type: ignore[arg-type]
    assert any("lora_A" in name for name, _ in encoder.named_parameters())
    merge(encoder)
    encoder.save(tmp_path / "again")
    pretrained_encoder(str(tmp_path / "again"))
