"""What recipes and corpus declarations share: typed YAML files, found by name, checked at once, overridden by key.

It imports no torch, so a wrong file is refused in a fraction of a second.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticKnownError

from mclip_kit.config.mistakes import explain
from mclip_kit.config.mistakes import suggest as suggest
from mclip_kit.config.yaml_loader import parse_yaml
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.storage import fetch, place

S = TypeVar("S", bound=BaseModel)


def _no_truth_value(mistake: Literal["int_type", "float_type"]) -> BeforeValidator:
    """Refuses true and false, which pydantic takes for 1 and 0."""

    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise PydanticKnownError(mistake)
        return value

    return BeforeValidator(check)


Whole = Annotated[int, _no_truth_value("int_type")]
Number = Annotated[float, _no_truth_value("float_type")]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
NonNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[Whole, Field(ge=1)]


def _given_once(items: list[str]) -> list[str]:
    twice = next((item for place, item in enumerate(items) if item in items[:place]), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice")
    return items


Once = AfterValidator(_given_once)
"""Of a list whose items select rows: one that is given twice would be used twice."""
Languages = Annotated[list[str], Field(min_length=1), Once]


def _code(name: str) -> str:
    if not re.fullmatch("[a-z]{2,3}(_[a-z0-9]+)*", name):
        raise ValueError(f"give a language's code in lower case, such as pt or zh_hant, not {name!r}")
    return name


LanguageCode = Annotated[str, AfterValidator(_code)]
"""Of a language that no data is asked for, so that nothing else finds a wrong one."""


def _place(name: str) -> str:
    """A path; that of the copy of a URL, which may come after the name of a kind: hf:s3://BUCKET/FOLDER."""
    kind, url = re.fullmatch(r"(?s)((?:hf|fairseq|local-dir|openai):)?(.*)", name).groups()  # type: ignore[union-attr]
    try:
        return f"{kind or ''}{place(url)}" if "://" in url else name
    except DataError as error:
        raise ValueError(str(error)) from None


Place = Annotated[str, AfterValidator(_place)]
"""A path or a URL of object storage; in the checked recipe it is the path of its copy."""


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
    path = fetch(place(name))
    if path.is_file():
        return path
    candidate = shipped(kind) / f"{Path(name).name.removesuffix('.yaml')}.yaml"
    known = Path(name).parent.name in ("", kind)
    if candidate.is_file() and known:
        return candidate
    names = sorted(path.stem for path in shipped(kind).glob("*.yaml"))
    others = "mclip-kit recipes lists them, and init writes one" if kind == "recipes" else "prepare --list lists them"
    advice = suggest(candidate.stem, names) or f"; {others}"
    raise RecipeError(f"{name}: no such file, and none of that name is shipped{advice}")


def parse(tree: dict[str, Any], schema: type[S], where: str) -> S:
    """Check a tree against a schema.

    Raises:
        RecipeError: every mistake of the tree, each with its key path, in one message.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(explain(error.errors(), tree, schema))) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, see `yaml_loader`; RecipeError names the line that cannot be read."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from None
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from None
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
        parsed = parse_yaml(value)
    except ValueError as error:
        raise RecipeError(f"--set {override}: {error}") from None
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
"""Key path, with `*` for any key or list index -> the new name of its last key; with a `/`, at the top of the tree."""


def rename_keys(tree: Any, renamed: Renamed, path: tuple[str, ...] = (), top: Any = None) -> list[str]:
    """Give keys of a tree their new names, in place.

    >>> tree = {"cache": {"workers": 4}}
    >>> rename_keys(tree, {("cache", "workers"): "/workers"}), tree
    (['cache.workers is now called workers; the old name works in this release only'], {'cache': {}, 'workers': 4})

    Args:
        path: of the tree in a larger one, `top`.
    Returns:
        A line for each key that had an old name.
    Raises:
        RecipeError: a key is given under both names.
    """
    lines, top = [], tree if top is None else top
    for key, value in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        here = (*path, str(key))
        new = new_name(here, renamed)
        if new:
            place, new = (top, new[1:]) if new.startswith("/") else (tree, new)
            if new in place:
                raise RecipeError(f"{'.'.join(here)}: is the old name of {new}, which is given too; keep {new}")
            place[new] = tree.pop(key)
            lines.append(f"{'.'.join(here)} is now called {new}; the old name works in this release only")
        lines += rename_keys(value, renamed, here, top)
    return lines


def rename_override(override: str, renamed: Renamed, lines: list[str]) -> str:
    """A `key.path=value` string with the new name of its key; a line about it is added to `lines`."""
    keys, separator, value = override.partition("=")
    path = tuple(keys.split("."))
    new = new_name(path, renamed)
    if not new:
        return override
    name = new.removeprefix("/")
    place = name if new.startswith("/") else ".".join((*path[:-1], name))
    lines.append(f"--set {keys}: the key is now called {name}; the old name works in this release only")
    return place + separator + value


def new_name(path: tuple[str, ...], renamed: Renamed) -> str | None:
    """The new name of the last key of a path, if it has one."""
    for pattern, new in renamed.items():
        if len(pattern) == len(path) and all(p in ("*", key) for p, key in zip(pattern, path, strict=True)):
            return new
    return None
