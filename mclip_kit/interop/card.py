"""The card of a model or an exported folder: README.md with the front matter of the Hugging Face hub."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mclip_kit.files import write_text


@dataclass(frozen=True)
class Export:
    """What a card says of an export: its format and library, lines of use, what differs, and figures of parity."""

    name: str
    library: str
    use: str
    notes: list[str]
    differences: Mapping[str, float]


def write_card(folder: Path, source: Path | None, export: Export | None) -> None:
    """Write README.md.

    Args:
        folder: the folder that the card is for.
        source: the model's folder; None: nothing is known but the weights.
        export: None for the model folder itself.
    """
    lines = []
    if export:
        lines += [f"A CLIP with a multilingual text tower, in the format of {export.library}, by mclip-kit.", ""]
        lines += ["```python", export.use.format(folder="THIS_FOLDER").strip(), "```", ""]
        lines += [f"- {note}" for note in export.notes] + [""]
        lines += ["| samples | largest difference from the model |", "| --- | --- |"]
        lines += [f"| {group} | {value:.1e} |" for group, value in export.differences.items()]
    write_text(folder / "README.md", "\n".join([*lines, ""]))
