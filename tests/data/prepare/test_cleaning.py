"""What is left out of a corpus, and that everything that is gets counted."""

import sys

import pytest

from mclip_kit.data.corpora import Cleaning
from mclip_kit.data.prepare.cleaning import Cleaner
from mclip_kit.errors import DataError

LANGUAGES = ["en", "de", "zh"]


SPACES = "texts with other white space, now single spaces"
CONTROLS = "texts with control characters, now without"


def cleaner(**rules: object) -> Cleaner:
    return Cleaner(Cleaning.model_validate(rules), LANGUAGES)


def kept_captions(made: Cleaner, *texts: str, language: str = "en") -> list[str]:
    return [text for text in texts if made.keeps_caption("a.jpg", language, text)]


def kept_pairs(made: Cleaner, *pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return [(left, right) for left, right in pairs if made.keeps_pair(("en", left), ("de", right))]


@pytest.mark.parametrize(
    "text", ["a  red\tsquare", " a red\nsquare\r\n", "a\u00a0red\u3000square", "a\u2028red\x85square"]
)
def test_spaces_become_single_ones_and_their_texts_are_counted(text):
    made = cleaner()
    assert made.text(text) == made.text("a red square") == "a red square"
    assert made.counts == {SPACES: 1}


def test_nothing_is_counted_where_nothing_changed():
    made = cleaner()
    for text in ("a red square", "🐕", "می\u200cخواهم", "", "a\u00adb"):
        assert made.text(text) == text
    assert made.counts == {}


REMOVED = ["\x00", "\x07", "\x7f", "\x9f", "\u200b", "\u2060", "\ufeff"]


@pytest.mark.parametrize("character", REMOVED, ids=ascii)
def test_control_characters_are_removed_and_their_texts_counted(character):
    made = cleaner()
    assert made.text(f"{character}a re{character}{character}d square") == "a red square"
    assert made.text(f"a {character} b") == "a b"
    assert made.text("plain") == "plain"
    assert made.counts == {CONTROLS: 2}


@pytest.mark.parametrize("character", REMOVED, ids=ascii)
def test_control_characters_stay_where_the_rule_is_off(character):
    made = cleaner(control=False)
    assert made.text(f"a{character}b") == f"a{character}b"
    assert made.counts == {}


JOINED = ["می\u200cخواهم", "क\u094d\u200dष", "👩\u200d👩\u200d👧", "co\u00adop", "\u202bעברית\u202c"]


@pytest.mark.parametrize("text", JOINED, ids=ascii)
def test_joiners_and_marks_of_direction_stay(text):
    made = cleaner()
    assert made.text(text) == text
    assert made.counts == {}


@pytest.mark.parametrize("control", [True, False])
def test_lone_surrogates_are_removed_whatever_the_rules_say(control):
    made = cleaner(control=control)
    assert made.text("a\ud83d dog\udc00") == "a dog"
    assert made.text("\ud800") == ""
    assert made.text("a 🐕") == "a 🐕"
    assert made.counts == {CONTROLS: 2}


def test_empty_texts_are_always_left_out():
    made = cleaner()
    assert kept_captions(made, "", "a") == ["a"]
    assert kept_pairs(made, ("", "b"), ("a", ""), ("", ""), ("a", "b")) == [("a", "b")]
    assert made.counts == {"captions left empty": 1, "sentence pairs with a side left empty": 3}


def test_repetitions_stay_unless_the_rule_is_on():
    made = cleaner()
    assert kept_captions(made, "a", "a") == ["a", "a"]
    assert kept_pairs(made, ("a", "b"), ("a", "b")) == [("a", "b")] * 2
    assert made.counts == {}


def test_a_caption_that_came_before_goes_if_picture_and_language_are_the_same():
    made = cleaner(duplicates=True)
    captions = [("a", "en", "x"), ("a", "en", "x"), ("b", "en", "x"), ("a", "de", "x"), ("a", "en", "y")]
    assert [made.keeps_caption(*caption) for caption in captions] == [True, False, True, True, True]
    assert made.counts == {"duplicate captions": 1}


def test_a_pair_that_came_before_goes_if_both_sides_and_languages_are_the_same():
    made = cleaner(duplicates=True)
    assert kept_pairs(made, ("a", "b"), ("a", "b"), ("a", "c"), ("b", "a")) == [("a", "b"), ("a", "c"), ("b", "a")]
    assert made.keeps_pair(("en", "a"), ("zh", "b"))
    assert made.counts == {"duplicate sentence pairs": 1}


def test_texts_that_another_rule_left_out_do_not_count_as_before():
    made = cleaner(duplicates=True, ratio=2)
    assert kept_pairs(made, ("a", "bbb"), ("a", "bbb")) == []
    assert made.counts == {"sentence pairs of unlike lengths": 2}


def test_texts_have_at_least_and_at_most_so_many_characters():
    made = cleaner(characters=[2, 4])
    assert kept_captions(made, "a", "ab", "abcd", "abcde", "狗狗") == ["ab", "abcd", "狗狗"]
    assert made.counts == {"captions of too few characters": 1, "captions of too many characters": 1}
    assert kept_pairs(made, ("ab", "a"), ("abcde", "ab"), ("ab", "abcd")) == [("ab", "abcd")]
    assert made.counts == {
        "captions of too few characters": 1,
        "captions of too many characters": 1,
        "sentence pairs with a side of too few characters": 1,
        "sentence pairs with a side of too many characters": 1,
    }


def test_sides_of_a_pair_have_like_lengths():
    made = cleaner(ratio=2.5)
    pairs = [("ab", "abcde"), ("abcde", "ab"), ("ab", "abcdef"), ("abcdef", "ab")]
    assert kept_pairs(made, *pairs) == pairs[:2]
    assert made.counts == {"sentence pairs of unlike lengths": 2}


def test_a_text_that_breaks_several_rules_is_counted_once():
    made = cleaner(duplicates=True, characters=[2, 9], ratio=2)
    assert kept_pairs(made, ("a", "abcdefghijkl"), ("", "abcdefghijkl")) == []
    assert made.counts == {
        "sentence pairs with a side of too few characters": 1,
        "sentence pairs with a side left empty": 1,
    }


ENGLISH, GERMAN, CHINESE = (
    "two dogs are running along the beach",
    "zwei Hunde laufen am Strand entlang",
    "两只狗沿着海滩奔跑",
)


def test_texts_in_another_language_are_left_out():
    pytest.importorskip("py3langid")
    made = cleaner(language=True)
    assert kept_captions(made, ENGLISH, GERMAN, CHINESE) == [ENGLISH]
    assert kept_captions(made, ENGLISH, GERMAN, CHINESE, language="zh") == [CHINESE]
    assert kept_pairs(made, (ENGLISH, GERMAN), (ENGLISH, ENGLISH), (GERMAN, GERMAN)) == [(ENGLISH, GERMAN)]
    assert made.counts == {"captions in another language": 4, "sentence pairs with a side in another language": 2}


def test_languages_are_not_looked_at_unless_the_rule_is_on():
    assert kept_captions(cleaner(), GERMAN) == [GERMAN]


def test_a_language_that_the_detector_does_not_know_is_named():
    pytest.importorskip("py3langid")
    with pytest.raises(DataError, match=r"cleaning\.language: py3langid: .*xx.*set it to false"):
        Cleaner(Cleaning(language=True), ["en", "xx"])


def test_without_a_detector_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(DataError, match=r"pip install py3langid, or prepare with --set cleaning\.language=false"):
        cleaner(language=True)
    cleaner()
