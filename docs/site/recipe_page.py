"""The reference of recipes and of corpus declarations, as Markdown: every key, made from the schemas."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Tree = Mapping[str, Any]
NAMES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "null": "`null`"}
OR_NULL = ", or `null`"
BOUNDS = {Ge: ("≥", "ge"), Gt: (">", "gt"), Le: ("≤", "le"), Lt: ("<", "lt")}
RECIPE = """# Recipe reference

Made from the schema that checks recipes (`mclip_kit/config/`). A recipe is one YAML file with the keys of the first
table. Unknown keys are refused, and a key that has no effect in a recipe is an error. `--set KEY.PATH=VALUE` overrides
any key; items of a list go by their index, as in `stages.0.lr=3e-4`. The value is YAML.

A key is required if the column "default" says so.
"""
CORPUS = """# Corpus reference

Made from the schema that checks corpus declarations (`mclip_kit/data/corpora/schema.py`): the files in `data_prep/`, or
your own, as in `mclip-kit prepare my.yaml`. `--set KEY.PATH=VALUE` overrides any key. Keys below `options` belong to
the reader; the shipped files show them.
"""


def recipe_page() -> str:
    """The page of recipes."""
    from mclip_kit.config import effects
    from mclip_kit.config.recipe import Recipe

    rules = {"Projector": effects.PROJECTOR, "Cache": effects.CACHE, "Evaluation": effects.EVALUATION}
    rules |= {"Edge": effects.EDGE, "TriangleStage": {**effects.STAGE, **effects.TRIANGLE}}
    rules |= {"TranslationStage": {**effects.STAGE, **effects.TRANSLATION}}
    uses = {name: {key: use for key, (_, use) in rule.items()} for name, rule in rules.items()}
    return "\n".join([RECIPE, *_sections(Recipe, uses)])


def corpus_page() -> str:
    """The page of corpus declarations."""
    from mclip_kit.data.corpora.schema import Corpus

    return "\n".join([CORPUS, *_sections(Corpus, {})])


def _sections(schema: type[BaseModel], uses: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """A heading and a table for the schema and for each section below it, in the order in which they are met."""
    from mclip_kit.config.yaml import Section

    root = schema.model_json_schema()
    definitions = root.get("$defs", {})
    waiting, met = [("", schema.__name__, root)], {schema.__name__}
    classes = {found.__name__: found for found in _subclasses(Section)}
    while waiting:
        path, name, section = waiting.pop(0)
        title = f"`{path}`" if path else "The keys of the file"
        kind = section["properties"].get("kind", {}).get("const")
        yield f"## {title}{f', kind: {kind}' if kind else ''} {{ #{name.lower()} }}\n"
        yield f"{_plain(section.get('description', ''))}\n"
        yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
        for key, value in section["properties"].items():
            field = classes[name].model_fields[key]
            yield _row(key, value, field, uses.get(name, {}).get(key, ""))
            for below, inside in _references(value, f"{path}.{key}".lstrip(".")):
                if inside not in met:
                    met.add(inside)
                    waiting.append((below, inside, definitions[inside]))
        yield ""


def _subclasses(parent: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


def _row(key: str, value: Tree, field: FieldInfo, use: str) -> str:
    default = "required" if field.is_required() else _default(value.get("default", "see the section"))
    meaning = value.get("description", "")
    if use:
        use = re.split(r"; |, and (?:this|no) stage|, but ", use)[0]
        choice, colon, of_choice = use.partition(": ")
        one = colon and choice in value.get("enum", ())
        meaning += f" `{choice}` only for {of_choice}." if one else f" Only for {use}."
    bounds = " ".join(dict.fromkeys(_bounds([*field.metadata, field.annotation])))
    words, optional = _type(value).removesuffix(OR_NULL), _type(value).endswith(OR_NULL)
    cells = (f"`{key}`", f"{words} {bounds}".strip() + OR_NULL * optional, default, _escaped(meaning))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _escaped(text: str) -> str:
    """A text whose angle brackets and asterisks outside `code` are text."""
    parts = text.split("`")
    plain = (part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2])
    return "`".join(part for pair in zip(plain, [*parts[1::2], ""], strict=True) for part in pair)[:-1]


def _bounds(annotations: list[Any]) -> Iterator[str]:
    """The least and the largest value, wherever in a type they stand; pydantic's JSON schema lacks them."""
    for found in annotations:
        for kind, (sign, name) in BOUNDS.items():
            if isinstance(found, kind):
                yield f"{sign} {getattr(found, name)}"
        inside = [*get_args(found), *getattr(found, "__metadata__", ()), *getattr(found, "metadata", ())]
        yield from _bounds(inside)


def _default(value: Any) -> str:
    if value is None or value == "see the section":
        return value or "`null`"
    return f"`{value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _type(value: Tree) -> str:
    """A type in words, with links to sections."""
    for union in ("anyOf", "oneOf"):
        if union in value:
            kinds = dict.fromkeys(_type(choice) for choice in value[union])
            own = " or ".join(kind for kind in kinds if kind != NAMES["null"])
            return own + OR_NULL * (NAMES["null"] in kinds)
    if "$ref" in value:
        return f"[section](#{value['$ref'].rpartition('/')[2].lower()})"
    if "const" in value or "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value.get("enum", [value.get("const")]))
    if "prefixItems" in value:
        return " and ".join(map(_type, value["prefixItems"]))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}))}"
    if value.get("type") == "object":
        inside = value.get("additionalProperties")
        return f"mapping of names to {_type(inside)}" if isinstance(inside, dict) and inside else "mapping"
    return NAMES.get(value.get("type", ""), "any value")


def _references(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Paths and names of the sections that a type has in it; `*` stands for a name or an index."""
    if isinstance(value, dict):
        if "$ref" in value:
            yield path, value["$ref"].rpartition("/")[2]
        for key, inside in value.items():
            if key not in ("default", "propertyNames"):
                yield from _references(inside, f"{path}.*" if key in ("items", "additionalProperties") else path)
    elif isinstance(value, list):
        for inside in value:
            yield from _references(inside, path)


def _plain(docstring: str) -> str:
    """The paragraphs of a docstring that come before its attributes."""
    return re.split(r"\n\s*\n?\s*Attributes:|\n\n.*subclass", docstring)[0].strip()
