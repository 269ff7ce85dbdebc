"""The plan of the house: imports point down one ladder, files are short, and heavy packages stay inside commands."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mclip_kit"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
RANK = {
    "urls": 0,
    "errors": 1,
    "disk": 2,
    "locks": 3,
    "progress": 3,
    "storage": 4,
    "files": 5,
    "layout": 5,
    "config": 6,
    "engine": 6,
    "data": 7,
    "losses": 8,
    "models": 8,
    "interop": 9,
    "features": 9,
    "tasks": 10,
    "train": 11,
    "evaluate": 11,
    "demo": 11,
    "doctor": 12,
    "search": 12,
    "cli": 13,
}
"""Part of the package -> its rung; a part imports from lower rungs only."""

OLD_NAMES = set(
    """Feed Frozen Work doomed say hear Alarm judged kept spoilt between applied dealt moments_dealt whole
    compute_again Chain Picked Seen Examples Directions Pairs spoken Needs EdgeLoss plain Rows State Row Average Store
    estimate verdict""".split()  # noqa: SIM905
)
"""Names that had better ones; none of them is a class, a function or a method any more."""
ONCE = {"Rows": "data/corpora/records.py", "Row": "data/corpora"}
"""Names that are kept, for one meaning: where."""
OLD_FILES = set(
    """feed keys work housekeeping alarm verdict average overview estimate sharding gradients mode xlmr decoder own
    members examples directions page training towers""".split()  # noqa: SIM905
)
KINDS = {"TriangleStage", "TranslationStage"}


def nodes(path: Path) -> Iterator[ast.AST]:
    """All nodes of a file, except what only type checkers read."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


def modules(path: Path) -> set[Path]:
    """The files of the package that a file imports, anywhere in it."""
    found = set()
    for node in nodes(path):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            place = PACKAGE.parent / name.replace(".", "/")
            candidates = (place.with_suffix(".py"), place / "__init__.py", place.parent.with_suffix(".py"))
            found |= set([file for file in (*candidates, place.parent / "__init__.py") if file in FILES][:1])
    return found


def part(path: Path) -> str:
    """The first part below mclip_kit that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_of_the_package_has_its_rung() -> None:
    assert {part(path) for path in FILES} - {"__init__"} == set(RANK)


def test_imports_point_down_the_ladder() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other.relative_to(PACKAGE)}"
        for path in FILES
        if path != PACKAGE / "__init__.py"
        for other in modules(path) - {PACKAGE / "__init__.py"}
        if part(other) != part(path) and RANK[part(other)] >= RANK[part(path)]
    ]
    assert not wrong


def test_no_modules_import_each_other() -> None:
    graph = {path: modules(path) - {path} for path in FILES if path != PACKAGE / "__init__.py"}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_reading_does_not_import_preparing() -> None:
    prepare = PACKAGE / "data" / "prepare"
    wrong = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if part(path) == "data" and not path.is_relative_to(prepare)
        if any(other.is_relative_to(prepare) for other in modules(path))
    ]
    assert not wrong


def test_no_file_is_long() -> None:
    long = {
        str(p.relative_to(PACKAGE)): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long


def test_only_recipes_and_tasks_know_kinds_of_stage() -> None:
    knowing = {part(path) for path in FILES for node in nodes(path) if isinstance(node, ast.Name) and node.id in KINDS}
    assert knowing <= {"config", "tasks"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_are_those_of_the_field(path: Path) -> None:
    assert path.stem not in OLD_FILES
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    defined = {node.name.lstrip("_") for node in nodes(path) if isinstance(node, kinds)}
    place = str(path.relative_to(PACKAGE))
    assert not {name for name in defined & OLD_NAMES if not place.startswith(ONCE.get(name, "-"))}


def test_only_fairseq_io_imports_fairseq() -> None:
    users = {path.name for path in FILES if "fairseq" in _top_levels(path)}
    assert users == {"fairseq_io.py"}


def test_help_and_recipes_load_no_heavy_package() -> None:
    code = (
        "import sys, mclip_kit, mclip_kit.cli, mclip_kit.config.recipe\n"
        "heavy = {'torch', 'numpy', 'transformers', 'open_clip', 'fairseq', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _top_levels(path: Path) -> set[str]:
    found = list(nodes(path))
    names = [node.module for node in found if isinstance(node, ast.ImportFrom) and node.module]
    names += [alias.name for node in found if isinstance(node, ast.Import) for alias in node.names]
    return {name.split(".")[0] for name in names}
