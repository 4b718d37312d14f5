"""Laws of the outbox: records are delivered in order and once, also after an outage."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.tracking.outbox import Courier, Outbox, Record, RefusedError


def _fails_at(number: int, taken: list[int], problem: Exception) -> Callable[[Record], None]:
    def send(record: Record) -> None:
        if record["number"] == number:
            raise problem
        taken.append(record["number"])

    return send


def test_records_wait_in_order_during_an_outage(tmp_path: Path) -> None:
    taken: list[int] = []
    for number in range(5):
        Outbox(tmp_path / "runs/outbox").put({"kind": "k", "number": number})
    again = Outbox(tmp_path / "runs/outbox")
    problem = again.deliver(_fails_at(2, taken, ConnectionError("away")))
    assert isinstance(problem, ConnectionError)
    assert taken == [0, 1]
    assert len(again.waiting()) == 3
    assert again.deliver(_fails_at(-1, taken, ConnectionError())) is None
    assert taken == [0, 1, 2, 3, 4]
    assert not again.waiting()


def test_refused_record_does_not_block_the_others(tmp_path: Path) -> None:
    taken: list[int] = []
    outbox = Outbox(tmp_path)
    for number in range(3):
        outbox.put({"kind": "k", "number": number})
    assert outbox.deliver(_fails_at(1, taken, RefusedError("no such thing"))) is None
    assert taken == [0, 2]
    (refused,) = outbox.refused()
    assert "no such thing" in refused.read_text()


def test_a_record_that_is_gone_after_it_was_sent_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an object store, a process whose lock expired can still be delivering."""
    outbox = Outbox(tmp_path)
    outbox.put({"kind": "k"})
    assert outbox.deliver(lambda record: outbox.waiting()[0].unlink()) is None
    assert not outbox.waiting()
    outbox.put({"kind": "k"})
    outbox.waiting()[0].write_text("not JSON")
    monkeypatch.setattr(outbox, "_refuse", lambda path, record: path.unlink())
    assert outbox.deliver(lambda record: None) is None
    assert not outbox.waiting()


def test_courier_retries_until_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Courier, "_FIRST_RETRY", 0.01)
    calls: list[int] = []
    done = threading.Event()

    def deliver() -> Exception | None:
        calls.append(1)
        if len(calls) < 3:
            return ConnectionError("away")
        done.set()
        return None

    courier = Courier(deliver)
    courier.call()
    assert done.wait(10)
    courier.close()
    assert len(calls) == 4  # once more at the end
