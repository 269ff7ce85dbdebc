"""What does not fit together between a triangle's stage and the rest of its recipe."""

from collections.abc import Iterator
from typing import Any


def mining_problems(stage: Any, recipe: Any) -> Iterator[str]:
    """Why unpaired text cannot be mined by a stage of a recipe."""
    where = f"stage {stage.name}: mine"
    training = [other.name for other in _up_to(stage, recipe) if _trains_encoder(other)]
    if not recipe.data.unpaired:
        yield f"{where} needs data.unpaired: a mapping from a language to a file of its sentences"
    if recipe.encoder is not None and not isinstance(recipe.encoder, str):
        yield f"{where} needs an encoder that is trained already, by name; this one is new"
    elif training:
        yield (
            f"{where} needs a frozen encoder, and stage {training[0]} trains it; train that in a recipe of its own "
            "and name its model as init_from"
        )


def centroid_problems(stage: Any, recipe: Any) -> Iterator[str]:
    """Why the centroid of translations cannot be a vertex of a stage of a recipe."""
    if not stage.several_languages:
        yield f"stage {stage.name}: centroid is the mean of translations: languages needs two or more"
    *before, _ = _up_to(stage, recipe)
    if not recipe.init_from and not any(other.trains("projector") for other in before):
        yield (
            f"stage {stage.name}: centroid needs a student that is trained: set init_from to a model folder, or put "
            "a stage that trains the projector before it"
        )
    if recipe.parallel == "fsdp":
        yield f"stage {stage.name}: parallel: fsdp does not work with centroid; use ddp"


def sharding_problems(stage: Any, recipe: Any) -> Iterator[str]:
    """Why the encoder cannot be sharded in a stage of a recipe."""
    if not any(_trains_encoder(other) for other in _up_to(stage, recipe)):
        yield (
            f"stage {stage.name}: parallel: fsdp shards an encoder that is trained, and this stage has a frozen one, "
            "whose features are computed once; use ddp"
        )


def _up_to(stage: Any, recipe: Any) -> list[Any]:
    """The stages of a recipe as far as this one; others may be equal to it."""
    return list(recipe.stages[: [other is stage for other in recipe.stages].index(True) + 1])


def _trains_encoder(stage: Any) -> bool:
    return bool(stage.trains("encoder") or stage.trains("lora"))
