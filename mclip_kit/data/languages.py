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
        f"{language}{mark}{region.title() if len(region) == 4 else region.upper()}"
        for alias in others
        if "_" in alias
        for mark in "_-"
        for language, region in [alias.split("_")]
    ]
    return [code, *others, *cased]


_CODES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so
sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
ast azb ceb ckb fil gsw haw hsb ilo kab mni nds quz scn sco war wuu yue
"""
KNOWN_CODES = frozenset(_CODES.split())
"""ISO 639-1, and the codes of three letters that corpora use: others are more often words, such as `alt` or `seg`."""

DOUBTFUL = frozenset({"id", "no"})
"""Codes that are more often the name of a column or field with a number, so they count only where they are wanted."""


def is_language(code: str) -> bool:
    """Whether a code, of a file or a column, is that of a language: `de`, `JP`, `pt-BR`, `sr_Latn`.

    Example:
        >>> [code for code in ("de", "pt-BR", "zh_Hant", "alt", "x") if is_language(code)]
        ['de', 'pt-BR', 'zh_Hant']
    """
    language, mark, region = normalize_language(code).partition("_")
    return language in KNOWN_CODES and (not mark or (region.isalnum() and len(region) in (2, 3, 4)))


NAMES = dict(
    pair.split("=")
    for pair in """
    af=Afrikaans am=Amharic ar=Arabic ast=Asturian az=Azerbaijani be=Belarusian bg=Bulgarian bn=Bengali br=Breton
    bs=Bosnian ca=Catalan ceb=Cebuano cs=Czech cy=Welsh da=Danish de=German el=Greek en=English eo=Esperanto es=Spanish
    et=Estonian eu=Basque fa=Persian fi=Finnish fil=Filipino fr=French fy=Frisian ga=Irish gd=Gaelic gl=Galician
    gu=Gujarati ha=Hausa haw=Hawaiian he=Hebrew hi=Hindi hr=Croatian ht=Haitian hu=Hungarian hy=Armenian id=Indonesian
    ig=Igbo is=Icelandic it=Italian ja=Japanese jv=Javanese ka=Georgian kk=Kazakh km=Khmer kn=Kannada ko=Korean
    ku=Kurdish ky=Kyrgyz la=Latin lb=Luxembourgish lo=Lao lt=Lithuanian lv=Latvian mg=Malagasy mi=Maori mk=Macedonian
    ml=Malayalam mn=Mongolian mr=Marathi ms=Malay mt=Maltese my=Burmese nb=Norwegian ne=Nepali nl=Dutch nn=Nynorsk
    no=Norwegian oc=Occitan or=Odia pa=Punjabi pl=Polish ps=Pashto pt=Portuguese quz=Quechua ro=Romanian ru=Russian
    sa=Sanskrit sd=Sindhi si=Sinhala sk=Slovak sl=Slovenian so=Somali sq=Albanian sr=Serbian su=Sundanese sv=Swedish
    sw=Swahili ta=Tamil te=Telugu tg=Tajik th=Thai tk=Turkmen tl=Filipino tr=Turkish tt=Tatar ug=Uyghur uk=Ukrainian
    ur=Urdu uz=Uzbek vi=Vietnamese war=Waray wo=Wolof xh=Xhosa yi=Yiddish yo=Yoruba yue=Cantonese zh=Chinese zu=Zulu
    """.split()  # noqa: SIM905
)
"""Code -> the language's English name, of the languages of the common corpora."""


def language_name(code: str) -> str:
    """The English name of a language, without its region or script; empty if it is not known.

    >>> language_name("pt-BR"), language_name("xx")
    ('Portuguese', '')
    """
    return NAMES.get(normalize_language(code).partition("_")[0], "")


def named_language(code: str) -> str:
    """A language, or a direction of translation, as people read it: its name and its code.

    >>> named_language("de"), named_language("de-en"), named_language("zh-TW"), named_language("xx")
    ('German (de)', 'German to English (de-en)', 'Chinese (zh-TW)', 'xx')
    """
    source, mark, target = code.partition("-")
    if mark and target.islower() and language_name(source) and language_name(target):
        return f"{language_name(source)} to {language_name(target)} ({code})"
    name = language_name(code)
    return f"{name} ({code})" if name else code
