"""kboot.process: programs start, speak into their log, and never outlive us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kboot import process
from kboot.deadline import Deadline
from kboot.errors import ProcessError, ProcessTimeout

# Starts a child through kboot, tells its process id, and waits to be killed.
PARENT = """
import pathlib, sys, time
from kboot import process
with process.spawn(["sleep", "600"], log=pathlib.Path(sys.argv[1])) as child:
    print(child.pid, flush=True)
    time.sleep(600)
"""


def ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie that nobody has asked about."""
    for _ in Deadline(5).poll(0.02):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if text.rpartition(")")[2].split()[0] == "Z":
            return True
    return False


def test_time_without_a_processor_is_told_from_time_with_nothing_to_do(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    busy = ["taskset", "-c", str(cpu), "sh", "-c", "while :; do :; done"]
    with (
        process.spawn(["sleep", "60"], log=tmp_path / "idle") as idle,
        process.spawn(busy, log=tmp_path / "one") as one,
        process.spawn(busy, log=tmp_path / "two") as two,
    ):
        for _ in Deadline(30).poll(0.05):
            (ran_s, waited_s), (_, other_s) = one.busiest_thread(), two.busiest_thread()
            if min(waited_s, other_s) > 0.2:
                break
        assert ran_s > 0
        assert min(waited_s, other_s) > 0.2
        assert sum(idle.busiest_thread()) < waited_s
        gone = one
    assert gone.busiest_thread() == (0, 0)


def test_a_program_runs_for_the_length_of_the_with(tmp_path: Path) -> None:
    with process.spawn(["sleep", "600"], log=tmp_path / "log") as child:
        assert child.exit_status() is None
        assert Path(f"/proc/{child.pid}").exists()
    assert child.exit_status() == -signal.SIGTERM
    assert ended(child.pid)


def test_a_program_ends_with_the_with_that_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        process.spawn(["sleep", "600"], log=tmp_path / "log") as child,
    ):
        raise RuntimeError
    assert ended(child.pid)


def test_a_program_that_ignores_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 600 & echo $!; while :; do sleep 0.1; done"
    log = tmp_path / "log"
    with process.spawn(["sh", "-c", script], log=log, stop_grace_s=0.3) as child:
        for _ in Deadline(5).poll(0.02):
            if log.read_text().endswith("\n"):
                break
        grandchild = int(log.read_text())
    assert child.exit_status() == -signal.SIGKILL
    assert ended(grandchild)


def test_a_program_that_has_no_time_to_end_is_not_asked_to(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with process.spawn(["sleep", "600"], log=log, stop_grace_s=0) as child:
        pass
    assert child.exit_status() == -signal.SIGKILL
    assert ended(child.pid)


def test_both_outputs_go_to_the_log(tmp_path: Path) -> None:
    with process.spawn(["sh", "-c", "echo out; echo err >&2"], log=tmp_path / "log") as child:
        assert child.wait(5) == 0
        assert child.last_words() == "out | err"


def test_last_words_are_empty_without_a_log(tmp_path: Path) -> None:
    with process.spawn(["true"], log=tmp_path / "log") as child:
        child.wait(5)
        child.log.unlink()
        assert child.last_words() == ""


def test_a_signal_shows_as_a_negative_exit_status(tmp_path: Path) -> None:
    with process.spawn(["sh", "-c", "kill -9 $$"], log=tmp_path / "log") as child:
        assert child.wait(5) == -signal.SIGKILL


def test_waiting_for_a_program_that_runs_on_returns_none(tmp_path: Path) -> None:
    with process.spawn(["sleep", "600"], log=tmp_path / "log") as child:
        assert child.wait(0.05) is None


def test_the_environment_is_added_to_ours(tmp_path: Path) -> None:
    script = 'echo "$KBOOT_RUN"; test -n "$PATH"'
    env = {"KBOOT_RUN": "/here"}
    with process.spawn(["sh", "-c", script], log=tmp_path / "log", env=env) as child:
        assert child.wait(5) == 0
        assert child.last_words() == "/here"


def test_only_the_descriptors_that_are_passed_are_inherited(tmp_path: Path) -> None:
    passed, kept = os.pipe()
    try:
        log = tmp_path / "log"
        with process.spawn(["ls", "/proc/self/fd"], log=log, pass_fds=[passed]) as child:
            child.wait(5)
        names = log.read_text().split()
        assert str(passed) in names
        assert str(kept) not in names
    finally:
        os.close(passed)
        os.close(kept)


def test_a_program_dies_with_us_even_when_we_are_killed(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        # The signal is arranged for by setpriv, before it becomes the program.
        for _ in Deadline(5).poll(0.01):
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                break
        parent.kill()
    assert ended(pid)


def test_a_program_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    spawned = process.spawn(["sleep", "600"], log=tmp_path / "log")
    children: list[process.Process] = []
    thread = threading.Thread(target=lambda: children.append(spawned.__enter__()))
    thread.start()
    thread.join()
    try:
        assert children[0].wait(0.3) is None
    finally:
        spawned.__exit__(None, None, None)


def test_a_missing_program_is_named_with_the_package_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(process.PACKAGES, "qemu-of-tomorrow", "qemu-next")
    with pytest.raises(ProcessError, match=r"qemu-of-tomorrow not found.*install qemu-next"):
        process.find_program("qemu-of-tomorrow")
    with (
        pytest.raises(ProcessError, match="not found"),
        process.spawn(["qemu-of-tomorrow"], log=tmp_path / "log"),
    ):
        pass


def test_programs_of_the_administrator_are_found_without_them_on_the_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert process.find_program("nginx") == "/usr/sbin/nginx"


def test_running_returns_what_was_printed_and_how_it_ended() -> None:
    script = "cat; echo err >&2; exit 3"
    done = process.run(["sh", "-c", script], timeout_s=5, stdin=b"in", check=False)
    assert (done.stdout, done.stderr, done.exit_status) == (b"in", b"err\n", 3)


def test_a_failure_carries_the_words_of_the_program() -> None:
    with pytest.raises(ProcessError, match=r"exit status 3: sh -c .*: no disk"):
        process.run(["sh", "-c", "echo no disk >&2; exit 3"], timeout_s=5)


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(ProcessTimeout, match=r"no end after 0\.5 s"):
        process.run(["sh", "-c", f"sleep 600 & echo $! >{note}; wait"], timeout_s=0.5)
    assert ended(int(note.read_text()))


def test_a_program_that_reads_gets_no_terminal_and_no_input() -> None:
    assert process.run(["cat"], timeout_s=5).stdout == b""
