"""What recipes and corpus declarations share: typed YAML files, found by name, checked at once, overridden by key.

It imports no torch, so a wrong file is refused in a fraction of a second.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
    """Check a tree against a schema.

    Raises:
        RecipeError: every mistake of the tree, each with its key path, in one message.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        mistakes = [_explain(item, tree, schema) for item in error.errors()]
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
    """The same tree with `key.path=value` strings applied to it; the value is YAML, a list item goes by its index."""
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


class RenamedKey(FutureWarning):
    """A file or an option uses the old name of a key."""


Renamed = dict[tuple[str, ...], str]
"""Key path, with `*` for any key or list index -> the new name of its last key."""


def rename_keys(tree: Any, renamed: Renamed, path: tuple[str, ...] = ()) -> list[str]:
    """Give keys of a tree their new names, in place.

    Returns:
        A line for each key that had an old name.
    Raises:
        RecipeError: a key is given under both names.
    """
    lines = []
    for key, value in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        here = (*path, str(key))
        new = new_name(here, renamed)
        if new:
            if new in tree:
                raise RecipeError(f"{'.'.join(here)}: is the old name of {new}, which is given too; keep {new}")
            tree[new] = tree.pop(key)
            lines.append(f"{'.'.join(here)} is now called {new}; the old name works in this release only")
        lines += rename_keys(value, renamed, here)
    return lines


def new_name(path: tuple[str, ...], renamed: Renamed) -> str | None:
    """The new name of the last key of a path, if it has one."""
    for pattern, new in renamed.items():
        if len(pattern) == len(path) and all(p in ("*", key) for p, key in zip(pattern, path, strict=True)):
            return new
    return None


def _explain(item: Any, tree: Any, schema: type[BaseModel]) -> str:
    """One mistake that pydantic found, as `key.path: what is wrong`."""
    path = _key_path(item, tree)
    key = ".".join(path) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{key}: unknown key{suggest(path[-1], _known_keys(schema, tree, path[:-1]))}"
    if item["type"] == "missing":
        return f"{key}: is missing"
    if item["type"] == "union_tag_invalid":
        known = item["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{key}.kind: there is no kind {item['ctx']['tag']!r}{suggest(item['ctx']['tag'], known)}"
    if item["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: give a mapping of keys to values"
    message = item["msg"].removeprefix("Value error, ")
    given = f", not {item['input']!r}" if isinstance(item["input"], str | int | float) else ""
    return f"{key}: {message}{given}"


def _key_path(item: Any, tree: Any) -> list[str]:
    """The keys of a mistake. pydantic's location also names the tried members of unions: those are not in the tree."""
    path, here = [], tree
    for place, part in enumerate(item["loc"]):
        last = place == len(item["loc"]) - 1
        if (isinstance(here, list) and isinstance(part, int) and part < len(here)) or (
            isinstance(here, dict) and part in here
        ):
            path.append(str(part))
            here = here[part]
        elif last and item["type"] == "missing":
            path.append(str(part))
    return path


def _known_keys(schema: Any, tree: Any, path: Sequence[str]) -> list[str]:
    """The keys that a place of the schema knows; of a stage, those of its kind."""
    for part in path:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
        if part in getattr(schema, "model_fields", {}):
            found = list(_sections(schema.model_fields[part]))
            schema = found[0] if found else None
        chosen = getattr(schema, "section_of", None)
        if chosen is not None and isinstance(tree, dict):
            schema = chosen(tree)
    return list(getattr(schema, "model_fields", {}))


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections inside an annotation such as list[Stage] or Evaluation | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    annotation = getattr(annotation, "annotation", annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections(argument)


def suggest(word: str, known: Sequence[str]) -> str:
    """What to append to a message about an unknown word: the nearest known one, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""
