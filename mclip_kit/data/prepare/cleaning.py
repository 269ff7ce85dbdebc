"""Decides which texts of a corpus are left out, and counts them by reason."""

import re
from collections import Counter
from importlib import import_module
from typing import Any

from mclip_kit.data.corpora import Cleaning
from mclip_kit.data.sequences import Deduplicator
from mclip_kit.errors import DataError, first_line

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff]+")  # joiners stay: Persian, Hindi and emoji need them
SURROGATES = re.compile("[\ud800-\udfff]+")  # JSON escapes can produce them; UTF-8 cannot encode them


class Cleaner:
    """Normalises texts and decides which ones are kept.

    Attributes:
        counts: reason -> number of texts that were left out or changed.

    Args:
        rules: the corpus's `cleaning`.
        languages: those that the language detector chooses from.
    Raises:
        DataError: the rules check languages, and no detector is installed.
    """

    def __init__(self, rules: Cleaning, languages: list[str]) -> None:
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self._detect = _detector(languages) if rules.language else None
        self._pairs, self._captions = Deduplicator(), Deduplicator()

    def text(self, text: str) -> str:
        """The text with single spaces and, if the rules say so, without control characters."""
        plain = " ".join(text.split())
        if plain != text:
            self.counts["texts with other white space, now single spaces"] += 1
        if plain.isprintable():  # as nearly all texts are: they hold nothing to remove
            return plain
        clean = SURROGATES.sub("", plain)
        clean = " ".join(CONTROL.sub("", clean).split()) if self.rules.control else clean
        if clean != plain:
            self.counts["texts with control characters, now without"] += 1
        return clean

    def keeps_caption(self, image: str, language: str, text: str, reason: str | None = None) -> bool:
        """Whether a caption is kept; if not, its reason is counted.

        Args:
            reason: what `problem` says of the text; None: it is asked.
        """
        reason = self.problem(language, text) if reason is None else reason
        if reason:
            return self._count(f"captions {reason}")
        seen = self.rules.duplicates and not self._captions.add(f"{image}\n{language}\n{text}")
        return self._count("duplicate captions" if seen else "")

    def keeps_pair(self, source: tuple[str, str], target: tuple[str, str], reason: str | None = None) -> bool:
        """Whether a pair of (language, text) is kept; if not, its reason is counted.

        Args:
            reason: what `problem` says of the source, or else of the target; None: it is asked.
        """
        reason = self.problem(*source) or self.problem(*target) if reason is None else reason
        reason = f"sentence pairs with a side {reason}" if reason else ""
        if not reason and self.rules.ratio:
            short, long = sorted((len(source[1]), len(target[1])))
            reason = "sentence pairs of unlike lengths" if long > self.rules.ratio * short else ""
        if not reason and self.rules.duplicates and not self._pairs.add("\n".join((*source, *target))):
            reason = "duplicate sentence pairs"
        return self._count(reason)

    def problem(self, language: str, text: str) -> str:
        """Why a text is left out; empty if it is kept."""
        if not text:
            return "left empty"
        if self.rules.characters:
            least, most = self.rules.characters
            if not least <= len(text) <= most:
                return "of too few characters" if len(text) < least else "of too many characters"
        if self._detect and self._detect(text) != language:
            return "in another language"
        return ""

    def _count(self, reason: str) -> bool:
        """Count the reason, if there is one; whether there is none."""
        if reason:
            self.counts[reason] += 1
        return not reason


def _detector(languages: list[str]) -> Any:
    """A function from a text to its language, one of `languages`: py3langid."""
    try:
        langid = import_module("py3langid")
    except ModuleNotFoundError:
        raise DataError(
            "cleaning.language needs a detector: pip install py3langid, or prepare with --set cleaning.language=false"
        ) from None
    try:
        langid.set_languages(languages)
    except ValueError as error:
        raise DataError(f"cleaning.language: py3langid: {first_line(error)}; set it to false") from None
    return lambda text: langid.classify(text)[0]
