"""The declaration of a user's own table: which column holds what, by the names that tables give their columns."""

import json
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

from mclip_kit.config.yaml import parse, suggest
from mclip_kit.data import corpora
from mclip_kit.data.corpora.path_ends import MORE_SUFFIXES
from mclip_kit.data.corpora.records import OpenTable, first_text_line, open_table
from mclip_kit.data.corpora.source import File
from mclip_kit.data.corpora.table_rows import Table
from mclip_kit.data.images import SUFFIXES
from mclip_kit.data.languages import ALIASES, DOUBTFUL, TEACHER_LANGUAGE, normalize_language
from mclip_kit.errors import DataError, RecipeError
from mclip_kit.storage import fetch

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": tuple(
        """image image_path image_file image_name image_filename img img_path img_file img_name picture picture_path
        photo file_name filename file filepath file_path path local_path image_url img_url picture_url url uri
        image_id img_id photo_id picture_id""".split()  # noqa: SIM905
    ),
    "content": ("jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "img_bytes"),
    "text": tuple(
        """caption captions image_caption text txt texts comment comments sentence sentences description descriptions
        raw alt_text alttext alt prompt title""".split()  # noqa: SIM905
    ),
    "language": ("language", "lang", "locale", "language_code", "lang_code"),
    "split": ("split", "subset", "partition"),
}
"""What a column holds -> names that tables give it, in lower case; the first one that a table has is taken."""
VAGUE = {"url", "uri", "file", "filename", "file_name", "filepath", "file_path", "path", "local_path"}
"""Columns that may also say where a text is from."""
NO_LANGUAGES = {"id", "no", "idx", "key", "len", "num", "ref", "row", "src", "tgt", "uid", "uri", "url"}
"""Column names that look like language codes, but seldom are."""
CODE = re.compile(r"[a-z]{2,3}(_[a-z]{2,4})?")
TWO_LETTERS = frozenset(
    """aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
    en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv
    ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne
    ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su
    sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu""".split()  # noqa: SIM905
)
"""ISO 639-1."""
THREE_LETTERS = frozenset({"ast", "azb", "bcl", "ceb", "ckb", "fil", "hsb", "kab", "mai", "nds", "quz", "war", "yue"})
"""Codes of more languages that have captions somewhere, and are no words that columns are called."""
AROUND = re.compile(
    r"(?:captions?|texts?|titles?|descriptions?|sentences?|translations?)[_.](?P<after>.+)|(?P<before>.+)[_.](?:caption|text)s?"
)
"""A column with captions in the language after or before."""
NUMBERED = re.compile(r"(?:captions?|texts?|comments?|sentences?|descriptions?|raw)_?\d+")
TOKEN = re.compile(r"\S+\.\w{3,4}(#\w+)?#\d+[\t ]")
SEEN = 100  # rows of a .jsonl whose keys are its columns
GUIDE = "name them image and caption (and language, split), or after the languages of the texts, such as en and de"

Found = tuple[str, list[str], dict[str, Any]]
"""The reader, the languages, and the reader's options."""


def describe_table(table: Path, languages: list[str], given: dict[str, Any]) -> Found:
    """How a table is read: with pictures and captions, in one or several languages; or with parallel texts.

    Args:
        languages: codes; empty: they are read from the table.
        given: the options that the user has chosen; `tables` has one item, with the path.
    Raises:
        DataError: it cannot be read, or its language column holds something else.
        RecipeError: it is not clear what its columns hold.
    """
    if not fetch(table).is_file():
        what = "is a folder; pictures in a folder are prepared with --folder" if table.is_dir() else "no such file"
        raise DataError(f"{table}: {what}; correct the path after --pairs")
    form = parse(given["tables"][0], Table, "options.tables.0")
    other = _captions_of_another_form(File(table), form)
    if other:
        options: dict[str, Any] = {"captions": [_part(table, other, languages)]}
        lists = {"splits": {"karpathy": str(table.absolute())}} if other == "karpathy" else {}
        return "annotations", languages or [TEACHER_LANGUAGE], options | lists
    names = _names(open_table(File(table), form))
    if not names:
        raise DataError(f"{table}: is empty; give a table with a first line of names and at least one row")
    if given.get("texts"):
        own = given["texts"] if isinstance(given["texts"], dict) else {}
        return "table", languages or list(map(str, own)) or [TEACHER_LANGUAGE], {}
    found = {what: given.get(what) or _first(names, known) for what, known in COLUMNS.items()}
    if found["text"] and any(name.startswith(f"{found['text']}.") for name in names):
        found["text"] = given.get("text")  # an object with a text for each language
    texts = _texts(names, languages, set(filter(None, found.values())))
    image = found["image"]
    if image and not found["text"] and _spelled(image) in VAGUE and not _holds_pictures(File(table), form, image):
        found["image"] = None  # parallel texts with their addresses or files
    if found["content"] and not found["image"]:
        found["image"] = _first(names, ("key", "id", "uid"))
    if (found["image"] or found["content"]) and (found["text"] or texts or languages or _numbered(names, None)):
        return _captions(table, form, names, found, texts, languages)
    return _parallel(table, names, found, texts, languages)


