"""Imports point one way, and heavy packages stay inside commands."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mclip_kit"
RANK = {
    "errors": 0,
    "files": 0,
    "layout": 0,
    "config": 1,
    "data": 2,
    "losses": 3,
    "models": 3,
    "interop": 4,
    "features": 4,
    "tasks": 5,
    "train": 6,
    "evaluate": 6,
    "demo": 6,
    "doctor": 7,
    "cli": 8,
}
"""Part of the package -> its rung; a part imports from lower rungs only."""


def imports(path: Path) -> set[str]:
    """First parts, below mclip_kit, of the modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "mclip_kit" else [f"mclip_kit.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("mclip_kit.")}
    return found - {"__version__"}


def part(path: Path) -> str:
    """The first part below mclip_kit that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {part(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert parts == set(RANK)


def test_imports_point_one_way() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
        for other in imports(path)
        if other != part(path) and RANK[other] >= RANK[part(path)]
    ]
    assert not wrong


def test_only_fairseq_io_imports_fairseq() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if "fairseq" in _top_levels(path)}
    assert users == {"fairseq_io.py"}


def test_help_and_recipes_load_no_heavy_package() -> None:
    code = (
        "import sys, mclip_kit.cli, mclip_kit.config.recipe\n"
        "heavy = {'torch', 'numpy', 'transformers', 'open_clip', 'fairseq'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _top_levels(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    modules += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[0] for module in modules}
