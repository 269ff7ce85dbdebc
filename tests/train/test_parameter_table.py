"""What is said of a run before it starts."""

from pathlib import Path

from torch import nn

from mclip_kit.config.recipe import load
from mclip_kit.train.build import build_model
from mclip_kit.train.optim import trainable
from mclip_kit.train.parameter_table import table
from tests import tiny


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_towers_shares_and_the_rate_of_each_group(squares: Path, tmp_path: Path) -> None:
    tree = tiny.recipe(squares)
    tree["encoder"] |= {"layers": 3, "width": 128, "ffn": 512}
    tree["stages"] = tree["stages"][:2]
    tree["stages"][1] |= {"train": ["encoder.model.encoder.layer.[12]*", "projector"], "layer_decay": 0.5, "lr": 0.04}
    recipe = load(tiny.write_recipe(tree, tmp_path / "tiny.yaml"))
    model = build_model(recipe)
    trained = [trainable(model, stage.train) for stage in recipe.stages]
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in table(model, recipe.stages, trained)}
    count = {name: size(getattr(model, name)) for name in ("image", "encoder", "projector")}
    layer = size(model.encoder.model.encoder.layer[0])
    assert lines["image"] == f"{count['image'] / 1e6:.2f}M teacher trained distill frozen"
    assert lines["encoder"] == (
        f"{count['encoder'] / 1e6:.2f}M teacher frozen distill {2 * layer / count['encoder']:.0%} trained"
    )
    assert lines["clip_projector"] == "0.00M (identity)"
    assert lines["distill:"] == (
        f"adamw at lr 0.04 for {(count['projector'] + layer) / 1e6:.2f}M; 0.02 for {layer / 1e6:.2f}M"
    )
