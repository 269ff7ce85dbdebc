"""Which rows come when: once an epoch, in sampled shares, by length, and the same again from the same seed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mclip_kit.data import batching
from mclip_kit.data.batching import Plan, language_shares, pad

ROWS = 1000


def columns(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Languages in shares of about 70, 25 and 5 percent, and lengths of 3 to 60 tokens."""
    random = np.random.default_rng(seed)
    return random.choice(3, ROWS, p=[0.7, 0.25, 0.05]), random.integers(3, 61, ROWS)


def drawn(plan: Plan, epoch: int = 0) -> np.ndarray:
    return np.concatenate(plan.epoch(epoch))


@pytest.mark.parametrize("monolingual", [False, True])
def test_each_row_comes_at_most_once_an_epoch(monolingual):
    rows = drawn(Plan(*columns(), 32, monolingual=monolingual))
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(ROWS))


def test_only_what_fills_no_batch_is_left_out():
    assert len(drawn(Plan(*columns(), 32))) == ROWS - ROWS % 32
    assert sorted(drawn(Plan(*columns(), 50))) == list(range(ROWS))


def test_monolingual_batches_leave_out_less_than_a_batch_a_language():
    languages_N, lengths_N = columns()
    counts = np.bincount(languages_N[drawn(Plan(languages_N, lengths_N, 32, monolingual=True))])
    assert counts.tolist() == [count - count % 32 for count in np.bincount(languages_N)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("monolingual", [False, True])
def test_every_batch_is_full(temperature, monolingual):
    plan = Plan(*columns(), 24, temperature, monolingual)
    assert {len(batch) for epoch in range(3) for batch in plan.epoch(epoch)} == {24}


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("monolingual", [False, True])
def test_every_epoch_has_as_many_batches(temperature, monolingual):
    plan = Plan(*columns(), 24, temperature, monolingual)
    assert len({len(plan.epoch(epoch)) for epoch in range(5)}) == 1


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_an_epoch_is_a_function_of_seed_and_number(temperature):
    first = Plan(*columns(), 32, temperature, seed=5)
    again = Plan(*columns(), 32, temperature, seed=5)
    again.epoch(0)
    np.testing.assert_array_equal(first.epoch(3), again.epoch(3))


def test_epochs_and_seeds_differ():
    plan = Plan(*columns(), 32, seed=5)
    assert drawn(plan, 0).tolist() != drawn(plan, 1).tolist()
    assert drawn(plan).tolist() != drawn(Plan(*columns(), 32, seed=6)).tolist()


def test_what_is_left_out_differs_between_epochs():
    plan = Plan(*columns(), 300)
    assert set(drawn(plan, 0)) != set(drawn(plan, 1))


def test_monolingual_batches_hold_one_language():
    languages_N, lengths_N = columns()
    batches = Plan(languages_N, lengths_N, 16, monolingual=True).epoch(0)
    assert all(len(set(languages_N[batch])) == 1 for batch in batches)
    assert {languages_N[batch][0] for batch in batches} == {0, 1, 2}


def test_monolingual_batches_of_all_languages_are_mixed():
    languages_N, lengths_N = columns()
    order = [languages_N[batch[0]] for batch in Plan(languages_N, lengths_N, 16, monolingual=True).epoch(0)]
    assert order != sorted(order)


def padding(batches: list[np.ndarray], lengths_N: np.ndarray) -> int:
    return sum(int((lengths_N[batch].max() - lengths_N[batch]).sum()) for batch in batches)


def test_length_buckets_pad_less_than_random_batches():
    languages_N, lengths_N = columns()
    bucketed = Plan(languages_N, lengths_N, 20).epoch(0)
    random = Plan(languages_N, np.ones_like(lengths_N), 20).epoch(0)
    assert padding(bucketed, lengths_N) < padding(random, lengths_N) / 10


def test_batches_of_short_and_long_rows_are_mixed():
    languages_N, lengths_N = columns()
    means = [lengths_N[batch].mean() for batch in Plan(languages_N, lengths_N, 20).epoch(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 1000.0])
def test_shares_are_those_of_the_formula(temperature):
    counts = [700, 250, 50]
    powers = [(count / sum(counts)) ** (1 / temperature) for count in counts]
    expected = [power / sum(powers) for power in powers]
    np.testing.assert_allclose(language_shares(np.array(counts), temperature), expected)


def test_temperature_one_keeps_the_natural_shares_and_a_high_one_evens_them():
    counts = np.array([700, 250, 50])
    np.testing.assert_allclose(language_shares(counts, 1.0), counts / 1000)
    np.testing.assert_allclose(language_shares(counts, 1e6), 1 / 3, rtol=1e-4)


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_languages_are_drawn_in_their_shares(temperature):
    languages_N, lengths_N = columns()
    shares = language_shares(np.bincount(languages_N), temperature)
    counts = np.bincount(languages_N[drawn(Plan(languages_N, lengths_N, 10, temperature))])
    np.testing.assert_allclose(counts, ROWS * shares, atol=11)  # rounding, and the last batch


@pytest.mark.parametrize("temperature", [2.0, 5.0])
def test_no_row_comes_again_before_all_others_of_its_language_came(temperature):
    languages_N, lengths_N = columns()
    times_N = np.bincount(drawn(Plan(languages_N, lengths_N, 1, temperature)), minlength=ROWS)
    for language in range(3):
        assert np.ptp(times_N[languages_N == language]) <= 1
    assert times_N[languages_N == 2].min() >= 2


def test_rows_are_padded_on_the_right_with_one():
    ids_BT, mask_BT = pad([np.array([0, 7, 2]), np.array([0, 7, 8, 9, 2], np.int32), np.array([0, 2])])
    assert ids_BT.tolist() == [[0, 7, 2, 1, 1], [0, 7, 8, 9, 2], [0, 2, 1, 1, 1]]
    assert mask_BT.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert ids_BT.dtype == mask_BT.dtype == torch.int64


def test_rows_of_one_length_are_not_padded():
    ids_BT, mask_BT = pad([np.array([0, 5, 2]), np.array([0, 6, 2])])
    assert ids_BT.shape == (2, 3)
    assert mask_BT.all()


def test_corpora_are_drawn_in_their_shares():
    sources_N = np.repeat([0, 1], [900, 100])
    plan = Plan(np.zeros(1000, int), np.full(1000, 5), 10, sources_N=sources_N, weights=[1.0, 3.0])
    drawn = np.concatenate(plan.epoch(0))
    counts = np.bincount(sources_N[drawn])
    assert counts.tolist() == [250, 750]
    assert set(np.bincount(drawn, minlength=1000)[900:]) == {7, 8}
    assert np.bincount(drawn, minlength=1000)[:900].max() == 1


def test_shares_of_corpora_and_of_languages_work_together():
    languages_N, sources_N = np.repeat([0, 1, 1], [300, 100, 600]), np.repeat([0, 1], [400, 600])
    plan = Plan(languages_N, np.full(1000, 5), 10, 1e9, sources_N=sources_N, weights=[1.0, 1.0])
    drawn = np.concatenate(plan.epoch(0))
    counts = [int(((sources_N == s) & (languages_N == n))[drawn].sum()) for s, n in ((0, 0), (0, 1), (1, 1))]
    assert counts == [250, 250, 500]


def by_tokens(budget: int = 600, share: int = 1, **how) -> Plan:
    return Plan(*columns(), share, monolingual=True, tokens=budget, **how)


@pytest.mark.parametrize("share", [1, 4])
def test_batches_by_tokens_keep_to_the_budget_and_divide_among_processes(share):
    plan = by_tokens(share=share)
    lengths_N = plan.lengths_N
    batches = plan.epoch(0)
    assert all(len(batch) and len(batch) % share == 0 for batch in batches)
    assert all(len(batch) * lengths_N[batch].max() <= 600 for batch in batches)
    assert all(len(set(plan.languages_N[batch])) == 1 for batch in batches)
    full = [len(batch) * lengths_N[batch].max() for batch in batches]
    assert np.median(full) > 450  # the budget is used


def test_epochs_by_tokens_have_as_many_batches_and_differ():
    plan = by_tokens(temperature=3.0)
    assert {len(plan.epoch(number)) for number in range(4)} == {plan.per_epoch}
    assert plan.per_epoch == plan.lengths_N.sum() // 600
    first, again, other = plan.epoch(0), by_tokens(temperature=3.0).epoch(0), plan.epoch(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_budget_beyond_the_corpus_makes_one_batch_a_language():
    plan = by_tokens(budget=10**6)
    assert plan.per_epoch == 1
    (batch,) = plan.epoch(0)
    assert len(batch) == (plan.languages_N == plan.languages_N[batch[0]]).sum()


@pytest.mark.parametrize("how", [{}, {"tokens": 900, "monolingual": True}, {"temperature": 3.0}], ids=str)
def test_an_epoch_that_is_kept_is_the_same_and_drawn_once(tmp_path: Path, monkeypatch, how):
    monkeypatch.setattr(batching, "SHARED", ROWS)
    size = 1 if "tokens" in how else 24
    alone, plan, other = (Plan(*columns(), size, kept=kept, **how) for kept in (None, tmp_path, tmp_path))
    for number in range(3):
        expected = [batch.tolist() for batch in alone.epoch(number)]
        assert [batch.tolist() for batch in plan.epoch(number)] == expected
        monkeypatch.setattr(Plan, "_draw", None)  # from here on nothing can be drawn
        assert [batch.tolist() for batch in other.epoch(number)] == expected
        assert len(other.epoch(number)) == plan.per_epoch
        monkeypatch.undo()
        monkeypatch.setattr(batching, "SHARED", ROWS)
    kept = sorted(path.name.rpartition("-")[2] for path in tmp_path.glob("epoch-*"))
    assert kept == ["1", "2"]  # those before the last two are removed
    (path,) = tmp_path.glob("epoch-*-2/rows.bin")
    path.write_bytes(path.read_bytes()[::-1])
    assert [batch.tolist() for batch in other.epoch(2)] == expected  # damaged: drawn again
    assert plan._identity() != Plan(*columns(), size, seed=2, **how)._identity()
