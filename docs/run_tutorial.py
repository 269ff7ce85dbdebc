"""Run docs/tutorial.ipynb from its first to its last cell in an empty folder, and keep what it prints and shows.

    python docs/run_tutorial.py [--folder DIR]

Minutes on a CPU. Progress, which goes to standard error, is left out of the notebook. tests/docs/test_tutorial.py runs
the same cells at a small size, on pictures that are there already.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TUTORIAL = Path(__file__).with_name("tutorial.ipynb")


def execute(folder: Path) -> Any:
    """The notebook with its outputs; nbclient's CellExecutionError if a cell fails."""
    book = nbformat.read(TUTORIAL, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(book, timeout=3600, resources=where, record_timing=False).execute()
    return book


def tidy(book: Any, folder: Path) -> Any:
    """The notebook without standard error, with one block of text a cell and no path of this machine."""
    for cell in (cell for cell in book.cells if cell.cell_type == "code"):
        printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        shown = [output for output in cell.outputs if output.output_type != "stream"]
        stream = nbformat.v4.new_output("stream", text=printed.replace(f"{folder.resolve()}/", ""))
        cell.outputs = [stream] * bool(printed) + shown
    return book


def main() -> None:
    """Run it and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="an empty folder; default: a temporary one")
    folder = parser.parse_args().folder
    root = str(Path(__file__).parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        book = tidy(execute(place), place)
    nbformat.write(book, TUTORIAL)


if __name__ == "__main__":
    main()
