"""Human-readable text about prepared corpora: what one holds, and which ones exist."""

import json
import textwrap
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora import declaration, shipped_declarations
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.leakage import known_overlaps, leaks_of
from mclip_kit.layout import IMAGES_TABLE, MANIFEST, PICTURES


def describe(folder: Path, manifest: dict[str, Any]) -> str:
    """What a prepared folder holds and lacks, its licences, and the test sets that it shares items with."""
    counts = manifest["counts"]
    lines = [f"{folder}: {counts['images']:,} pictures{_in_brackets(counts['splits'])}"]
    for split, languages in counts["captions"].items():
        lines.append(f"  captions, {split}: " + _join_counts(languages))
    for split, pairs in counts["sentence_pairs"].items():
        lines.append(f"  sentence pairs, {split}: " + _join_counts(pairs))
    lines += [f"  {line}" for line in Account.lines(counts.get("rows"))]
    if counts["left_out"]:
        lines.append("  left out or changed: " + "; ".join(f"{n:,} {why}" for why, n in counts["left_out"].items()))
    if counts["missing_pictures"]:
        lines.append(
            f"  {counts['missing_pictures']:,} of {counts['images']:,} picture files were not found (their `file` in "
            f"{IMAGES_TABLE} is empty): prepare again with --images DIR, or put them, under the names in that table, "
            f"into {folder / PICTURES}"
        )
    lines += [f"  {part['what']}: {part['licence']}, {part['by']}" for part in manifest["licences"]]
    lines += [f"  overlap: {line}" for line in known_overlaps(folder)]
    lines += [f"  leak: {leak.line()}" for leak in leaks_of(folder)]
    return "\n".join(lines)


def _in_brackets(splits: dict[str, int]) -> str:
    return " (" + ", ".join(f"{count:,} {split}" for split, count in splits.items()) + ")" if splits else ""


def _join_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def list_corpora(folder: Path) -> str:
    """Every declared corpus: what it is, its size and licences, and where in `folder` it is prepared.

    Prepared folders that are not from a shipped declaration are listed last.
    """
    prepared = _prepared(folder)
    lines = []
    for path in shipped_declarations():
        corpus = declaration(path.stem)
        done = prepared.pop(path.stem, None)
        lines.append(f"{path.stem:20} {corpus.about}")
        terms = dict.fromkeys(f"{part.what}: {part.licence}" for part in corpus.licences)
        facts = [
            corpus.size,
            f"{len(corpus.languages)} language{'s' if len(corpus.languages) > 1 else ''}",
            *terms,
            *(f"overlap: {line}" for line in corpus.overlaps),
            f"prepared: {done}" if done else "not prepared",
        ]
        lines.append(textwrap.indent(textwrap.fill("; ".join(filter(None, facts)), 96), " " * 21))
    lines += [f"{name:20} yours, prepared: {where}" for name, where in prepared.items()]
    return "\n".join(lines)


def _prepared(folder: Path) -> dict[str, str]:
    """Name of a corpus -> its prepared folder and its counts, for each prepared folder in `folder`."""
    found = {}
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            counts = manifest["counts"]
            pairs = sum(sum(split.values()) for split in counts["sentence_pairs"].values())
            captions = sum(sum(split.values()) for split in counts["captions"].values())
            name = manifest["corpus"]["name"] or path.parent.name
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # written by another program, or by an earlier version
        found[name] = f"{path.parent} ({counts['images']:,} pictures, {captions:,} captions, {pairs:,} sentence pairs)"
    return found
