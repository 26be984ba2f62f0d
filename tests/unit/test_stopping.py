"""Being asked to stop: real signals to this process, a real file, and processes that do not end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actrep_ray.cluster.background import in_background
from actrep_ray.cluster.mailbox import Mailbox
from actrep_ray.cluster.stopping import (
    AbandonedError,
    InterruptError,
    StopError,
    StopRequest,
    remember_notice,
)

pytestmark = pytest.mark.lengthy


def in_a_moment(call: Callable[[], object], after_s: float = 0.2) -> None:
    threading.Timer(after_s, call).start()


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def wait(mailbox: Mailbox, seconds: float = 10.0) -> None:
    mailbox.wait(lambda: False, seconds, lambda: "nothing")


@pytest.mark.parametrize(
    ("number", "word", "code"),
    [
        (signal.SIGINT, "ctrl-C", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGUSR1, "SIGUSR1", 138),
    ],
)
def test_a_signal_ends_a_wait_that_may_be_given_up(number: int, word: str, code: int) -> None:
    before = signal.getsignal(number)
    mailbox = Mailbox()
    with StopRequest("", 30.0) as stop:
        in_a_moment(send(number))
        began = time.monotonic()
        told = f"^stopped by {word}$"
        with pytest.raises(StopError, match=told) as raised, stop.abandoning(mailbox):
            wait(mailbox)
        assert time.monotonic() - began < 3
        assert raised.value.code == code
        with pytest.raises(StopError), stop.abandoning(mailbox):
            pytest.fail("began what was to be given up")
    assert signal.getsignal(number) is before


def test_a_wait_that_may_not_be_given_up_goes_on() -> None:
    mailbox = Mailbox()
    arrived: list[int] = []
    with StopRequest("", 30.0) as stop:
        stop.check()
        in_a_moment(send(signal.SIGTERM))
        in_a_moment(lambda: mailbox.post(lambda: arrived.append(1)), 0.6)
        mailbox.wait(lambda: arrived, 10.0, lambda: "nothing")
        assert stop.is_asked
        with pytest.raises(StopError):
            stop.check()


def test_a_request_that_comes_as_the_wait_ends_does_not_end_the_next_one() -> None:
    mailbox = Mailbox()
    with StopRequest("", 30.0) as stop:
        with stop.abandoning(mailbox):
            send(signal.SIGTERM)()
            time.sleep(0.05)  # the handler has left its call, which nobody took
        mailbox.post(lambda: done.append(1))
        done: list[int] = []
        mailbox.wait(lambda: done, 5.0, lambda: "nothing")


def test_only_the_thread_that_gives_up_is_told() -> None:
    """Asynchronously, scores are waited for in a thread, whose error the loop would meet later."""
    answers, scores = Mailbox(), Mailbox()
    scored: list[int] = []
    with StopRequest("", 30.0) as stop:
        with stop.abandoning(answers, scores):
            scoring = in_background(lambda: scores.wait(lambda: scored, 5.0, lambda: "the scores"))
            send(signal.SIGTERM)()
            time.sleep(0.3)  # the thread takes what is left for it while the loop still listens
            with pytest.raises(StopError):
                wait(answers)
        scores.post(lambda: scored.append(1))
        scoring.result(timeout=5.0)


def test_the_second_ctrl_c_leaves_at_once_and_a_second_sigterm_is_no_second_wish() -> None:
    mailbox = Mailbox()
    with StopRequest("", 30.0) as stop:
        send(signal.SIGTERM)()
        in_a_moment(send(signal.SIGTERM))
        with pytest.raises(TimeoutError):
            wait(mailbox, 0.8)
        in_a_moment(send(signal.SIGINT))
        began = time.monotonic()
        with pytest.raises(InterruptError, match="stopped without saving") as raised:
            wait(mailbox)
        assert not isinstance(raised.value, StopError)
        assert time.monotonic() - began < 3
        assert stop.is_asked


def test_a_notice_is_a_file_that_appears_or_changes(tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    notice.write_text("of another time")
    mailbox = Mailbox()
    with StopRequest(str(notice), 30.0) as stop, stop.abandoning(mailbox):
        with pytest.raises(TimeoutError):
            wait(mailbox, 1.5)  # it lay there before: whoever resumed knows
        in_a_moment(lambda: notice.write_text("soon"))
        with pytest.raises(StopError, match=f"the notice {notice}") as raised:
            wait(mailbox)
    assert raised.value.code == 143

    notice.unlink()
    with StopRequest(str(notice), 30.0) as stop, stop.abandoning(mailbox):
        in_a_moment(notice.touch)
        with pytest.raises(StopError):
            wait(mailbox)


def test_a_notice_that_comes_while_workers_are_started_counts(tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    remember_notice(str(notice))  # as the run is prepared
    notice.touch()  # minutes before its loop begins
    mailbox = Mailbox()
    for _ in range(2):  # nor does a restart of the workers forget it
        with (
            StopRequest(str(notice), 30.0) as stop,
            stop.abandoning(mailbox),
            pytest.raises(StopError, match=f"the notice {notice}"),
        ):
            wait(mailbox)


def test_what_takes_too_long_to_save_is_given_up() -> None:
    mailbox = Mailbox()
    with StopRequest("", 2.0):
        send(signal.SIGTERM)()
        began = time.monotonic()
        with pytest.raises(InterruptError, match=r"by SIGTERM; saving took longer than 1\.5 s"):
            wait(mailbox)
        assert 1.4 < time.monotonic() - began < 4


def test_who_is_still_at_work_after_a_quarter_of_the_time_is_hurried_and_may_give_up() -> None:
    hurried = threading.Event()

    def update() -> None:
        """What a learner does: it goes on until it is hurried."""
        wait_until(hurried)
        raise AbandonedError("nothing was changed")

    began = time.monotonic()
    with StopRequest("", 4.0, hurry=hurried.set) as stop:
        with pytest.raises(AbandonedError), stop.giving_way():
            raise AbandonedError("nobody asked")
        send(signal.SIGTERM)()
        with pytest.raises(StopError, match="stopped by SIGTERM"), stop.giving_way():
            update()
        assert 0.9 < time.monotonic() - began < 2.5
    with StopRequest("", 0.4, hurry=lambda: pytest.fail("it was over")):
        pass
    time.sleep(0.3)


def wait_until(event: threading.Event) -> None:
    assert event.wait(10)


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_run_that_was_asked_to_stop_does_not_start_again(is_asked: bool) -> None:
    def loop() -> None:
        with StopRequest("", 30.0, mended=(ConnectionError,)):
            if is_asked:
                send(signal.SIGTERM)()
            raise ConnectionError("rank 1 died")

    if not is_asked:
        with pytest.raises(ConnectionError):
            loop()
        return
    told = "^stopped by SIGTERM, and could not save: rank 1 died$"
    with pytest.raises(InterruptError, match=told) as raised:
        loop()
    assert raised.value.code == 143


STUBBORN = """
import os, signal, sys, time
from actrep_ray.cluster.stopping import StopRequest
with StopRequest("", 2.0) as stop:
    print("there", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass  # whatever is in the way
"""


def test_a_process_that_does_not_end_is_ended() -> None:
    command = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=20) == 143
        assert 1.5 < time.monotonic() - began < 8
