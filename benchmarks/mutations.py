"""Damage of files, drawn at random: of their bytes, and of what text, JSON, YAML, tables, zips and weights hold."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

DEEP = "@@deep@@"
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 3.7, 2**31, 2**63, -(2**63), 10**400, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "x",
        "-",
        "\t",
        "é☃",
        "\ufeff",
        "\u2028",
        "\x1b[31m",
        "a\nb",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\a",
    ),
    *("9" * 5000, "x" * 100_000, [], {}, [[]], [None], {"a": {}}, {"": 0}, ["en", "en"], DEEP),
]
"""Values where others belong."""


def mutate(path: Path, draw: random.Random) -> str:
    """Damage a file in place; what was done."""
    content = path.read_bytes()
    inside = INSIDE.get(path.suffix)
    try:
        name, changed = inside(content, draw) if inside and draw.random() < 0.6 else of_bytes(content, draw)
    except Exception as error:  # what is inside cannot be taken apart
        name, changed = of_bytes(content, draw)
        name = f"{name} (not inside: {type(error).__name__})"
    path.write_bytes(changed)
    return name


def of_bytes(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Damage whatever the bytes mean."""
    kinds = [flip, flip, flip, head, cut, cut, doubled, empty, zeros, garbage, spliced, numbers, numbers, recoded]
    kind = draw.choice(kinds)
    return kind.__name__, kind(bytearray(content), draw)


def flip(content: bytearray, draw: random.Random) -> bytes:
    """1 to 8 bits."""
    for _ in range(draw.choice((1, 1, 2, 8))):
        if content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def head(content: bytearray, draw: random.Random) -> bytes:
    """A byte of the first 64."""
    if content:
        content[draw.randrange(min(64, len(content)))] = draw.randrange(256)
    return bytes(content)


def cut(content: bytearray, draw: random.Random) -> bytes:
    """Somewhere, or the last byte."""
    return bytes(content[: draw.choice((draw.randrange(len(content) + 1), len(content) - 1))])


