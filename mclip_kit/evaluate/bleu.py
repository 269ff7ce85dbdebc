"""BLEU and chrF of a corpus by sacreBLEU; BLEU's tokenizer goes by the script of the language.

BLEU counts words. Where a script has no spaces between words, sacreBLEU's default tokenizer takes a sentence for one
word, and even a perfect translation has BLEU 0.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from mclip_kit.data.languages import normalize_language

SPACED, CHARACTERS = "13a", "char"
BY_LANGUAGE = {
    "zh": "zh zho chi cmn yue wuu gan hsn cjy lzh",
    "ja-mecab": "ja jpn",
    "ko-mecab": "ko kor",
    CHARACTERS: "th tha lo lao km khm my mya bur bo bod tib dz dzo shn ksw mnw",
}
BY_SUBTAG = {
    "zh": "hans hant hani hanb",
    "ja-mecab": "jpan hira kana hrkt",
    "ko-mecab": "kore hang",
    CHARACTERS: "thai laoo khmr mymr tibt java bali lana talu tavt tale yiii",
}
BY_NAME = {
    "zh": "CJK KANGXI IDEOGRAPHIC BOPOMOFO",
    "ja-mecab": "HIRAGANA KATAKANA HALFWIDTH",
    "ko-mecab": "HANGUL",
    CHARACTERS: "THAI LAO KHMER MYANMAR TIBETAN JAVANESE BALINESE TAI NEW YI",
}
"""Tokenizer -> ISO 639 codes; ISO 15924 codes, the second part of a language code such as zho_Hant; first words of
Unicode's names of letters."""
MECAB = {"ja-mecab": "ja", "ko-mecab": "ko"}
"""Tokenizers that need packages -> sacreBLEU's extra with them."""
KANA = 0.05  # share of the letters of a Japanese text, at least


def _inverted(table: dict[str, str]) -> dict[str, str]:
    return {code: tokenizer for tokenizer, codes in table.items() for code in codes.split()}


LANGUAGES, SUBTAGS, NAMES = _inverted(BY_LANGUAGE), _inverted(BY_SUBTAG), _inverted(BY_NAME)


@dataclass(frozen=True)
class Score:
    """Scores of translations into one language, and sacreBLEU's signatures, which say how they were computed.

    Attributes:
        wanted: the extra of sacreBLEU without which BLEU counted characters, not words; empty: none is missing.
    """

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    wanted: str = ""


def score(hypotheses: Sequence[str], references: Sequence[str], language: str) -> Score:
    """BLEU and chrF of a corpus (Papineni et al. 2002; Popovic 2015; Post 2018, arXiv 1804.08771).

    >>> from mclip_kit.evaluate.bleu import score
    >>> lines = ["一個穿紅衣服的男人在街上騎腳踏車", "兩隻狗在海灘上奔跑"]
    >>> round(score(lines, lines, "zh-TW").bleu)
    100

    Args:
        hypotheses, references: N translations, and one reference each.
        language: of both; it decides BLEU's tokenizer, see `tokenizer`.
    """
    name = tokenizer(language, references)
    bleu, chrf = metric(name), CHRF()
    of_bleu, of_chrf = (own.corpus_score(list(hypotheses), [list(references)]).score for own in (bleu, chrf))
    signature = str(bleu.get_signature())
    wanted = MECAB[name] if name in MECAB and f"tok:{CHARACTERS}" in signature else ""
    return Score(of_bleu, of_chrf, signature, str(chrf.get_signature()), wanted)


def metric(name: str) -> BLEU:
    """BLEU with a tokenizer of sacreBLEU; with characters instead, where the packages of the tokenizer are missing."""
    try:
        return BLEU(tokenize=name)
    except (RuntimeError, AssertionError):  # sacreBLEU raises these without MeCab, or with another dictionary
        return BLEU(tokenize=CHARACTERS)


def tokenizer(language: str, references: Sequence[str]) -> str:
    """The name of sacreBLEU's tokenizer for a language, by its script.

    >>> from mclip_kit.evaluate.bleu import tokenizer
    >>> [tokenizer(code, []) for code in ("de", "zh-TW", "tha_Thai", "ja")]
    ['13a', 'zh', 'char', 'ja-mecab']

    Args:
        language: a code, in any spelling; a script in it (`zho_Hant`, `sr_Latn`) decides.
        references: they decide by most of their letters, where the code is not known to be written without spaces.
    """
    first, *subtags = normalize_language(language).split("_")
    for subtag in subtags:
        if len(subtag) == 4 and subtag.isalpha():
            return SUBTAGS.get(subtag, SPACED)
    return LANGUAGES.get(first) or _tokenizer_of_letters(references)


def _tokenizer_of_letters(texts: Sequence[str]) -> str:
    """The tokenizer for most letters of some texts."""
    letters = Counter(letter for text in texts for letter in text if letter.isalpha())
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        counts[NAMES.get(unicodedata.name(letter, "").split(" ")[0].split("-")[0], SPACED)] += count
    if counts["ja-mecab"] > KANA * letters.total():  # most letters of Japanese may be Han
        counts["ja-mecab"] += counts.pop("zh", 0)
    return counts.most_common(1)[0][0] if counts else SPACED