def _part(table: Path, form: str, languages: list[str]) -> dict[str, Any]:
    return {"language": (languages or [TEACHER_LANGUAGE])[0], "format": form, "files": [str(table.absolute())]}


def _captions_of_another_form(file: File, form: Table) -> str | None:
    """The form of captions that are no table: COCO's or Karpathy's JSON, or lines with NAME#N."""
    if form.format or form.header or file.name.lower().endswith((".parquet", ".xlsx", ".xls", ".ods", ".zip", ".tar")):
        return None
    first = first_text_line(file, form)
    if TOKEN.match(first):
        return "numbered"
    if not first.startswith("{") or file.name.lower().endswith((".jsonl", ".ndjson")):
        return None
    try:
        content = json.loads(first)
    except (ValueError, RecursionError):
        content = None  # not one object a line
    content = content if content is not None else file.json()
    images = content.get("images") if isinstance(content, dict) else None
    if isinstance(images, list) and images and isinstance(images[0], dict):
        if "annotations" in content:
            return _coco(file, content["annotations"])
        return "karpathy" if "sentences" in images[0] else None
    return None


def _coco(file: File, annotations: Any) -> str:
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    if isinstance(first, dict) and "caption" not in first:
        raise DataError(f"{file}: COCO's boxes or keypoints, without captions; take its captions_*.json")
    return "coco"


def _names(opened: OpenTable) -> list[str]:
    """The columns; of objects, the keys of the first ones, and those inside them."""
    if opened.names is not None:
        return opened.names
    names: dict[str, None] = {}
    for _, row in islice(opened.read([]), SEEN):
        for key, value in row.items():
            names[key] = None
            if isinstance(value, dict):
                names |= dict.fromkeys(f"{key}.{inner}" for inner in value)
    return list(names)


def _holds_pictures(file: File, form: Table, column: str) -> bool:
    """Whether the first cell of a column names a picture."""
    opened = open_table(file, form)
    pick = opened.pick(column)
    value = next((pick(row) for _, row in opened.read([column])), None)
    return os.path.splitext(str(value).partition("?")[0])[1].lower() in MORE_SUFFIXES


