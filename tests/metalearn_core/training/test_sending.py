"""Sending beside training: the newest is what counts, and what is refused for good is not tried again."""

import subprocess
import sys
import threading

import pytest

from metalearn_core.errors import MetalearnError, StorageError
from metalearn_core.training.sending import Sending


def test_of_those_that_wait_the_newest_alone_is_sent() -> None:
    sent: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def send(name: str) -> None:
        begun.set()
        go_on.wait()
        sent.append(name)

    sending = Sending(send)
    sending.give("1")
    begun.wait()
    sending.give("2")
    sending.give("3")
    assert sending.current == "1"
    assert not sending.wait(0)
    go_on.set()
    assert sending.wait(None)
    assert sent == ["1", "3"]
    assert sending.current == ""


def test_a_bucket_that_is_away_is_said_and_the_next_one_is_sent() -> None:
    outcomes, sent = [StorageError("away"), None], list[str]()

    def send(name: str) -> None:
        if error := outcomes.pop(0):
            raise error
        sent.append(name)

    sending = Sending(send)
    sending.give("1")
    with pytest.raises(StorageError, match="away"):
        sending.wait(None)
    sending.give("2")
    assert sending.wait(None)
    assert sent == ["2"]


def test_after_what_cannot_be_mended_nothing_is_sent() -> None:
    sent: list[str] = []

    def send(name: str) -> None:
        sent.append(name)
        raise MetalearnError("another run trains there")

    sending = Sending(send)
    for name in ("1", "2"):
        sending.give(name)
        with pytest.raises(MetalearnError, match="another run"):
            sending.wait(None)
    assert sent == ["1"]


def test_what_hangs_does_not_keep_a_process_from_ending() -> None:
    code = (
        "import threading\n"
        "from metalearn_core.training.sending import Sending\n"
        "sending = Sending(lambda _: threading.Event().wait())\n"
        "sending.give('1')\n"
        "print(sending.wait(0.1))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "False\n"
