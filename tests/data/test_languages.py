"""One spelling for each language."""

import pytest

from mclip_kit.data.languages import (
    ALIASES,
    KNOWN_CODES,
    NAMES,
    is_language,
    language_name,
    language_spellings,
    named_language,
    normalize_language,
)

SAME = {
    "en": ["en", "EN", " en\n"],
    "ja": ["ja", "jp", "JP"],
    "zh": ["zh", "cn", "zh-CN", "zh_CN", "zh_cn", "zh-Hans", "zhs"],
    "zh_tw": ["zh-TW", "zh_tw"],
    "pt_br": ["pt-BR", "pt_br"],
    "cs": ["cs", "cz"],
    "he": ["iw"],
    "fil": ["tl", "fil"],
}


@pytest.mark.parametrize(("spelling", "code"), [(other, code) for code, others in SAME.items() for other in others])
def test_a_code_has_one_spelling(spelling, code):
    assert normalize_language(spelling) == code


def test_the_one_spelling_is_its_own():
    assert {code: normalize_language(code) for code in ALIASES.values()} == {code: code for code in ALIASES.values()}


def test_files_may_spell_a_code_otherwise():
    assert language_spellings("en") == ["en"]
    assert language_spellings("ja") == ["ja", "jp"]
    assert {"zh", "cn", "zh_cn", "zh_CN", "zh-CN", "zhs"} <= set(language_spellings("zh"))


@pytest.mark.parametrize("code", sorted(set(ALIASES.values())))
def test_every_spelling_means_the_code_and_the_code_comes_first(code):
    assert language_spellings(code)[0] == code
    assert {normalize_language(spelling) for spelling in language_spellings(code)} == {code}
    assert len(set(language_spellings(code))) == len(language_spellings(code))


def test_scripts_are_spelled_with_a_capital():
    assert {"zh_Hans", "zh-Hans", "zh_CN"} <= {*language_spellings("zh")}


@pytest.mark.parametrize("code", ["de", "JP", "pt-BR", "zh_Hant", "sr-Latn", "azb", "es_419", "no"])
def test_codes_of_languages(code):
    assert is_language(code)


@pytest.mark.parametrize("code", ["", "x", "seg", "alt", "jpg", "0001", "caption", "de_", "de_x", "de_latin"])
def test_other_endings_are_no_languages(code):
    assert not is_language(code)


def test_every_name_is_of_a_known_code():
    assert not set(NAMES) - KNOWN_CODES - {"quz"}
    assert {"ja", "zh", "de", "sw", "quz"} <= set(NAMES)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("pt_br", "Portuguese (pt_br)"),
        ("jp", "Japanese (jp)"),
        ("en-zh", "English to Chinese (en-zh)"),
        ("pt_br-en", "Portuguese to English (pt_br-en)"),
        ("mean", "mean"),
        ("", ""),
    ],
)
def test_codes_in_words(code, shown):
    assert named_language(code) == shown


def test_a_name_has_no_region():
    assert language_name("zh_tw") == language_name("zh-CN") == "Chinese"