def doubled(content: bytearray, draw: random.Random) -> bytes:
    """Twice, or with a part twice."""
    place = draw.randrange(len(content) + 1)
    return bytes(draw.choice((content + content, content[:place] + content[place // 2 :])))


def empty(content: bytearray, draw: random.Random) -> bytes:
    """Nothing is left, or next to nothing."""
    return draw.choice((b"", b"\n", b"\0", b" "))


def zeros(content: bytearray, draw: random.Random) -> bytes:
    """A part is zero, as after a crash."""
    start = draw.randrange(len(content) + 1)
    size = min(len(content) - start, draw.choice((8, 512, 4096)))
    content[start : start + size] = bytes(size)
    return bytes(content)


def garbage(content: bytearray, draw: random.Random) -> bytes:
    """Other bytes, all or a part."""
    start = draw.choice((0, draw.randrange(len(content) + 1)))
    return bytes(content[:start]) + draw.randbytes(draw.choice((1, 100, 5000)))


def spliced(content: bytearray, draw: random.Random) -> bytes:
    """A part is moved."""
    parts = sorted(draw.randrange(len(content) + 1) for _ in range(3))
    return bytes(
        content[: parts[0]] + content[parts[1] : parts[2]] + content[parts[0] : parts[1]] + content[parts[2] :]
    )


def numbers(content: bytearray, draw: random.Random) -> bytes:
    """A number of 4 or 8 bytes is huge, negative, NaN or infinite."""
    strange = [struct.pack("<q", draw.choice((-1, 2**31, 2**62, -(2**40), 10**12)))]
    strange += [struct.pack("<i", draw.choice((-1, 2**31 - 1, 70_000))), struct.pack("<f", float("nan"))]
    strange += [struct.pack("<f", float("inf")), struct.pack("<d", float("nan")), struct.pack(">q", 2**60)]
    found = draw.choice(strange)
    place = draw.randrange(max(1, len(content) // 4)) * 4
    content[place : place + len(found)] = found
    return bytes(content)


def recoded(content: bytearray, draw: random.Random) -> bytes:
    """Another encoding, another mark, other line ends."""
    text = content.decode("utf-8", "surrogateescape")
    encoding = draw.choice(("utf-16", "utf-16-le", "utf-32", "cp1252", "utf-8-sig", "utf-7"))
    if draw.random() < 0.3:
        return text.replace("\n", draw.choice(("\r\n", "\r", "\n\n", "\0\n"))).encode("utf-8", "surrogateescape")
    return text.encode(encoding, "replace")


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (list or dict, key) in a tree."""
    found, waiting = [], [tree]
    while waiting:
        part = waiting.pop()
        for key in list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            found.append((part, key))
            waiting.append(part[key])
    return found


def change(tree: Any, draw: random.Random) -> tuple[str, Any]:
    """A value becomes a strange one, or goes; a key gets another name, or one of two values another's."""
    found = places(tree)
    if not found or draw.random() < 0.05:
        return "all", draw.choice(STRANGE)
    part, key = draw.choice(found)
    how = draw.choice(("value", "value", "value", "gone", "renamed", "swapped"))
    if how == "gone":
        del part[key]
    elif how == "renamed" and isinstance(part, dict):
        part[draw.choice(("x", "", str(key).upper(), f"{key} "))] = part.pop(key)
    elif how == "swapped":
        there, place = draw.choice(found)
        part[key] = there[place]
    else:
        part[key] = draw.choice(STRANGE)
    return f"{how} at {str(key)[:40]}", tree


def _deep(text: str, draw: random.Random) -> str:
    depth = draw.choice((200, 3000, 100_000))
    for mark in (f'"{DEEP}"', f"'{DEEP}'", DEEP):
        text = text.replace(mark, "[" * depth + "]" * depth)
    return text


def of_json(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A value of a JSON."""
    if draw.random() < 0.1:
        keys = re.findall(rb'"\w+"', content)
        return "duplicate key", content.replace(b"{", b"{" + draw.choice(keys) + b": 0, ", 1)
    name, tree = change(json.loads(content), draw)
    return name, _deep(json.dumps(tree, ensure_ascii=draw.random() < 0.5), draw).encode("utf-8", "surrogatepass")


def of_lines(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A value in a line of JSON."""
    lines = content.splitlines()
    place = draw.randrange(len(lines))
    name, lines[place] = of_json(lines[place], draw)
    return f"line {place + 1}: {name}", b"\n".join(lines) + b"\n"


def of_yaml(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A value of a YAML, or the text of it."""
    text = content.decode()
    if draw.random() < 0.25:
        lines = text.splitlines(True)
        line = draw.choice(lines)
        texts = (
            text + line,
            "x: &a [1]\ny: [*a, *b]\n" + text,
            "&a [*a]",
            "- " * 5000 + "x",
            "{" * 5000,
            text + "\t x",
        )
        more = (
            "!!python/object/apply:os.system [id]",
            "!!int ''",
            "!!float x",
            "!!binary x",
            "!!timestamp x",
            "? [a]\n: b",
        )
        return "text", draw.choice((*texts, *(f"{text}zz: {one}\n" for one in more))).encode()
    name, tree = change(yaml.safe_load(text), draw)
    return name, _deep(yaml.safe_dump(tree, allow_unicode=True, width=10**9), draw).encode("utf-8", "replace")


def of_table(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A cell or a row of a table."""
    mark = b"\t" if b"\t" in content else b","
    rows = [line.split(mark) for line in content.split(b"\n")]
    row = draw.randrange(len(rows))
    strange = str(draw.choice(STRANGE)).replace(DEEP, "[" * 3000).encode("utf-8", "replace")
    how = draw.choice(("cell", "cell", "cell", "more", "fewer", "twice", "gone", "quote", "long"))
    if how == "cell":
        rows[row][draw.randrange(len(rows[row]))] = strange
    elif how == "more":
        rows[row].append(strange)
    elif how == "fewer":
        rows[row].pop()
    elif how == "twice":
        rows.insert(row, list(rows[draw.randrange(len(rows))]))
    elif how == "gone":
        del rows[row]
    else:
        rows[row][0] = b'"' + rows[row][0] if how == "quote" else b"x" * 5_000_000
    return f"{how} in line {row + 1}", b"\n".join(mark.join(cells) for cells in rows)


def of_zip(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """What a member of a zip holds, or its name."""
    given, written = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    chosen = draw.choice(given.namelist())
    name = ""
    with zipfile.ZipFile(written, "w") as out:
        for info in given.infolist():
            inner, target = given.read(info), info.filename
            if target == chosen and draw.random() < 0.1:
                name, target = "renamed", draw.choice(("../x", "/etc/x", "x", target + "/"))
            elif target == chosen:
                name, inner = INSIDE.get(Path(target).suffix, of_bytes)(inner, draw)
            out.writestr(target, inner, info.compress_type)
    return f"{chosen}: {name}", written.getvalue()


def of_weights(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A value in a file of torch.save, or what the zip around it holds."""
    if draw.random() < 0.5:
        return of_zip(content, draw)
    name, tree = change(torch.load(io.BytesIO(content), weights_only=True), draw)
    torch.save(tree, written := io.BytesIO())
    return name, written.getvalue()


def of_safetensors(content: bytes, draw: random.Random) -> tuple[str, bytes]:
    """The header of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    name, header = of_json(content[8 : 8 + size], draw)
    return f"header: {name}", struct.pack("<Q", len(header)) + header + content[8 + size :]


def compressed(pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> Callable[..., tuple[str, bytes]]:
    """Damage what a compressed file holds."""

    def inside(content: bytes, draw: random.Random) -> tuple[str, bytes]:
        plain = unpack(content)
        name, changed = (of_table if draw.random() < 0.5 else of_bytes)(plain, draw)
        return f"inside: {name}", pack(changed)

    return inside


INSIDE: dict[str, Callable[[bytes, random.Random], tuple[str, bytes]]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".yaml": of_yaml,
    ".tsv": of_table,
    ".csv": of_table,
    ".txt": of_table,
    ".zip": of_zip,
    ".xlsx": of_zip,
    ".xml": of_table,
    ".pt": of_weights,
    ".safetensors": of_safetensors,
    ".gz": compressed(gzip.compress, gzip.decompress),
    ".xz": compressed(lzma.compress, lzma.decompress),
    ".bz2": compressed(bz2.compress, bz2.decompress),
}
"""The ending of a name -> how to damage what is inside."""
