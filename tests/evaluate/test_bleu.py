"""BLEU cuts each script as it is written, and a perfect translation has 100."""

import pytest
from sacrebleu.metrics.bleu import BLEU

from mclip_kit.evaluate import bleu
from mclip_kit.evaluate.bleu import score, tokenizer

TEXTS = {
    "zh": ["一個穿紅衣服的男人在街上騎腳踏車", "兩隻狗在海灘上奔跑"],
    "th": ["ผู้ชายสวมเสื้อสีแดงขี่จักรยานบนถนน", "สุนัขสองตัววิ่งบนชายหาด"],
    "ja": ["赤い服を着た男性が通りで自転車に乗っています", "二匹の犬が浜辺を走っている"],
    "ko": ["빨간 옷을 입은 남자가 거리에서 자전거를 타고 있다", "개 두 마리가 해변을 달린다"],
    "my": ["အနီရောင်ဝတ်စုံဝတ်ထားသော အမျိုးသားတစ်ဦး"],
    "bo": ["བོད་ཀྱི་སྐད་ཡིག་སློབ་སྦྱོང་བྱེད་པ།"],
    "km": ["បុរសម្នាក់ពាក់អាវក្រហមជិះកង់"],
    "lo": ["ຜູ້ຊາຍໃສ່ເສື້ອສີແດງຂີ່ລົດຖີບ"],
    "de": ["Ein Mann in Rot fährt Rad .", "Zwei Hunde rennen am Strand ."],
    "hi": ["लाल कपड़े पहने एक आदमी सड़क पर साइकिल चला रहा है"],
    "ar": ["رجل يرتدي ملابس حمراء يركب دراجة في الشارع"],
    "jv": ["ꦱꦼꦏꦧꦺꦃꦲꦤꦏ꧀ꦲꦏꦤ꧀"],
}
SPELLINGS = {
    "zh": "zh zh-CN zh_tw zh-TW zh_hant zho_Hans zho_Hant yue yue_Hant cmn lzh wuu jp_Hans",
    "char": "th tha tha_Thai lo lao km khm my mya bo bod dz shn jv_Java",
    "ja-mecab": "ja jp jpn jpn_Jpan ja-JP",
    "ko-mecab": "ko kr kor kor_Hang",
    "13a": "en de sr_Latn azb pt-BR zho_Latn",
}


@pytest.mark.parametrize(("name", "codes"), SPELLINGS.items())
def test_a_code_decides_by_its_language_or_its_script(name: str, codes: str) -> None:
    assert {code: tokenizer(code, []) for code in codes.split()} == dict.fromkeys(codes.split(), name)


@pytest.mark.parametrize("language", TEXTS)
def test_a_perfect_translation_has_100_under_any_code(language: str) -> None:
    texts = TEXTS[language]
    for code in (language, "xx"):
        assert score(texts, texts, code).bleu == pytest.approx(100)
        assert score(["?"] * len(texts), texts, code).bleu < 20


@pytest.mark.parametrize(
    ("language", "name"),
    [
        ("zh", "zh"),
        ("ja", "ja-mecab"),
        ("ko", "ko-mecab"),
        ("th", "char"),
        ("jv", "char"),
        ("de", "13a"),
        ("hi", "13a"),
    ],
)
def test_where_the_code_does_not_tell_the_letters_of_the_references_do(language: str, name: str) -> None:
    assert tokenizer("xx", TEXTS[language]) == name


def test_the_signature_names_the_tokenizer() -> None:
    for language, name in (("zh-TW", "zh"), ("lo", "char"), ("de", "13a")):
        found = score(TEXTS["de"], TEXTS["de"], language)
        assert f"|tok:{name}|" in found.bleu_signature
        assert found.wanted == ""


@pytest.mark.parametrize(("language", "extra"), [("ja", "ja"), ("ko", "ko")])
def test_without_its_packages_a_tokenizer_gives_way_to_characters_and_says_so(language: str, extra: str) -> None:
    found = score(TEXTS[language], TEXTS[language], language)
    try:
        BLEU(tokenize=f"{extra}-mecab")
    except RuntimeError:
        assert ("tok:char" in found.bleu_signature, found.wanted) == (True, extra)
    else:
        assert (f"tok:{extra}-mecab" in found.bleu_signature, found.wanted) == (True, "")


def test_tables_of_scripts_do_not_contradict_each_other() -> None:
    for table in (bleu.BY_LANGUAGE, bleu.BY_SUBTAG, bleu.BY_NAME):
        codes = [code for own in table.values() for code in own.split()]
        assert len(codes) == len(set(codes))
