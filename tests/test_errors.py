"""Messages of our errors are one printable line, whatever they quote."""

import pytest

from mclip_kit.errors import LONGEST, CheckpointError, first_line

WORDS = "one two three four five six seven eight nine ten " * 8


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("plain", "plain"),
        ("\x1b[1mbold\x1b[0m and \x1b[38;5;9mred\x1b[m", "bold and red"),
        ("a \x1b]8;;http://x.org\x07link\x1b]8;;\x07", "a link"),
        ("\n\n  first \nsecond", "first"),
        ("these differ:\n\tsize of a", "these differ: size of a"),
        ("", "ValueError"),
    ],
)
def test_the_first_line_has_no_terminal_codes(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line


def test_a_long_line_ends_with_a_sentence() -> None:
    whole = "Weights only load failed, as this file has more than weights in it. "
    assert first_line(ValueError(whole + WORDS)) == whole.strip().rstrip(".")


def test_a_long_sentence_ends_with_a_word() -> None:
    line = first_line(ValueError(f"Short. {WORDS}"))
    assert len(line) <= LONGEST
    *words, dots = line.split(" ")
    assert dots == "..."
    assert set(words) <= {"Short.", *WORDS.split()}


def test_a_quoted_message_is_printable() -> None:
    assert str(CheckpointError("x: \x1b[1mdo\x1b[0m\nthis \x00")) == "x: do this \\x00"
