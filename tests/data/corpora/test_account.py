"""The account of a source: what was read is what was kept and what was left out."""

from mclip_kit.data.corpora.account import Account


def test_rows_read_are_rows_kept_and_rows_left_out() -> None:
    account = Account()
    account.kept += 3
    account.leave_out("rows without a caption", "a.tsv row 2")
    account.leave_out("rows without a caption", "a.tsv row 7")
    account.leave_out("rows in other languages", "a.tsv row 9", 4)
    account.ignore("columns", "pt, hi", 2)
    assert account.read == 9
    assert Account.lines(account.as_json()) == [
        "left out: 2 rows without a caption, such as a.tsv row 2",
        "left out: 4 rows in other languages, such as a.tsv row 9",
        "not read: 2 columns, such as pt, hi",
    ]


def test_nothing_is_no_reason() -> None:
    account = Account()
    account.leave_out("rows without a caption", "a.tsv", 0)
    assert account.as_json() == {"read": 0, "kept": 0, "left_out": {}, "ignored": {}, "examples": {}}
    assert Account.lines(account.as_json()) == []
