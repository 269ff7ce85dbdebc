"""Human-readable text about prepared corpora: what one holds, and which ones exist."""

import json
import textwrap
from pathlib import Path
from typing import Any

from mclip_kit.data.corpora import declaration, shipped_declarations
from mclip_kit.data.corpora.account import Account
from mclip_kit.data.leakage import known_overlaps, leaks_of
from mclip_kit.data.manifest import manifests_in
from mclip_kit.data.prepare.bitext_writer import remedy
from mclip_kit.data.unknown import check_unknown
from mclip_kit.errors import MALFORMED, DataError, first_line
from mclip_kit.layout import MANIFEST, PICTURES

COARSE = 100  # rows of a split below which one row changes a score by more than a percent
MANY_LANGUAGES = 20  # of more, only the number is printed, and the fewest and most captions or pairs


def describe(folder: Path, manifest: dict[str, Any]) -> str:
    """What a prepared folder holds and lacks, its licences, and the test sets that it shares items with.

    Raises:
        DataError: the manifest, or a file with fingerprints, is damaged.
    """
    try:
        return _describe(folder, manifest)
    except MALFORMED as error:
        what = f"{folder / MANIFEST}: damaged ({first_line(error)})"
        raise DataError(f"{what}; prepare it with --again") from None


def _describe(folder: Path, manifest: dict[str, Any]) -> str:
    counts = manifest["counts"]
    lines = [f"{folder}: {counts['images']:,} pictures{_in_brackets(counts['splits'])}"]
    for split, languages in counts["captions"].items():
        lines.append(f"  captions, {split}: " + _join_counts(languages))
    for split, pairs in counts["sentence_pairs"].items():
        lines.append(f"  sentence pairs, {split}: " + _join_counts(pairs))
    lines += _drawn(manifest)
    lines += [f"  {line}" for line in Account.lines(counts.get("rows"))]
    if counts["left_out"]:
        lines.append("  left out or changed: " + "; ".join(f"{n:,} {why}" for why, n in counts["left_out"].items()))
    lines += _unknown(manifest)
    if counts["missing_pictures"]:
        lines.append(f"  {_missing_pictures(folder, manifest)}")
    lines += [f"  {part['what']}: {part['licence']}, {part['by']}" for part in manifest["licences"]]
    silent = manifest["corpus"].get("cleaning", {}).get("leaks") == "keep"
    own = f"{folder} "
    lines += [
        f"  leak: {leak.line()}"
        for leak in leaks_of(folder)
        if not (silent and leak.trained.startswith(own) and leak.held_out.startswith(own))
    ]
    lines += [f"  overlap: {line}" for line in known_overlaps(folder)]
    return "\n".join(lines)


def _missing_pictures(folder: Path, manifest: dict[str, Any]) -> str:
    """How many picture files were not found, and what to do, which depends on where they were looked for."""
    counts = manifest["counts"]
    examples = (counts.get("rows") or {}).get("examples", {})
    example, near = examples.get("missing_pictures", ""), examples.get("near_pictures", "")
    where = manifest.get("pictures") or manifest.get("source")
    if manifest.get("pictures"):
        again = "complete that folder, or correct the names, and prepare with --again"
    else:
        again = "correct the names and prepare with --again, and with --images DIR if they lie elsewhere"
    return (
        f"{counts['missing_pictures']:,} of {counts['images']:,} picture files were not found"
        + (f" in {where}" if where else "")
        + (f", such as {example}" if example else "")
        + (f", of which {near} is near" if near else "")
        + f" (mclip-kit data show {folder} --table images): {again}, or put them, under the names in that table, into "
        f"{folder / PICTURES}"
    )


def _drawn(manifest: dict[str, Any]) -> list[str]:
    """Where rows went whose split the source does not give, and how to change it."""
    shares, rows = manifest["corpus"].get("splits", {}), manifest["counts"].get("drawn", {})
    if not rows:
        return []
    counts = ", ".join(f"{count:,} rows {split}" for split, count in sorted(rows.items(), key=lambda item: -item[1]))
    shown = ", ".join(f"{split} {share:g}" for split, share in shares.items())
    missing = [split for split, share in shares.items() if share and split not in rows]
    none = f"; nothing is in {' and '.join(missing)}: too few rows, or too many equal texts" if missing else ""
    small = [split for split, count in rows.items() if count < COARSE and split != "train"]
    coarse = f"; scores of so few rows as in {' and '.join(sorted(small))} are coarse" if small else ""
    return [
        f"  splits drawn by picture and text ({shown}): {counts}{none}{coarse}; change them with "
        "--set splits.test=0.2, or --set splits={} for train alone"
    ]


def _unknown(manifest: dict[str, Any]) -> list[str]:
    """The share of `<unk>` among the pieces of each language that has some, and a warning if it is large."""
    counts = manifest["counts"].get("unknown_pieces", {})
    shares = {language: unknown / pieces for language, (pieces, unknown) in counts.items() if unknown}
    listed = ", ".join(f"{language} {share:.2%}" for language, share in shares.items())
    lines = [f"pieces that are <unk>: {listed}"] if listed else []
    check_unknown(shares, 1.0, "vocabulary.max_unknown", remedy(manifest["spm"] is not None), lines.append)
    return [f"  {line}" for line in lines]


def _in_brackets(splits: dict[str, int]) -> str:
    return " (" + ", ".join(f"{count:,} {split}" for split, count in splits.items()) + ")" if splits else ""


def _join_counts(counts: dict[str, int]) -> str:
    if len(counts) > MANY_LANGUAGES:
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        return f"{len(counts)} languages, from {least} {counts[least]:,} to {most} {counts[most]:,}"
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
    for path in manifests_in(folder):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            counts = manifest["counts"]
            pairs = sum(sum(split.values()) for split in counts["sentence_pairs"].values())
            captions = sum(sum(split.values()) for split in counts["captions"].values())
            name = manifest["corpus"]["name"] or path.parent.name
        except (OSError, *MALFORMED):
            continue  # written by another program, or by an earlier version
        found[name] = f"{path.parent} ({counts['images']:,} pictures, {captions:,} captions, {pairs:,} sentence pairs)"
    return found
