"""Scripts of texts, by the names of Unicode's characters, and those that languages are written in."""

import unicodedata

OF_LANGUAGE = {
    "Arabic": "ar ckb fa ks ku ps sd ug ur az_arab",
    "Armenian": "hy",
    "Bengali": "as bn mni",
    "Cyrillic": "ab av ba be bg ce cv kk kv ky mk mn os ru sr tg tt tk uk uz",
    "Devanagari": "hi mr ne sa mai bho",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Hangul": "ko",
    "Hebrew": "he yi",
    "Hiragana": "ja",
    "Katakana": "ja",
    "Cjk": "ja yue wuu zh zh_cn zh_tw zh_hans zh_hant",
    "Kannada": "kn",
    "Khmer": "km",
    "Lao": "lo",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Oriya": "or",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
    "Tibetan": "bo dz",
    "Thaana": "dv",
}
"""Script, as in Unicode's names of characters -> languages; all others are written in Latin."""
SAID = {"Cjk": "Chinese"}


def scripts_of(text: str) -> list[str]:
    """The scripts of a text's letters, most frequent first.

    >>> scripts_of("красный apple 🍎"), scripts_of("红苹果")
    (['Cyrillic', 'Latin'], ['Chinese'])
    """
    counts: dict[str, int] = {}
    for letter in filter(str.isalpha, text):
        first = unicodedata.name(letter, "?").split(maxsplit=1)[0].capitalize()
        name = SAID.get(first, first)
        counts[name] = counts.get(name, 0) + 1
    known = {SAID.get(name, name) for name in OF_LANGUAGE} | {"Latin"}
    return [name for name in sorted(counts, key=lambda name: -counts[name]) if name in known]


def written_in(language: str) -> list[str]:
    """The scripts of a language; Latin if it has no other.

    >>> written_in("ja"), written_in("sr"), written_in("de")
    (['Hiragana', 'Katakana', 'Chinese'], ['Cyrillic', 'Latin'], ['Latin'])
    """
    plain = language.replace("-", "_").lower()
    codes = {plain, plain.split("_", 1)[0]}
    found = [SAID.get(script, script) for script, languages in OF_LANGUAGE.items() if codes & set(languages.split())]
    both = codes & {"sr", "az", "uz", "tk", "ku", "tt"} or "latn" in plain
    return [*found, "Latin"] if both or not found else found
