"""Class names and templates in several languages: those of clip-benchmark for ImageNet, or those of a user's file."""

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, field_validator

from mclip_kit.config.yaml import Section, parse, read_yaml, suggest
from mclip_kit.data.languages import TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import MALFORMED, DataError, RecipeError
from mclip_kit.storage import fetch

IMAGENET = 1000  # classes
NOT_INSTALLED = "ImageNet's class names come with clip-benchmark: pip install clip-benchmark, or give --classes FILE"
HOLE = re.compile(r"\{c?\}")  # the place of the class name in a template


@dataclass(frozen=True)
class Prompts:
    """Class names and templates in one language.

    Attributes:
        names: class -> its name; all or some classes of the data, in the order of the data.
        templates: sentences with `{c}` or `{}` in the place of the name.
    """

    names: dict[str, str]
    templates: list[str]

    def texts(self) -> list[str]:
        """The prompts: all templates with the first class, then with the next."""
        return [HOLE.sub(lambda _: name, text, count=1) for name in self.names.values() for text in self.templates]  # noqa: B023


Text = Annotated[str, Field(pattern=r"\S")]


class Language(Section):
    """One language of a user's file."""

    classnames: dict[str, Text] | list[Text] = Field(
        description="Class folder -> name; or a list of names in the order of the folders (by name; numbers by value)."
    )
    templates: Annotated[list[Text], Field(min_length=1)] = Field(
        description="Sentences with {c} in the place of the class name."
    )

    @field_validator("templates")
    @classmethod
    def _have_one_hole(cls, templates: list[str]) -> list[str]:
        wrong = next((text for text in templates if len(HOLE.findall(text)) != 1), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} needs {{c}} once, for the class name")
        return templates


def read_file(path: Path, classes: Sequence[str]) -> dict[str, Prompts]:
    """Read a user's YAML file: language -> `classnames`, `templates`; each language names every class of the data.

    Args:
        classes: the classes of the data.
    Raises:
        RecipeError: a language, key, name or template is wrong or missing.
    """
    check_file(path)
    found: dict[str, Prompts] = {}
    languages = read_yaml(path)
    _check_scalars(path)
    for code, tree in languages.items():
        if not isinstance(code, str):
            raise RecipeError(f"{path}: {code!r} is not a language code; write it in quotes")
        if not isinstance(tree, dict):
            raise RecipeError(f"{path}: {code}: give classnames and templates for it")
        name = normalize_language(code)
        if name in found:
            raise RecipeError(f"{path}: {code} is given twice, also as {name}; keep one")
        language = parse(_as_text(tree), Language, f"{path}: {code}")
        found[name] = Prompts(_named(language.classnames, classes, f"{path}: {code}"), language.templates)
    if not found:
        raise RecipeError(f"{path}: it has no language; add at least one")
    return found


def check_file(path: Path) -> None:
    """RecipeError if there is no such file."""
    if not fetch(path).is_file():
        raise RecipeError(f"--classes {path}: no such file")


def _check_scalars(path: Path) -> None:
    """RecipeError if YAML reads a word of the file as something else: 010 as 8, no as false, 12:30 as 750."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    nodes: list[Any] = [loader.get_single_node()]
    known: set[int] = set()  # aliases name a node again
    while nodes:
        node = nodes.pop(0)
        if id(node) in known:
            continue
        known.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.ScalarNode) and node.value and node.tag != "tag:yaml.org,2002:merge":
            value = loader.construct_object(node)
            if str(value) != node.value:
                line = node.start_mark.line + 1
                raise RecipeError(
                    f"{path} line {line}: YAML reads {node.value} as {value}; write it in quotes: '{node.value}'"
                )


def _as_text(value: Any) -> Any:
    """A tree in which numbers and other words are text, as they are written."""
    if isinstance(value, dict):
        return {str(key): _as_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    return value if value is None else str(value)


def _named(names: dict[str, str] | list[str], classes: Sequence[str], where: str) -> dict[str, str]:
    if isinstance(names, list):
        if len(names) != len(classes):
            raise RecipeError(f"{where}: classnames has {len(names)} names, but the data has {len(classes)} classes")
        return dict(zip(classes, names, strict=True))
    missing = [name for name in classes if name not in names]
    if missing:
        near = suggest(missing[0], [key for key in names if key not in classes][:20])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RecipeError(f"{where}: classnames lacks {missing[0]}{more}, a class of the data{near}")
    return {name: names[name] for name in classes}


def packaged(classes: Sequence[str], languages: Sequence[str] | str = "all") -> dict[str, Prompts]:
    """ImageNet's names and templates that clip-benchmark ships.

    Five languages name every class. Babel-ImageNet (Geigle et al. 2023) names some classes in many more languages;
    these are read only if `languages` is a list.

    Args:
        classes: the classes of the data: synsets of ImageNet, or all its numbers 0 to 999.
        languages: `all` means the five.
    Raises:
        RecipeError: the classes are neither, or clip-benchmark is not installed.
    """
    places = _places(classes)
    spec = importlib.util.find_spec("clip_benchmark")  # not imported: only its files are needed
    if spec is None or not spec.origin:
        raise RecipeError(NOT_INSTALLED)
    folder = Path(spec.origin).parent / "datasets"
    found = {}
    for path in sorted(folder.glob("*_classnames.json")):
        code = path.name.removesuffix("_classnames.json")
        names = _json(path).get("imagenet1k", [])
        templates = _json(folder / f"{code}_zeroshot_classification_templates.json").get("imagenet1k", [])
        if len(names) == IMAGENET and templates:
            found[normalize_language(code)] = Prompts({name: names[place] for name, place in places.items()}, templates)
    if languages == "all":
        return found
    some, sentences = _json(folder / "babel_imagenet.json"), _json(folder / "nllb_dist13b_prompts.json")
    for code in sorted(some.keys() & sentences.keys()):
        names = dict(zip(*some[code], strict=True))
        own = {name: names[place] for name, place in places.items() if place in names}
        found.setdefault(normalize_language(code), Prompts(own, sentences[code]))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, *MALFORMED):
        raise DataError(f"{path}: missing or damaged; install clip-benchmark again") from None


def _places(classes: Sequence[str]) -> dict[str, int]:
    """Class -> its number in ImageNet, 0 to 999: the position of its synset in the sorted list."""
    from timm.data import ImageNetInfo

    place = {str(synset): number for number, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if len(classes) == IMAGENET and {str(number) for number in range(IMAGENET)} == set(classes):
        return {name: int(name) for name in classes}
    unknown = next((name for name in classes if name not in place), None)
    if unknown is not None:
        raise RecipeError(f"class {unknown!r} is not a synset of ImageNet; name the classes with --classes FILE.yaml")
    return {name: place[name] for name in classes}


def chosen(prompts: dict[str, Prompts], languages: Sequence[str] | str) -> dict[str, Prompts]:
    """The prompts of some languages; `all`: of all languages, the teacher's first.

    Raises:
        RecipeError: a language is missing, or it names fewer than two classes.
    """
    if languages == "all":
        return dict(sorted(prompts.items(), key=lambda item: (item[0] != TEACHER_LANGUAGE, item[0])))
    for code in languages:
        if code not in prompts:
            raise RecipeError(
                f"--langs {code}: there are no class names in this language; there are names in {', '.join(prompts)}"
            )
        if len(prompts[code].names) < 2:
            raise RecipeError(
                f"--langs {code}: it names {len(prompts[code].names)} of the data's classes; at least two are needed"
            )
    return {code: prompts[code] for code in languages}
