"""Reading and preparing are apart, and preparing starts without torch."""

import subprocess
import sys
from pathlib import Path

import mclip_kit.data

DATA = Path(mclip_kit.data.__file__).parent


def test_reading_never_imports_preparing() -> None:
    readers = [path for path in DATA.rglob("*.py") if path.relative_to(DATA).parts[0] != "prepare"]
    assert len(readers) > 15
    assert not [path.name for path in readers if "data.prepare" in path.read_text(encoding="utf-8")]


def test_preparing_imports_no_torch() -> None:
    code = "import sys, mclip_kit.data.prepare.prepare, mclip_kit.data.prepare.summary, mclip_kit.data.prepare.adhoc\n"
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
