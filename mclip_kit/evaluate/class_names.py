"""Class names and templates in several languages: those that clip-benchmark carries for ImageNet, or a user's own."""

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator

from mclip_kit.config.yaml import Section, parse, read_yaml, suggest
from mclip_kit.data.languages import normalize_language
from mclip_kit.errors import DataError, RecipeError

IMAGENET = 1000  # classes
HOLE = re.compile(r"\{c?\}")  # where a template takes the class name


@dataclass(frozen=True)
class Prompts:
    """What is said about classes in one language.

    Attributes:
        names: class -> its name; some of the data's classes, in the data's order.
        templates: sentences with `{c}` or `{}` for the name.
    """

    names: dict[str, str]
    templates: list[str]

    def texts(self) -> list[str]:
        """Every template of the first class, then of the next."""
        return [HOLE.sub(lambda _: name, text, count=1) for name in self.names.values() for text in self.templates]  # noqa: B023


Text = Annotated[str, Field(pattern=r"\S")]


class Language(Section):
    """One language of a user's class file."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # a class may be called 7

    classnames: dict[str, Text] | list[Text] = Field(
        description="Class folder -> name; or the names in the order of the folders' names, numbers by their value."
    )
    templates: Annotated[list[Text], Field(min_length=1)] = Field(description="Sentences with {c} for the class name.")

    @field_validator("templates")
    @classmethod
    def _have_one_hole(cls, templates: list[str]) -> list[str]:
        wrong = next((text for text in templates if len(HOLE.findall(text)) != 1), None)
        if wrong is not None:
            raise ValueError(f"{wrong!r} needs {{c}} once, for the class name")
        return templates


def read_file(path: Path, classes: Sequence[str]) -> dict[str, Prompts]:
    """A user's YAML: language -> `classnames`, `templates`; each names every class of the data.

    Raises:
        RecipeError: a language, key, name or template is wrong or missing.
    """
    if not path.is_file():
        raise RecipeError(f"--classes {path}: no such file")
    found = {}
    for code, tree in read_yaml(path).items():
        if not isinstance(code, str):  # YAML 1.1 takes no: for false
            raise RecipeError(f"{path}: {code!r} is no language code; write it in quotes")
        if not isinstance(tree, dict):
            raise RecipeError(f"{path}: {code}: give it classnames and templates")
        tree = {key: _with_text_keys(value) for key, value in tree.items()}
        language = parse(tree, Language, f"{path}: {code}")
        found[normalize_language(code)] = Prompts(
            _named(language.classnames, classes, f"{path}: {code}"), language.templates
        )
    if not found:
        raise RecipeError(f"{path}: names no language")
    return found


def _with_text_keys(value: Any) -> Any:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


def _named(names: dict[str, str] | list[str], classes: Sequence[str], where: str) -> dict[str, str]:
    if isinstance(names, list):
        if len(names) != len(classes):
            raise RecipeError(f"{where}: classnames has {len(names)} names, the data {len(classes)} classes")
        return dict(zip(classes, names, strict=True))
    missing = [name for name in classes if name not in names]
    if missing:
        near = suggest(missing[0], [key for key in names if key not in classes][:20])
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RecipeError(f"{where}: classnames lacks {missing[0]}{more}, which the data has{near}")
    return {name: names[name] for name in classes}


def packaged(classes: Sequence[str], languages: Sequence[str] | str = "all") -> dict[str, Prompts]:
    """ImageNet's names and templates as clip-benchmark has them.

    Five languages name every class. Babel-ImageNet (Geigle et al. 2023) names some of them in many more, which come
    where languages are asked for.

    Args:
        classes: the data's: some of ImageNet's synsets, or its numbers 0 to 999.
        languages: `all` for the five.
    Raises:
        RecipeError: they are neither, or clip-benchmark is not installed.
    """
    places = _places(classes)
    spec = importlib.util.find_spec("clip_benchmark")  # found, not imported: only its files are needed
    if spec is None or not spec.origin:
        raise RecipeError("class names come with clip-benchmark: pip install 'mclip-kit[eval]', or give --classes FILE")
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
    except (OSError, ValueError):
        raise DataError(f"{path}: missing or damaged; install clip-benchmark again") from None


def _places(classes: Sequence[str]) -> dict[str, int]:
    """Class -> its number in ImageNet, 0 to 999: the place of its synset in their order."""
    from timm.data import ImageNetInfo

    place = {str(synset): number for number, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    if len(classes) == IMAGENET and {str(number) for number in range(IMAGENET)} == set(classes):
        return {name: int(name) for name in classes}
    unknown = next((name for name in classes if name not in place), None)
    if unknown is not None:
        raise RecipeError(f"class {unknown!r} is no synset of ImageNet's; name the classes with --classes FILE.yaml")
    return {name: place[name] for name in classes}


def chosen(prompts: dict[str, Prompts], languages: Sequence[str] | str) -> dict[str, Prompts]:
    """The languages that are asked for; `all`: every one, English first.

    Raises:
        RecipeError: there is no such language, or it names fewer than two classes.
    """
    if languages == "all":
        return dict(sorted(prompts.items(), key=lambda item: (item[0] != "en", item[0])))
    for code in languages:
        if code not in prompts:
            raise RecipeError(f"--langs {code}: no class names in it; there are {', '.join(prompts)}")
        if len(prompts[code].names) < 2:
            raise RecipeError(f"--langs {code}: names {len(prompts[code].names)} of the data's classes; two are needed")
    return {code: prompts[code] for code in languages}