def _spelled(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _first(names: list[str], known: tuple[str, ...]) -> str | None:
    spelled = {_spelled(name): name for name in reversed(names)}
    return next((spelled[name] for name in known if name in spelled), None)


def _texts(names: list[str], languages: list[str], taken: set[str]) -> dict[str, list[str]]:
    """Language -> columns that are called after it, such as `de`, `caption_de` or `de.caption`."""
    found: dict[str, list[str]] = {}
    all_around = {name: match for name in names if (match := AROUND.fullmatch(_spelled(name)))}
    codes = {name: normalize_language(match["after"] or match["before"]) for name, match in all_around.items()}
    sure = any(_is_language(code) and code not in DOUBTFUL for code in codes.values())
    for name in names:
        code = codes.get(name) or normalize_language(name)
        around = name in codes and (sure or code not in DOUBTFUL)  # caption_id alone is a number
        wanted = code in languages if languages else _is_language(code) and (around or code not in NO_LANGUAGES)
        if wanted and name not in taken:
            found.setdefault(code, []).append(name)
    return found


def _is_language(code: str) -> bool:
    first = code.partition("_")[0]
    return (first in TWO_LETTERS or first in THREE_LETTERS or code in ALIASES) and bool(CODE.fullmatch(code))


def _captions(
    table: Path,
    form: Table,
    names: list[str],
    found: dict[str, str | None],
    texts: dict[str, list[str]],
    chosen: list[str],
) -> Found:
    """Pictures with captions: a column for each language, a column with the language beside, or both."""
    options: dict[str, Any] = {key: found[key] for key in ("image", "content", "split", "text")}
    options["image"] = options["image"] or options.pop("content")
    status, key, address = (_first(names, (name,)) for name in ("status", "key", "url"))
    if status and (found["content"] or (key and address)):  # as img2dataset writes it
        options["only"] = {status: "success"}
        options["image"] = options["image"] if found["content"] else key  # its files are called after the key
    if found["text"] and found["language"]:
        codes = chosen or _codes(table, form, found["language"])
        options["language"] = found["language"]
        return "table", list(dict.fromkeys([*codes, *texts])), options | ({"texts": texts} if texts else {})
    first = TEACHER_LANGUAGE if TEACHER_LANGUAGE in chosen or not chosen or texts else chosen[0]
    if chosen and first not in chosen:
        options["text"] = found["text"] = None  # captions in a language that is not chosen
    more = _numbered(names, found["text"]) if not chosen or first in chosen else []
    if more:
        texts = {first: [*more, *texts.get(first, [])]} | {c: several for c, several in texts.items() if c != first}
    there = list(dict.fromkeys([*([first] if found["text"] else []), *texts]))
    lacking = [code for code in chosen if code not in there]
    if lacking:
        raise RecipeError(f"{table}: no column has captions in {lacking[0]}{suggest(lacking[0], names)}")
    languages = sorted(chosen or there, key=lambda code: code != first)
    return "table", languages, options | ({"texts": texts} if texts else {})


def _numbered(names: list[str], taken: str | None) -> list[str]:
    """Columns such as caption_1, caption_2."""
    return [name for name in names if NUMBERED.fullmatch(_spelled(name)) and name != taken]


def _parallel(
    table: Path, names: list[str], found: dict[str, str | None], texts: dict[str, list[str]], languages: list[str]
) -> Found:
    """Texts in several languages that are translations of each other."""
    columns = {code: several[0] for code, several in texts.items()}
    if not languages:
        codes = {normalize_language(name): name for name in names}
        doubtful = [name for code, name in codes.items() if code in DOUBTFUL]
        if doubtful and columns:
            raise RecipeError(f"{table}: is column {doubtful[0]} a language? Name the language columns: --langs en,de")
        others = {c: n for c, n in codes.items() if CODE.fullmatch(c) and c not in NO_LANGUAGES and c not in columns}
        order = list(codes)
        columns = dict(
            sorted((columns | others).items(), key=lambda item: order.index(item[0]) if item[0] in order else 0)
        )
    languages = languages or list(columns)
    if len(languages) < 2 or set(languages) - set(columns):
        _refuse(table, names, found)
    return "table", languages, {"split": found["split"], "texts": {c: columns[c] for c in languages}, "parallel": True}


def _refuse(table: Path, names: list[str], found: dict[str, str | None]) -> None:
    """Say what the columns are called, and how to go on."""
    if any(name.lower().endswith(tuple(SUFFIXES)) for name in names):
        if table.suffix.lower() in (".json", ".jsonl"):
            raise RecipeError(
                f"{table}: its keys are names of pictures, such as {names[0]}; write a list of objects, as in "
                '[{"image": "a.jpg", "caption": "red"}]'
            )
        raise RecipeError(
            f"{table}: its first line is {', '.join(names)}, which are no names of columns; name them: "
            f"--set 'options.tables.0.header=[{', '.join(['image', 'caption', *'cdefgh'][: len(names)])}]'"
        )
    there = ", ".join(names) or "none"
    choice = " ".join(f"--set options.{what}=COLUMN" for what in ("image", "text") if not found[what])
    raise RecipeError(f"{table}: columns are {there}; {GUIDE}; or say which is which: {choice}")


def _codes(table: Path, form: Table, column: str) -> list[str]:
    """The languages that occur in a column, English first."""
    opened = open_table(File(table), form)
    pick = opened.pick(column)
    codes = set()
    for number, row in opened.read([column]):
        value = pick(row)
        if value is None or not str(value).strip():
            continue  # the reader counts it
        code = normalize_language(str(value))
        if code not in codes and not corpora.CODE.fullmatch(code):
            where = f"{table} {opened.unit} {number}: {column} is {value!r}"
            raise DataError(f"{where}, not a code such as en or pt_br; fix it, or choose languages with --langs")
        codes.add(code)
    if not codes:
        raise DataError(f"{table}: column {column} is empty; fill it, or name another: --set options.language=COLUMN")
    return sorted(codes, key=lambda code: (code != TEACHER_LANGUAGE, code))
