from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, GuestError, GuestTimeout
from kboot.guest import CommandHistory, Guest, log_in, login
from kboot.guest.login import LOADER, wake_terminal
from tests.serial_lines import (
    PRINTK,
    PRINTK_WITHOUT_TIME,
    NoisyStream,
    console_on,
    terminal,
)

SHELLS = {"busybox": ["busybox", "sh"], "dash": ["dash"], "bash": ["bash"]}

GETTY = """
while :; do
    printf '\\nDebian GNU/Linux 12 debian ttyS0\\n\\ndebian login: '
    read -r user
    stty -echo; printf 'Password: '
    read -r password
    stty echo; echo
    if [ "$user:$password" = "root:secret" ]; then
        printf 'Last login: Mon Nov 23 03:46:10 UTC 2026 on ttyS0\\n'
        exec SHELL
    fi
    printf '\\nLogin incorrect\\n'
done
"""


@contextlib.contextmanager
def shell(command: Sequence[str]) -> Iterator[tuple[Console, Guest]]:
    """A local shell, as a guest."""
    with terminal(command) as stream, console_on(stream) as console:
        guest = log_in(console, "root", None, Deadline(30))
        yield console, guest
        with contextlib.suppress(GuestError):  # a test may have closed it
            guest.close()


@pytest.fixture(params=list(SHELLS))
def any_shell(request: pytest.FixtureRequest) -> list[str]:
    """Each of the shells that guests have."""
    return SHELLS[request.param]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """One dash for the tests of single commands."""
    with shell(["dash"]) as (_, guest):
        yield guest


