"""What the source distribution carries."""

import subprocess
import sys
import tarfile
from pathlib import Path

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
    assert {"mclip_kit/evaluate/report/page.html", "mclip_kit/py.typed", "README.md", "setup.py"} <= names
