"""What recipes and corpus declarations have in common: typed YAML, found by name, checked at once, overridden by key.

This module imports no torch, so a wrong file is refused in a blink.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError

from mclip_kit.errors import RecipeError

S = TypeVar("S", bound=BaseModel)

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def shipped(kind: Literal["recipes", "data_prep"]) -> Path:
    """The folder of the shipped YAML files: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / kind if (package / kind).is_dir() else package.parent / kind


def find(name: str | Path, kind: Literal["recipes", "data_prep"] = "recipes") -> Path:
    """A YAML file by path, or a shipped one by name (`quickstart`, `recipes/quickstart.yaml`).

    Raises:
        RecipeError: there is none; the message suggests the nearest name.
    """
    if Path(name).is_file():
        return Path(name)
    candidate = shipped(kind) / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    known = Path(name).parent.name in ("", kind)
    if candidate.is_file() and known:
        return candidate
    names = sorted(path.stem for path in shipped(kind).glob("*.yaml"))
    raise RecipeError(f"{name}: no such file, and none of that name is shipped{suggest(candidate.stem, names)}")


def parse(tree: dict[str, Any], schema: type[S], where: str) -> S:
    """Check a tree against a schema; every mistake is reported at once, with its key path."""
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        mistakes = [_explain(item, schema) for item in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(dict.fromkeys(mistakes))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; RecipeError names the line that cannot be read."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: not a mapping of keys to values")
    return tree


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The same tree, with `key.path=value` strings applied to it; see `load`."""
    for override in overrides:
        _apply(tree, override)
    return tree


def _apply(tree: Any, override: str) -> None:
    keys, separator, value = override.partition("=")
    if not separator or not keys:
        raise RecipeError(f"--set {override}: write key.path=value")
    *parents, last = keys.split(".")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise RecipeError(f"--set {override}: the value is not YAML") from None
    try:
        for key in parents:
            tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
        if isinstance(tree, list):
            tree[int(last)] = parsed
        else:
            tree[last] = parsed
    except (IndexError, ValueError, TypeError, AttributeError):
        raise RecipeError(f"--set {override}: there is no such key path in the recipe") from None


def _explain(item: Any, schema: type[BaseModel]) -> str:
    location = [str(part) for part in item["loc"] if not _is_union_tag(str(part))]
    key = ".".join(location) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{suggest(location[-1], _keys(schema, [str(part) for part in item['loc'][:-1]]))}"
    if item["type"] == "missing":
        return f"{key}: is missing"
    message = item["msg"].removeprefix("Value error, ")
    given = f", not {item['input']!r}" if isinstance(item["input"], str | int | float) else ""
    return f"{key}: {message}{given}"


def _is_union_tag(part: str) -> bool:
    """pydantic puts the tried member of a union into the path; a reader has no use for it."""
    return bool(re.fullmatch(r"a-name|sizes|triangle|translate|str|dict\[.*\]|list\[.*\]|literal\[.*\]|\[key\]", part))


def _keys(schema: Any, location: list[str]) -> list[str]:
    """The known keys at a place in the schema."""
    for part in location:
        if part in getattr(schema, "model_fields", {}):
            tagged = _sections(schema.model_fields[part].annotation)
            schema = tagged.get(next((tag for tag in location if tag in tagged), ""), next(iter(tagged.values()), None))
    return list(getattr(schema, "model_fields", {}))


def _sections(annotation: Any) -> dict[str, Any]:
    """The sections inside an annotation such as list[TriangleStage] or Evaluation | None, by their tags."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation.__name__: annotation}
    tags = [extra.tag for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Tag)]
    inner = [_sections(argument) for argument in getattr(annotation, "__args__", ())]
    found = {tag: section for sections in inner for tag, section in sections.items()}
    return dict(zip(tags, found.values(), strict=False)) or found


def suggest(word: str, known: Sequence[str]) -> str:
    """What to append to a message about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
