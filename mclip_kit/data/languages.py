"""Language codes with one spelling each: ISO 639-1 if the language has such a code."""

TEACHER_LANGUAGE = "en"
"""The language of CLIP's own text tower."""

ALIASES = {
    "jp": "ja",
    "cn": "zh",
    "zh_cn": "zh",
    "zh_hans": "zh",
    "zhs": "zh",
    "cz": "cs",
    "kr": "ko",
    "ua": "uk",
    "iw": "he",
    "in": "id",
    "tl": "fil",
    "nb": "no",
}
"""Another spelling, in lower case and with underscores -> the code."""


def normalize_language(code: str) -> str:
    """The one spelling of a code: `jp` -> `ja`, `zh-CN` -> `zh`, `pt-BR` -> `pt_br`."""
    spelled = code.strip().lower().replace("-", "_")
    return ALIASES.get(spelled, spelled)


def language_spellings(code: str) -> list[str]:
    """The spellings of a code that file names use; the code itself is the first."""
    others = [alias for alias, meant in ALIASES.items() if meant == code]
    cased = [
        f"{language}{mark}{region.upper()}"
        for alias in others
        if "_" in alias
        for mark in "_-"
        for language, region in [alias.split("_")]
    ]
    return [code, *others, *cased]