def test_every_shell_runs_commands_and_is_left_as_it_was(any_shell: list[str]) -> None:
    with terminal(any_shell) as stream, console_on(stream) as console:
        guest = log_in(console, "root", None, Deadline(30))
        result = guest.run("printf 'out\n'; printf err >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_status) == ("out\n", "err", 3)
        directory = guest.succeed("echo $KBOOT_DIR").strip()
        guest.close()
        assert not Path(directory).exists()
        console.sendline("echo back $((1 + 1))")
        assert console.expect("back 2$", timeout=10).after == "back 2"


def test_a_guest_that_was_closed_says_so_at_once() -> None:
    with shell(["dash"]) as (_, guest):
        guest.close()
        for use in (guest.run, guest.succeed, guest.wait_until_succeeds, guest.spawn):
            with pytest.raises(GuestError, match="cannot be used any more: it was closed"):
                use("true")
        guest.end("another reason")
        with pytest.raises(GuestError, match="it was closed"):
            guest.run("true")


def test_a_terminal_is_woken_whatever_another_process_has_left_there(
    any_shell: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A shell on this host answers sooner than one in a guest.
    monkeypatch.setattr(login, "PATIENCE_S", 0.5)
    with terminal(any_shell) as stream, console_on(stream) as console:
        left = log_in(console, "root", None, Deadline(30))
        directory = left.succeed("echo $KBOOT_DIR").strip()
        # Another agent is there, one that was being typed, a program, and at last nothing.
        for before in ("", LOADER, "exec 3>&1; cat", ""):
            if before:
                console.sendline(before)
            wake_terminal(console, Deadline(30))
            guest = log_in(console, "root", None, Deadline(30))
            assert guest.succeed("echo here").strip() == "here"
            if before:
                guest.close()
            assert not Path(directory).exists()
        guest.close()


@pytest.mark.parametrize(
    ("command", "stdout", "status"),
    [
        ("exit 3", b"", 3),
        ("exec false", b"", 1),
        ("kill -9 $$", b"", 137),
        ("cat", b"", 0),
        ("printf 'no newline'", b"no newline", 0),
        ("", b"", 0),
        ("echo 'a\n b';echo \"it's\" 'é \\ $HOME'", "a\n b\nit's é \\ $HOME\n".encode(), 0),
        ("printf '\\000\\001\\377\\033[2J'", b"\x00\x01\xff\x1b[2J", 0),
        ("echo '~1:2:3;'; echo 'Kernel panic - not syncing: x'; exit 9", None, 9),
        ("stty echo -icanon </proc/$PPID/fd/2; echo $TERM", b"dumb\n", 0),
        ("no-such-command", b"", 127),
        ("if", b"", 2),
    ],
)
def test_output_and_status_are_exact(
    guest: Guest, command: str, stdout: bytes | None, status: int
) -> None:
    result = guest.run(command)
    assert result.exit_status == status
    if stdout is not None:
        assert result.stdout_bytes == stdout


def test_output_that_looks_like_a_crash_is_none() -> None:
    with shell(["dash"]) as (console, guest):
        text = "[    9.000000] Kernel panic - not syncing: fake\n"
        assert guest.succeed(f"printf '{text}'") == text
        assert guest.succeed("true") == ""
        assert console.reports == ()


def test_each_command_has_a_shell_of_its_own(guest: Guest) -> None:
    before = guest.succeed("pwd")
    guest.succeed("cd /tmp; export kept=1; umask 077")
    assert guest.succeed("pwd; echo ${kept:-gone}") == before + "gone\n"


def test_a_child_left_behind_does_not_hold_a_command_up(guest: Guest) -> None:
    result = guest.run("sleep 600 & echo now; echo $!")
    first, child = result.stdout.split()
    assert first == "now"
    # It still runs.
    guest.succeed(f"kill -0 {child}")
    assert guest.succeed("echo next") == "next\n"
    guest.succeed(f"kill {child}")


def test_finished_commands_leave_no_files(guest: Guest) -> None:
    for _ in range(5):
        guest.run("echo output; echo errors >&2")
    # Those of the last command, which may still be asked for, and of the one that looks.
    assert len(guest.succeed("ls $KBOOT_DIR").split()) <= 10


def test_a_long_command_and_a_megabyte_of_output_arrive_whole(guest: Guest) -> None:
    text = "".join(random.Random(1).choices("abc'\"\\ é\n", k=65_000))
    quoted = text.replace("'", "'\\''")
    assert guest.run(f"printf %s '{quoted}'").stdout == text
    result = guest.run("head -c 1000000 /dev/zero | tr '\\0' y")
    assert result.stdout_bytes == b"y" * 1_000_000


def test_a_command_cannot_hold_a_nul(guest: Guest) -> None:
    with pytest.raises(ValueError, match="NUL"):
        guest.run("echo \0")


def test_succeed_raises_with_the_command_and_what_it_said(guest: Guest) -> None:
    with pytest.raises(CommandFailed, match="exited with 4: the reason") as caught:
        guest.succeed("echo the reason >&2; exit 4")
    assert caught.value.result.exit_status == 4


@pytest.mark.parametrize("stubborn", ["", "trap '' TERM; "])
def test_a_command_out_of_time_is_killed_and_its_output_told(guest: Guest, stubborn: str) -> None:
    with pytest.raises(GuestTimeout, match=r"in 0\.5 s; it printed: 'partial"):
        guest.run(f"{stubborn}echo partial; while :; do sleep 0.2; done", timeout=0.5)
    assert guest.succeed("echo on") == "on\n"


def test_a_deadline_bounds_a_command(guest: Guest) -> None:
    with pytest.raises(GuestTimeout):
        guest.run("sleep 5", deadline=Deadline(0.3))


def test_waiting_until_a_command_succeeds(guest: Guest, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    background = guest.spawn(f"sleep 0.7; echo there > {flag}")
    assert guest.wait_until_succeeds(f"cat {flag}", timeout=20) == "there\n"
    assert background.wait(timeout=10).exit_status == 0
    with pytest.raises(GuestTimeout, match="exited with 1: never"):
        guest.wait_until_succeeds("echo never; false", timeout=0.6)


def test_what_is_cut_off_at_last_hides_no_earlier_answer(guest: Guest, tmp_path: Path) -> None:
    once = tmp_path / "once"
    hanging = f"test -e {once} && sleep 60; touch {once}; echo early; exit 3"
    with pytest.raises(GuestTimeout, match="exited with 3: early"):
        guest.wait_until_succeeds(hanging, timeout=2)
    with pytest.raises(GuestTimeout, match=r"did not end in 0\.4\S* s; it printed: 'first"):
        guest.wait_until_succeeds("echo first; sleep 60", timeout=0.4)


def test_the_history_tells_what_was_run_and_how_it_ended(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with shell(["dash"]) as (_, guest):
        before = datetime.now(UTC)
        guest.run("echo out; echo err >&2; exit 3")
        background = guest.spawn(f"sleep 0.7; echo there | tee {flag}")
        guest.wait_until_succeeds(f"cat {flag}", timeout=20)
        background.wait(timeout=20)
        with pytest.raises(GuestTimeout):
            guest.run("echo partial; sleep 30", timeout=0.5)
        guest.spawn("sleep 30")
        guest.unrecorded().run("true")
        told = [
            (record.command, record.exit_status, record.output_tail) for record in guest.history
        ]
        assert told == [
            ("echo out; echo err >&2; exit 3", 3, "out\nerr\n"),
            (f"sleep 0.7; echo there | tee {flag}", 0, "there\n"),
            (f"cat {flag}", 0, "there\n"),
            ("echo partial; sleep 30", None, "partial\n"),
            ("sleep 30", None, ""),
        ]
        assert before <= guest.history[0].time <= guest.history[1].time <= datetime.now(UTC)
        assert guest.history[2].duration_s > 0.3


def test_the_history_forgets_the_oldest_and_the_beginning_of_long_outputs() -> None:
    history = CommandHistory()
    for number in range(1000):
        history.begin(f"command {number}").end(0, "x" * 100_000 + "end")
    assert [record.command for record in history.records] == [
        f"command {number}" for number in range(900, 1000)
    ]
    assert len(history.records[0].output_tail) == 2000
    assert history.records[0].output_tail.endswith("xend")


def test_a_background_command_runs_beside_others_and_can_be_killed(guest: Guest) -> None:
    background = guest.spawn("echo started; sleep 60")
    assert guest.succeed("echo beside") == "beside\n"
    with pytest.raises(GuestTimeout):
        background.wait(timeout=0.3)
    background.kill(timeout=5)
    result = background.wait(timeout=10)
    assert (result.stdout, result.exit_status) == ("started\n", 143)


def test_files_travel_both_ways_unchanged(guest: Guest, tmp_path: Path) -> None:
    local, remote, back = tmp_path / "local", tmp_path / "it's remote", tmp_path / "back"
    local.write_bytes(random.Random(2).randbytes(20_000))
    local.chmod(0o750)
    guest.put(local, str(remote), timeout=30)
    assert remote.stat().st_mode & 0o777 == 0o750
    guest.get(str(remote), back, timeout=30)
    assert back.read_bytes() == local.read_bytes()
    large = tmp_path / "large"
    large.write_bytes(bytes(100_000_000))
    # Told before it has been sent.
    with pytest.raises(GuestError, match="cannot write /no/such/place: there is no such dir"):
        guest.put(large, "/no/such/place", timeout=30)
    with pytest.raises(GuestError, match="cannot write /no/such/place"):
        guest.put(local, "/no/such/place", timeout=30)


def test_a_file_does_not_wait_for_a_round_trip_with_each_line(
    any_shell: list[str], tmp_path: Path
) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    # Nothing can compress it: 500 requests of 800 characters, of which each would wait.
    local.write_bytes(random.Random(3).randbytes(300_000))
    steps: list[tuple[int, int]] = []
    with terminal(any_shell) as stream:
        distant = NoisyStream(stream)
        with console_on(distant) as console:
            guest = log_in(console, "root", None, Deadline(60))
            distant.delay_s = 0.06
            before = distant.sendings
            guest.put(local, str(remote), timeout=90, on_progress=lambda *step: steps.append(step))
            # Each of them is a round trip.
            assert distant.sendings - before < 50
            distant.delay_s = 0
    assert remote.read_bytes() == local.read_bytes()
    assert steps == sorted(steps)
    assert steps[-1] == (300_000, 300_000)
    assert len(steps) < 25


@pytest.mark.parametrize("loss_chance", [5e-6, 1e-4])
def test_a_file_on_a_line_that_loses_input_arrives_whole(
    any_shell: list[str], tmp_path: Path, loss_chance: float
) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.write_bytes(random.Random(4).randbytes(150_000))
    with terminal(any_shell) as stream:
        lossy = NoisyStream(stream)
        with console_on(lossy) as console:
            guest = log_in(console, "root", None, Deadline(60))
            lossy.loss_chance = loss_chance
            guest.put(local, str(remote), timeout=120)
            lossy.loss_chance = 0
            assert guest.succeed("echo on") == "on\n"
    assert remote.read_bytes() == local.read_bytes()


def test_a_file_among_kernel_messages_arrives_whole_and_compressed(
    any_shell: list[str], tmp_path: Path
) -> None:
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.write_bytes(b"a line of a log\n" * 60_000)
    with terminal(any_shell) as stream:
        noisy = NoisyStream(stream, records=PRINTK, record_chance=0.02)
        with console_on(noisy) as console:
            guest = log_in(console, "root", None, Deadline(60))
            before = noisy.typed
            guest.put(local, str(remote), timeout=60)
            assert noisy.typed - before < len(local.read_bytes()) / 10
    assert remote.read_bytes() == local.read_bytes()


def test_a_trivial_command_is_typed_once_and_nothing_else_is_asked() -> None:
    with terminal(["dash"]) as stream:
        counted = NoisyStream(stream)
        with console_on(counted) as console:
            guest = log_in(console, "root", None, Deadline(30))
            guest.run("echo first")
            before = counted.sendings
            for _ in range(20):
                assert guest.succeed("echo quick") == "quick\n"
            # On a busy host, one may be asked for again.
            assert counted.sendings - before <= 22


@pytest.mark.parametrize("records", [PRINTK, PRINTK_WITHOUT_TIME], ids=["times", "no times"])
def test_kernel_messages_anywhere_change_nothing(
    any_shell: list[str], records: list[bytes]
) -> None:
    with terminal(any_shell) as stream:
        noisy = NoisyStream(stream, records=records, record_chance=0.02)
        with console_on(noisy) as console:
            guest = log_in(console, "root", None, Deadline(60))
            for number in range(10):
                result = guest.run(f"seq {number * 20}; echo e{number} >&2; exit {number}")
                expected = "".join(f"{n}\n" for n in range(1, number * 20 + 1))
                assert result.stdout == expected
                assert (result.stderr, result.exit_status) == (f"e{number}\n", number)


def test_lost_input_changes_nothing() -> None:
    with terminal(["dash"]) as stream:
        lossy = NoisyStream(stream)
        with console_on(lossy) as console:
            guest = log_in(console, "root", None, Deadline(30))
            lossy.loss_chance = 0.002
            for number in range(20):
                assert guest.run(f"echo {number}; exit {number}").exit_status == number
            long = "x" * 3000
            assert guest.succeed(f"echo {long}") == f"{long}\n"


def test_a_shell_that_died_is_told_not_guessed() -> None:
    with terminal(["dash"]) as stream, console_on(stream) as console:
        guest = log_in(console, "root", None, Deadline(30))
        agent = guest.succeed("cut -d ' ' -f 4 /proc/$PPID/stat").strip()
        with pytest.raises(GuestError):
            guest.run(f"kill -9 {agent}; sleep 30", timeout=3)


def test_login_types_name_and_password_between_kernel_messages(any_shell: list[str]) -> None:
    getty = GETTY.replace("SHELL", " ".join(any_shell))
    with terminal(["dash", "-c", getty]) as stream:
        noisy = NoisyStream(stream, records=PRINTK, record_chance=0.005)
        with console_on(noisy) as console:
            guest = log_in(console, "root", "secret", Deadline(60))
            assert guest.succeed("echo in") == "in\n"


def test_a_refused_login_names_the_user() -> None:
    with (
        terminal(["dash", "-c", GETTY]) as stream,
        console_on(stream) as console,
        pytest.raises(GuestError, match="login as 'root' refused 3 times: Login incorrect"),
    ):
        log_in(console, "root", "wrong", Deadline(60))


def test_a_password_nobody_gave_is_asked_for_once() -> None:
    with (
        terminal(["dash", "-c", GETTY]) as stream,
        console_on(stream) as console,
        pytest.raises(GuestError, match="password of 'root'"),
    ):
        log_in(console, "root", None, Deadline(60))


def test_a_silent_line_is_a_timeout() -> None:
    with (
        terminal(["sleep", "60"]) as stream,
        console_on(stream) as console,
        pytest.raises(GuestTimeout, match="login:"),
    ):
        log_in(console, "root", "secret", Deadline(1))


def test_a_guest_without_the_programs_that_are_needed_is_named(tmp_path: Path) -> None:
    for name in ("mkdir", "stty", "setsid", "rm"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    (tmp_path / "sh").symlink_to("/bin/dash")
    with (
        terminal(["/bin/dash"], environment={"PATH": str(tmp_path)}) as stream,
        console_on(stream) as console,
        pytest.raises(GuestError, match="neither cksum nor md5sum"),
    ):
        log_in(console, "root", None, Deadline(10))


def test_a_guest_without_base64_and_cksum_makes_do(tmp_path: Path) -> None:
    programs = "mkdir stty setsid rm md5sum wc head tail od tr grep sed cat chmod mv"
    for name in programs.split():
        place = next(p for p in ("/bin", "/usr/bin") if Path(p, name).exists())
        (tmp_path / name).symlink_to(f"{place}/{name}")
    (tmp_path / "sh").symlink_to("/bin/dash")
    with (
        terminal(["/bin/dash"], environment={"PATH": str(tmp_path)}) as stream,
        console_on(stream) as console,
    ):
        guest = log_in(console, "root", None, Deadline(10))
        assert guest.succeed("echo hello") == "hello\n"
        local, remote = tmp_path / "local", tmp_path / "remote"
        local.write_bytes(bytes(range(256)))
        guest.put(local, str(remote), timeout=10)
        assert remote.read_bytes() == bytes(range(256))
        guest.close()


def test_a_settled_guest_is_asked_once_after_a_timeout() -> None:
    with terminal(["dash"]) as stream:
        counted = NoisyStream(stream)
        with console_on(counted) as console:
            guest = log_in(console, "root", None, Deadline(30))
            with pytest.raises(GuestTimeout):
                guest.run("sleep 9", timeout=0.2)
            before = counted.sendings
            guest.succeed("true")
            assert counted.sendings - before <= 2
