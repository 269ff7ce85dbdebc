"""What is left out of a corpus, and how often."""

import re
from collections import Counter
from importlib import import_module
from typing import Any

from mclip_kit.data.corpora import Cleaning
from mclip_kit.data.sequences import Deduplicator
from mclip_kit.errors import DataError, first_line

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff]+")  # joiners stay: Persian, Hindi and emoji need them
SURROGATES = re.compile("[\ud800-\udfff]+")  # a JSON file can smuggle them in; UTF-8 has no bytes for them


class Cleaner:
    """Normalises texts and says which stay.

    Args:
        rules: a corpus's.
        languages: those that the detector chooses from.
    Raises:
        DataError: texts are to be checked for their language, and no detector is installed.
    """

    def __init__(self, rules: Cleaning, languages: list[str]) -> None:
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self._detect = _detector(languages) if rules.language else None
        self._pairs, self._captions = Deduplicator(), Deduplicator()

    def text(self, text: str) -> str:
        """A text with single spaces and, as the rules say, without control characters."""
        plain = " ".join(text.split())
        if plain.isprintable():  # as nearly all are: then nothing below is in it
            return plain
        clean = SURROGATES.sub("", plain)
        clean = " ".join(CONTROL.sub("", clean).split()) if self.rules.control else clean
        self.counts["control characters removed"] += clean != plain
        return clean

    def keeps_caption(self, image: str, language: str, text: str) -> bool:
        """Whether a caption stays; counts the reason if not."""
        reason = self._wrong(language, text)
        if not reason and self.rules.duplicates and not self._captions.add(f"{image}\n{language}\n{text}"):
            reason = "duplicate captions"
        return self._verdict(reason)

    def keeps_pair(self, source: tuple[str, str], target: tuple[str, str]) -> bool:
        """Whether a pair of (language, text) stays; counts the reason if not."""
        reason = self._wrong(*source) or self._wrong(*target)
        if not reason and self.rules.ratio:
            short, long = sorted((len(source[1]), len(target[1])))
            reason = "unlike lengths" if long > self.rules.ratio * short else ""
        if not reason and self.rules.duplicates and not self._pairs.add("\n".join((*source, *target))):
            reason = "duplicate pairs"
        return self._verdict(reason)

    def _wrong(self, language: str, text: str) -> str:
        if not text:
            return "empty"
        if self.rules.characters:
            least, most = self.rules.characters
            if not least <= len(text) <= most:
                return "too few characters" if len(text) < least else "too many characters"
        if self._detect and self._detect(text) != language:
            return "another language"
        return ""

    def _verdict(self, reason: str) -> bool:
        if reason:
            self.counts[reason] += 1
        return not reason


def _detector(languages: list[str]) -> Any:
    """What tells a text's language, among some: py3langid."""
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
