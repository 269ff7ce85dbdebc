"""What pydantic finds wrong in a YAML file, in plain words with key paths."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
"""pydantic's name of a mistake -> what the key takes."""


def explain(items: Sequence[Any], tree: Any, schema: type[BaseModel]) -> list[str]:
    """Every mistake as `key.path: what is wrong`.

    A key that takes this or that is one mistake. If a value is of one of its types and only a part of it is wrong,
    the mistake is that part.

    Args:
        items: pydantic's `errors()`.
        tree: what was parsed.
        schema: as what.
    """
    found: dict[tuple[str, ...], list[Any]] = {}
    for item in items:
        found.setdefault(tuple(_key_path(item, tree)), []).append(item)
    lines = []
    for path, own in found.items():
        inside = any(len(other) > len(path) and other[: len(path)] == path for other in found)
        if inside or not all(map(_wanted, own)):
            own = [item for item in own if not _wanted(item)]
        wanted = dict.fromkeys(filter(None, map(_wanted, own)))
        if wanted:
            lines.append(f"{'.'.join(path)}: give {' or '.join(wanted)}{_given(own[0]['input'], wanted)}")
        lines += [_explain(item, list(path), tree, schema) for item in own if not _wanted(item)]
    return list(dict.fromkeys(lines))


def _wanted(item: Any) -> str | None:
    """What the key takes, if the mistake is that the value is something else."""
    if item["type"] == "literal_error":
        return str(item["ctx"]["expected"])
    return WANTED.get(item["type"])


def _given(value: Any, wanted: Any) -> str:
    """What was given instead; and where a text was meant but YAML reads something else, what to write."""
    if isinstance(value, dict | list):
        return ", not a mapping" if isinstance(value, dict) else ", not a list"
    if value is None:
        return "; it is empty"
    quotes = any(choice == "a text" or choice.startswith("'") for choice in wanted)
    if isinstance(value, bool) and quotes:
        words = "yes, on and true as true" if value else "no, off and false as false"
        return f"; YAML reads {words}: write it in quotes, '{'yes' if value else 'no'}'"
    if isinstance(value, bool):
        return f", not {str(value).lower()}"
    if isinstance(value, int | float) and quotes:
        return f", not {value!r}; write a text that looks like a number in quotes, '{value!r}'"
    return f", not {value!r}"


def _explain(item: Any, path: list[str], tree: Any, schema: type[BaseModel]) -> str:
    """A mistake that is not one of type."""
    key = f"{'.'.join(path)}: " if path else ""  # one about all of the file names its keys itself
    if item["type"] == "extra_forbidden":
        return f"{key}unknown key{suggest(path[-1], _known_keys(schema, tree, path[:-1]))}"
    if item["type"] == "missing":
        return f"{key}is missing"
    if item["type"] == "too_short":
        return f"{key}is empty; give at least one item"
    if item["type"] == "union_tag_invalid":
        known = item["ctx"]["expected_tags"].replace("'", "").split(", ")
        return (
            f"{'.'.join([*path, 'kind'])}: there is no kind {item['ctx']['tag']!r}{suggest(item['ctx']['tag'], known)}"
        )
    message = item["msg"].removeprefix("Value error, ")
    given = f", not {item['input']!r}" if isinstance(item["input"], str | int | float) else ""
    return f"{key}{message}{given}"


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
