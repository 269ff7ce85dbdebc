"""What a vocabulary cannot spell: counted by language, warned of, and refused."""

import numpy as np
import pytest

from mclip_kit.data import unknown
from mclip_kit.data.unknown import SAMPLE, check_unknown, unknown_shares
from mclip_kit.errors import DataError


def test_special_tokens_do_not_count_and_languages_are_apart():
    tokens = [np.array(ids) for ids in ([0, 3, 4, 5, 6, 2], [0, 3, 2], [0, 2], [0, 9, 3, 2])]
    assert unknown_shares(tokens, ["de", "en", "zh"], np.array([0, 1, 1, 0]), 3) == {"de": 2 / 6, "en": 1.0}


def test_a_tokenizer_without_unknown_pieces_has_none():
    assert unknown_shares([np.array([0, 3, 2])], ["en"], np.array([0]), None) == {}


def test_many_rows_are_sampled_evenly():
    read = []

    class Tokens(list):
        def __getitem__(self, row):
            read.append(row)
            return np.array([0, 3 if row % 2 else 4, 5, 2])

    count = 10 * SAMPLE + 7
    shares = unknown_shares(Tokens(), ["en"], np.zeros(count, int), 3)
    assert 0.9 * SAMPLE < len(read) <= SAMPLE
    assert max(read) > 0.99 * count
    assert shares["en"] == pytest.approx(0.25, abs=0.01)


def test_each_language_has_a_sample_of_its_own(monkeypatch):
    monkeypatch.setattr(unknown, "SAMPLE", 7)
    languages_N = np.random.default_rng(0).choice(4, 40_000, p=[0.6, 0.3999, 0.0001, 0])  # several blocks
    found = unknown._samples(languages_N, 5)
    for number in range(5):
        every = np.flatnonzero(languages_N == number)
        assert found[number] == every[:: max(1, -(-len(every) // 7))].tolist()


@pytest.mark.parametrize(("share", "warned", "refused"), [(0.02, 0, 0), (0.021, 1, 0), (0.2, 1, 0), (0.201, 0, 1)])
def test_bounds_of_warning_and_error(share, warned, refused):
    lines: list[str] = []
    shares, message = {"en": 0.0, "zh": share}, ""
    try:
        check_unknown(shares, 0.2, "data.max_unknown", "take another", lines.append)
    except DataError as error:
        message = str(error)
    assert len(lines) == warned
    assert bool(message) == bool(refused)
    for said in (*lines, message):
        assert not said or ("zh" in said and f"{share:.1%}" in said and "take another" in said)
    assert not message or message.endswith("or accept it with --set data.max_unknown=1")
