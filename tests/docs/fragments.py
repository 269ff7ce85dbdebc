"""YAML of the documentation: every key is one of the schema, and every value is one that the key takes."""

from typing import Any

from pydantic import BaseModel, ValidationError

from mclip_kit.config.mistakes import explain
from mclip_kit.config.recipe import Recipe
from mclip_kit.config.stages import TranslationStage, TriangleStage
from mclip_kit.config.yaml_loader import parse_yaml
from mclip_kit.data.corpora import Corpus

SCHEMAS: tuple[type[BaseModel], ...] = (Recipe, Corpus, TriangleStage, TranslationStage)


def check(text: str) -> None:
    """AssertionError unless a text is a part of a recipe, of a declaration or of a stage; keys may be missing."""
    tree: Any = parse_yaml(text)
    assert isinstance(tree, dict), "not a mapping"
    schema = next((schema for schema in SCHEMAS if set(tree) <= set(schema.model_fields)), None)
    assert schema, f"no schema has all of {', '.join(tree)}"
    try:
        schema.model_validate(tree)
    except ValidationError as error:
        wrong = [mistake for mistake in error.errors() if mistake["type"] != "missing"]
        assert not wrong, "; ".join(explain(wrong, tree, schema))
