"""Claims: of two machines that would write the same place in object storage, one does."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mclip_kit import locks
from mclip_kit.errors import BusyError, StorageError
from mclip_kit.files import new_folder, write_text
from mclip_kit.storage import claims, hold, place
from tests.storage.buckets import Machine, in_memory

URL, CLAIM = "memory://bucket/runs/mine", "/bucket/runs/.mine.run.claim"
OTHER = {"pid": 7, "place": "0123abcd", "host": "far", "command": "mclip-kit train x", "since": "now", "id": "other"}
FOREVER = 600.0  # seconds that no test waits for


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Machine]]:
    """A storage, and machines by their names; what is read of a claim that lives has changed at the next look."""
    monkeypatch.setattr(claims, "RENEW", 0.01)
    monkeypatch.setattr(claims, "LEASE", FOREVER)
    monkeypatch.setattr(claims, "SETTLE", 0.01)
    with in_memory(tmp_path, monkeypatch) as (bucket, go):

        def machine(name: str) -> None:
            go(name)
            monkeypatch.setattr(locks, "place", lambda: name)

        machine("first")
        yield bucket, machine


def test_the_second_machine_is_told_who_has_a_place(
    places: tuple[Any, Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    bucket, machine = places
    with hold(place(URL), "run", "trains there"):
        about = json.loads(bucket.cat(CLAIM))
        assert (about["place"], about["host"]) == ("first", locks.platform.node())
        machine("second")
        message = rf"^{URL}: another process trains there \(process \d+ on {about['host']} since .*\); wait for it$"
        with pytest.raises(BusyError, match=message), hold(place(URL), "run", "trains there"):
            pass
        with hold(place("memory://bucket/runs/other"), "run"):
            pass
        assert "claimed by another machine (process" in capsys.readouterr().out
    assert not bucket.find("/bucket")
    with hold(place(URL), "run"):
        assert json.loads(bucket.cat(CLAIM))["place"] == "second"
    assert not [thread for thread in threading.enumerate() if thread.name == "claim"]


def test_the_claim_of_a_machine_that_went_away_is_taken_over(
    places: tuple[Any, Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, _ = places
    monkeypatch.setattr(claims, "LEASE", 0.1)
    for left in (OTHER, {}):
        bucket.pipe_file(CLAIM, json.dumps(left).encode())
        with hold(place(URL), "run"):
            assert json.loads(bucket.cat(CLAIM))["place"] == "first"
    bucket.pipe_file(CLAIM, b"half of")
    with hold(place(URL), "run"):
        pass
    assert not bucket.find("/bucket")


def test_that_of_a_process_of_this_machine_that_ended_is_taken_over_at_once(places: tuple[Any, Machine]) -> None:
    bucket, _ = places
    bucket.pipe_file(CLAIM, json.dumps({**OTHER, "place": "first", "pid": 2**22 + 1}).encode())  # no such process
    with hold(place(URL), "run"):
        pass
    bucket.pipe_file(CLAIM, json.dumps({**OTHER, "place": "first", "pid": locks.os.getpid()}).encode())
    with pytest.raises(BusyError, match=r"process .* on far since now: mclip-kit train x"), hold(place(URL), "run"):
        pass


def test_who_lost_its_claim_writes_nothing_more(places: tuple[Any, Machine]) -> None:
    bucket, _ = places
    with hold(place(URL), "run"):
        write_text(place(f"{URL}/recipe.yaml"), "a: 1\n")
        bucket.pipe_file(CLAIM, json.dumps(OTHER).encode())
        while place(URL) not in claims._lost:
            time.sleep(0.01)
        with pytest.raises(BusyError, match=rf"^{URL}: another machine \(process 7 on far .*\) has taken it over"):
            write_text(place(f"{URL}/recipe.yaml"), "a: 2\n")
        write_text(place("memory://bucket/runs/other/recipe.yaml"), "a: 3\n")
    assert bucket.cat("/bucket/runs/mine/recipe.yaml") == b"a: 1\n"
    assert json.loads(bucket.cat(CLAIM)) == OTHER  # what another machine has is not removed
    write_text(place(f"{URL}/recipe.yaml"), "a: 4\n")


@pytest.mark.parametrize("why", ["at the same moment", "taken over at the same moment", "one step"])
def test_of_two_machines_one_gets_it(why: str, places: tuple[Any, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the claim before one of them writes it; before they look again, both have written."""
    bucket, _ = places
    monkeypatch.setattr(claims, "RENEW", FOREVER)
    read, meet, once = claims._Claim._read, threading.Barrier(2), threading.local()

    def together(self: claims._Claim) -> Any:
        found = read(self)
        if not hasattr(once, "done"):
            once.done = meet.wait(60)
        return found

    monkeypatch.setattr(claims._Claim, "_read", together)
    monkeypatch.setattr(claims, "sleep", lambda seconds: meet.wait(60))
    if why == "at the same moment":

        def cannot(*_: Any, mode: str = "overwrite", **__: Any) -> None:
            if mode == "create":
                raise NotImplementedError
            pipe(*_)

        pipe = bucket.pipe_file
        monkeypatch.setattr(bucket, "pipe_file", cannot)
    elif why == "taken over at the same moment":
        monkeypatch.setattr(claims._Claim, "_is_left", lambda self, found: self._write() is None)
        bucket.pipe_file(CLAIM, json.dumps(OTHER).encode())
    got: list[str | None] = []
    each = [claims._Claim(place(URL), "run") for _ in range(2)]
    threads = [threading.Thread(target=lambda claim=claim: got.append(claim.take())) for claim in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 2
    assert got.count(None) == 1


def test_a_folder_that_two_machines_write_is_that_of_one(places: tuple[Any, Machine]) -> None:
    bucket, machine = places
    with new_folder(place(URL)) as part:
        (part / "weights").write_text("first")
        machine("second")
        with pytest.raises(BusyError, match=rf"^{URL}: another process writes to it"), new_folder(place(URL)):
            pass
        machine("first")
    assert bucket.find("/bucket") == ["/bucket/runs/mine/weights"]


def test_a_storage_that_cannot_be_written_is_said(places: tuple[Any, Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(places[0], "pipe_file", denied)
    with pytest.raises(StorageError, match=rf"^{URL}: cannot be claimed \(access denied"), ExitStack() as stack:
        stack.enter_context(hold(place(URL), "run"))


def test_a_process_that_has_got_the_number_of_a_killed_one_does_not_count(places: tuple[Any, Machine]) -> None:
    bucket, _ = places
    claim = OTHER | {"pid": os.getpid(), "place": "first"}
    bucket.pipe_file(CLAIM, json.dumps(claim | {"at": time.time()}).encode())
    with pytest.raises(BusyError), hold(place(URL), "run"):
        pass
    bucket.pipe_file(CLAIM, json.dumps(claim | {"at": 1.0}).encode())  # before this process started
    with hold(place(URL), "run"):
        assert json.loads(bucket.cat(CLAIM))["pid"] == os.getpid()
