"""The one reader and the one writer of YAML files that a person writes.

PyYAML reads YAML 1.1. What that version reads otherwise than it looks, and what is given twice, is an error here:
`010` is 8 there, `1:30` is 90, `2014-01-01` is a date, and of two equal keys the last one wins. `1e-3` is a number,
as in YAML 1.2. `no` and `on` are truth values in both PyYAML and here; schemas refuse them where they want a text.
"""

import re
from typing import Any

import yaml

from mclip_kit.errors import first_line

LARGEST, DEEPEST = 1_000_000, 100  # characters of a file and values in it; levels of nesting
TEXT, NUMBER = "tag:yaml.org,2002:str", "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
SURPRISES = {
    "tag:yaml.org,2002:int": (re.compile(r"^[-+]?0[0-9_]+$"), "octal, to the base of 8"),
    "tag:yaml.org,2002:timestamp": (re.compile("."), "a date"),
}
SEXAGESIMAL = re.compile(r"^[-+]?[0-9][0-9_]*(:[0-9.]+)+$")
HINTS = {
    "'\\t'": "a tab; YAML indents with spaces",
    "mapping values are not allowed here": "a second `: ` in a line; write a text that contains `: ` in quotes",
}


class Loader(yaml.SafeLoader):
    """Reads plain values and mappings."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        """A `[` or `{`; an error if there are too many around it."""
        self._check_depth(self.flow_level)
        super().fetch_flow_collection_start(token)

    def add_indent(self, column: int) -> bool:
        """A deeper block; an error if there are too many around it."""
        self._check_depth(len(self.indents))
        found: bool = super().add_indent(column)
        return found

    def _check_depth(self, depth: int) -> None:
        if depth > DEEPEST:
            raise yaml.scanner.ScannerError(None, None, f"nested deeper than {DEEPEST}", self.get_mark())

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; an error if a key is given twice, or is a truth value."""
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:  # those that `<<` merges are given elsewhere
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node), key_node.start_mark.line + 1
            if isinstance(key, bool):
                raise _error(key_node, f"YAML reads the key {key_node.value} as {str(key).lower()}; write it in quotes")
            if key in lines:
                raise _error(key_node, f"the key {key_node.value} is given twice, first in line {lines[key]}")
            lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; an error if YAML 1.1 reads it otherwise than it looks."""
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            pattern, what = SURPRISES.get(node.tag, (None, ""))
            what = what if pattern and pattern.match(node.value) else ""
            if node.tag in ("tag:yaml.org,2002:int", NUMBER) and SEXAGESIMAL.match(node.value):
                what = "a number to the base of 60"
            if what:
                raise _error(
                    node, f"YAML reads {node.value} as {what}; if it is a text, write it in quotes, '{node.value}'"
                )
        return super().construct_object(node, deep)


class Dumper(yaml.SafeDumper):
    """Writes what the loader reads back: a text such as 1e3 goes in quotes."""


Loader.add_implicit_resolver(NUMBER, EXPONENT, list("-+0123456789"))
Dumper.add_implicit_resolver(NUMBER, EXPONENT, list("-+0123456789"))


def _error(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    >>> from mclip_kit.config.yaml_loader import parse_yaml
    >>> parse_yaml("{lr: 1e-3, languages: [en, 'no']}")
    {'lr': 0.001, 'languages': ['en', 'no']}

    Raises:
        ValueError: it is not YAML, a key is given twice, or YAML reads a value otherwise than it looks; the message
            names the line.
    """
    if len(text) > LARGEST:
        raise ValueError(f"not YAML that a person wrote: {len(text):,} characters, more than {LARGEST:,}")
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if _size(node, {}) > LARGEST:
            raise ValueError(f"its aliases (*) stand for more than {LARGEST:,} values; write them out")
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = next((said for part, said in HINTS.items() if part in str(error.problem)), str(error.problem))
        kind = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        raise ValueError(f"{kind}line {mark.line + 1}: {problem}" if mark else f"{kind}{problem}") from None
    except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError) as error:  # the others: of tags like !!int
        raise ValueError(f"not YAML: {first_line(error)}") from None


def _size(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node stands for, those of its aliases each time; endless ones count as too many."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST  # while it is counted: what is within itself is endless
        parts = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def dump_yaml(tree: Any) -> str:
    """YAML that `parse_yaml` reads back as the same."""
    text: str = yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text
