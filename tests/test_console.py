from __future__ import annotations

import contextlib
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.console import Console, Line
from kboot.console.record import Record
from kboot.crash import CrashKind, Scanner
from kboot.deadline import Deadline
from kboot.errors import ConsoleClosed, GuestTimeout, InfraError, KernelCrash
from tests.serial_lines import SocketStream

PANIC = (
    b"[    9.000000] Kernel panic - not syncing: sysrq triggered crash\r\n"
    b"[    9.000001] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0 #1\r\n"
    b"[    9.000002] Call Trace:\r\n"
    b"[    9.000003]  <TASK>\r\n"
    b"[    9.000004]  panic+0x118/0x2e0\r\n"
    b"[    9.000005]  </TASK>\r\n"
    b"[    9.000006] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n"
)
WARNING = (
    b"[    3.000000] ------------[ cut here ]------------\r\n"
    b"[    3.000001] WARNING: CPU: 0 PID: 1 at kernel/foo.c:12 foo_init+0x10/0x20\r\n"
    b"[    3.000002] Call Trace:\r\n"
    b"[    3.000003]  <TASK>\r\n"
    b"[    3.000004]  do_one_initcall+0x56/0x220\r\n"
    b"[    3.000005]  </TASK>\r\n"
    b"[    3.000006] ---[ end trace 0000000000000000 ]---\r\n"
)


class Wire:
    """A console, and the guest's end of its line."""

    def __init__(self, console: Console, guest: socket.socket) -> None:
        self.console = console
        self.guest = guest

    def say(self, data: bytes) -> None:
        self.guest.sendall(data)

    def say_later(self, data: bytes, after_s: float = 0.2) -> None:
        timer = threading.Timer(after_s, self.guest.sendall, [data])
        timer.daemon = True
        timer.start()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    host, guest = socket.socketpair()
    stream = SocketStream(host)
    with guest, Console(stream, record=tmp_path / "record", scanner=Scanner()) as console:
        yield Wire(console, guest)


def test_expect_finds_a_line_that_is_there_or_comes(wire: Wire) -> None:
    wire.say(b"one\r\ntwo\r\n")
    assert wire.console.expect("tw.", timeout=5).text == "two"
    wire.say_later(b"three\r\n")
    assert wire.console.expect("thr", timeout=5).text == "three"


def test_expect_shows_what_pexpect_shows(wire: Wire) -> None:
    wire.say(b"noise\r\nLinux version 6.1.0 (x) #1\r\n")
    found = wire.console.expect(["nothing", re.compile(r"version (\S+)")], timeout=5)
    assert (found.index, found.match.group(1)) == (1, "6.1.0")
    assert (found.before, found.after) == ("noise\nLinux ", "version 6.1.0")


def test_expect_never_matches_half_a_line(wire: Wire) -> None:
    wire.say(b"Linux version 6.1")
    with pytest.raises(GuestTimeout, match="Linux version"):
        wire.console.expect("Linux version (.*)", timeout=0.3)
    wire.say(b".0-rc1\r\n")
    assert wire.console.expect("version (.*)", timeout=5).match.group(1) == "6.1.0-rc1"


def test_expect_goes_on_after_its_last_match_or_from_a_mark(wire: Wire) -> None:
    wire.say(b"a 1\r\na 2\r\n")
    assert wire.console.expect("a", timeout=5).text == "a 1"
    assert wire.console.expect("a", timeout=5).text == "a 2"
    assert wire.console.expect("a", timeout=5, since=0).text == "a 1"
    mark = wire.console.mark()
    wire.say_later(b"a 3\r\n")
    assert wire.console.expect("a", timeout=5, since=mark).text == "a 3"


def test_text_before_a_mark_in_the_same_line_is_not_matched(wire: Wire) -> None:
    wire.say(b"old login: ")
    wire.console.expect_prompt("login:", timeout=5)
    mark = wire.console.mark()
    wire.say(b"new text\r\n")
    assert wire.console.expect(".*", timeout=5, since=mark).text == "new text"


def test_a_prompt_is_an_unfinished_line_that_has_settled(wire: Wire) -> None:
    wire.say(b"Last login:")
    wire.say_later(b" Mon Nov 23 on ttyS0\r\n# ", 0.01)
    found = wire.console.expect_prompt(["login:", "#"], timeout=5)
    assert found.index == 1


def test_a_prompt_is_found_before_a_kernel_message_in_the_same_line(wire: Wire) -> None:
    wire.say(b"\x1b[1mdebian login: [   12.345678] random: crng init done\r\n")
    assert wire.console.expect_prompt("login: ", timeout=5).index == 0


def test_the_echo_of_what_was_typed_is_neither_matched_nor_a_crash(wire: Wire) -> None:
    wire.console.sendline("echo Kernel panic - not syncing: sysrq triggered crash")
    assert wire.guest.recv(100).endswith(b"crash\r")
    wire.say(b"# echo Kernel panic - not syncing: sysrq triggered crash\r\nanswer\r\n")
    assert wire.console.expect("panic|answer", timeout=5).text == "answer"
    assert wire.console.reports == ()


def test_a_timeout_tells_the_last_line_and_the_silence(wire: Wire) -> None:
    wire.say(b"Run /init as init process\r\n")
    with pytest.raises(
        GuestTimeout, match=r"no 'login:' in 0.3 s; .*'Run /init as init process', s"
    ):
        wire.console.expect_prompt("login:", timeout=0.3)


def test_a_fatal_crash_ends_a_wait_when_its_report_is_complete(wire: Wire) -> None:
    wire.say_later(PANIC)
    deadline = Deadline(60)
    with pytest.raises(KernelCrash, match="sysrq triggered crash") as caught:
        wire.console.expect("never", deadline=deadline)
    assert not deadline.expired
    assert caught.value.report.kind is CrashKind.PANIC


def test_a_report_cut_by_death_ends_a_wait_after_a_short_silence(wire: Wire) -> None:
    wire.say(PANIC[: PANIC.index(b"</TASK>")])
    deadline = Deadline(60)
    with pytest.raises(KernelCrash):
        wire.console.expect("never", deadline=deadline)
    assert not deadline.expired


def test_what_a_machine_prints_after_its_crash_is_no_answer(wire: Wire) -> None:
    wire.say(PANIC)
    with pytest.raises(KernelCrash):
        wire.console.expect("never", timeout=30)
    wire.say(b"linux login: ")
    with pytest.raises(KernelCrash):
        wire.console.expect_prompt("login:", timeout=5)
    wire.console.expect_reset()
    assert wire.console.expect_prompt("login:", timeout=5).index == 0


def test_a_warning_is_collected_and_ends_nothing(wire: Wire) -> None:
    wire.say(WARNING + b"booted\r\n")
    assert wire.console.expect("^booted", timeout=5).text == "booted"
    wire.say(b"quiet\r\n")
    for _ in Deadline(5).poll(0.1):
        if wire.console.reports:
            break
    assert [report.kind for report in wire.console.reports] == [CrashKind.WARNING]


def test_an_expected_crash_goes_into_the_box(wire: Wire) -> None:
    with wire.console.expecting(lambda report: report.kind is CrashKind.PANIC) as box:
        wire.say_later(PANIC)
        report = wire.console.wait_for_crash(box, timeout=10)
        assert report is box.report
        wire.say(b"after\r\n")
        assert wire.console.expect("after", timeout=5).text == "after"
    assert wire.console.reports == (report,)


def test_a_crash_that_was_not_the_expected_one_is_raised(wire: Wire) -> None:
    with wire.console.expecting(lambda report: report.kind is CrashKind.KASAN) as box:
        wire.say(PANIC)
        with pytest.raises(KernelCrash):
            wire.console.wait_for_crash(box, timeout=10)
    assert box.report is None


def test_a_closed_line_is_told_after_what_it_said_was_matched(wire: Wire) -> None:
    wire.say(b"last words\r\nunfinished")
    wire.guest.close()
    assert wire.console.expect("last", timeout=5).text == "last words"
    assert wire.console.expect("unfin", timeout=5).text == "unfinished"
    with pytest.raises(ConsoleClosed, match="last line: 'unfinished'"):
        wire.console.expect("more", timeout=5)


def test_the_host_says_why_the_line_closed() -> None:
    def check() -> None:
        raise InfraError("QEMU died: killed by signal 9")

    host, guest = socket.socketpair()
    with Console(SocketStream(host), record=None, scanner=Scanner(), check=check) as console:
        guest.close()
        with pytest.raises(InfraError, match="killed by signal 9"):
            console.expect("more", timeout=10)


def test_the_host_is_heard_though_the_wait_is_over_before_its_last_words() -> None:
    def check() -> None:
        raise InfraError("disk full")

    host, guest = socket.socketpair()
    with (
        guest,
        Console(SocketStream(host), record=None, scanner=Scanner(), check=check) as console,
        pytest.raises(InfraError, match="disk full"),
    ):
        console.expect("more", timeout=0.8)


def test_a_crash_is_told_even_if_the_host_fails_right_after_it() -> None:
    def check() -> None:
        raise InfraError("QEMU died")

    host, guest = socket.socketpair()
    with Console(SocketStream(host), record=None, scanner=Scanner(), check=check) as console:
        guest.sendall(PANIC)
        guest.close()
        with pytest.raises(KernelCrash):
            console.expect("more", timeout=10)


def test_typing_into_a_dead_line_is_the_hosts_fault(wire: Wire) -> None:
    wire.guest.close()
    with pytest.raises(ConsoleClosed, match="takes no input"):
        wire.console.sendline("hello")


def test_typing_into_a_dead_line_tells_why_it_is_dead_once_the_host_knows() -> None:
    asked = []

    def check() -> None:
        asked.append(1)
        if len(asked) > 2:
            raise InfraError("QEMU was killed by signal 9")

    host, guest = socket.socketpair()
    with Console(SocketStream(host), record=None, scanner=Scanner(), check=check) as console:
        guest.close()
        with pytest.raises(ConsoleClosed, match=r"^QEMU was killed by signal 9$"):
            console.sendline("hello")


def test_a_new_stream_continues_the_record(wire: Wire, tmp_path: Path) -> None:
    wire.say(b"first\r\nunfinished")
    wire.console.expect("first", timeout=5)
    host, guest = socket.socketpair()
    with guest:
        wire.guest.shutdown(socket.SHUT_RDWR)
        wire.console.attach(SocketStream(host))
        guest.sendall(b"second\r\n")
        assert wire.console.expect("sec", timeout=5).text == "second"
        wire.console.close()
    assert (tmp_path / "record/serial.log").read_bytes() == b"first\r\nunfinishedsecond\r\n"


def test_the_record_holds_every_byte_and_its_time(wire: Wire, tmp_path: Path) -> None:
    wire.say(b"\xff\x00one\r\n")
    wire.console.expect("one", timeout=5)
    time.sleep(0.2)
    wire.say(b"two")
    wire.console.expect_prompt("two", timeout=5)
    assert wire.console.raw(0) == b"\xff\x00one\r\ntwo"
    wire.console.close()
    assert (tmp_path / "record/serial.log").read_bytes() == b"\xff\x00one\r\ntwo"
    timing = [line.split() for line in (tmp_path / "record/serial.timing").read_text().splitlines()]
    assert sum(int(size) for _, size in timing) == 10
    assert float(timing[-1][0]) >= 0.15


def test_a_subscriber_gets_whole_lines_and_may_fail(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Line] = []

    def fail(line: Line) -> None:
        raise ValueError(line.text)

    wire.console.subscribe(fail)
    unsubscribe = wire.console.subscribe(seen.append)
    wire.say(b"one\r\ntw")
    wire.say(b"o\r\n")
    wire.console.expect("two", timeout=5)
    for _ in Deadline(5).poll(0.01):
        if len(seen) == 2:
            break
    unsubscribe()
    wire.say(b"three\r\n")
    wire.console.expect("three", timeout=5)
    assert [line.text for line in seen] == ["one", "two"]
    assert "subscriber failed" in caplog.text


def test_a_full_disk_is_told_once_with_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "serial.log").symlink_to("/dev/full")
    host, guest = socket.socketpair()
    with guest, Console(SocketStream(host), record=tmp_path, scanner=Scanner()) as console:
        for line in (b"x\r\n", b"y\r\n"):
            guest.sendall(line)
            console.expect(line.decode().strip(), timeout=5)
        assert console.missing == ((0, 6),)
        assert caplog.text.count("serial.log: No space left on device; make room there") == 1
    assert "serial.log: bytes 0 to 6 are missing: disk full" in caplog.text


@contextlib.contextmanager
def room(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond `size` bytes: writes are short, and then fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_is_completed_when_there_is_room_again(wire: Wire, tmp_path: Path) -> None:
    said = b"".join(b"line %d\r\n" % number for number in range(3000))
    with room(10_001):
        wire.say(said)
        wire.console.expect("line 2999", timeout=20)
        assert wire.console.missing == ((10_001, len(said)),)
        assert (tmp_path / "record/serial.log").read_bytes() == said[:10_001]
    wire.say(b"room again\r\n")
    wire.console.expect("room again", timeout=5)
    assert wire.console.missing == ()
    wire.console.close()
    assert (tmp_path / "record/serial.log").read_bytes() == said + b"room again\r\n"
    timing = [line.split() for line in (tmp_path / "record/serial.timing").read_text().splitlines()]
    assert sum(int(size) for _, size in timing) == len(said) + 12


def test_a_record_says_where_bytes_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Record, "MEMORY_BYTES", 2000)
    record = Record(tmp_path, 0.0)
    with room(1000):
        for number in range(900):
            record.append(b"number %04d\r\n" % number, number)
    record.append(b"the end\r\n", 900)
    (gap,) = record.missing
    record.close()
    written = (tmp_path / "serial.log").read_bytes()
    assert len(written) == record.size == 900 * 13 + 9
    assert (gap[0], gap[1] % 13) == (1000, record.start % 13)
    note = f"\n[kboot: {gap[1] - gap[0]} bytes are missing here: the disk was full]\n".encode()
    assert written[gap[0] : gap[1]].rstrip(b"\0") == note
    assert written[gap[1] :].endswith(b"number 0899\r\nthe end\r\n")


class FailingStream(SocketStream):
    """A stream with a mistake in it, as a library's may have."""

    def recv(self, size: int, /) -> bytes:
        data = super().recv(size)
        if b"fail" in data:
            raise KeyError("token")
        return data


def test_a_reader_that_failed_is_told_by_the_next_call() -> None:
    host, guest = socket.socketpair()
    with guest, Console(FailingStream(host), record=None, scanner=Scanner()) as console:
        guest.sendall(b"fine\r\n")
        console.expect("fine", timeout=5)
        guest.sendall(b"fail\r\n")
        with pytest.raises(InfraError, match=r"the console cannot be read: KeyError\('token'\)"):
            console.expect("more", timeout=30)
        for call in (console.check, console.sendline):
            with pytest.raises(InfraError, match="the console cannot be read"):
                call()


def test_a_thousand_equal_warnings_are_kept_in_little_room(wire: Wire) -> None:
    for number in range(1000):
        wire.say(WARNING.replace(b"[    3.", b"[%5d." % number))
    wire.say(WARNING.replace(b"foo", b"bar") + b"[ 2000.000000] done\r\n")
    wire.console.expect("done", timeout=60)
    reports = wire.console.reports
    assert wire.console.report_counts == {"WARNING in foo_init": 1000, "WARNING in bar_init": 1}
    assert len(reports) == 1001
    assert [report.start_offset for report in reports] == sorted(
        {report.start_offset for report in reports}
    )
    whole = [bool(report.frames) and "Call Trace" in report.text for report in reports]
    assert whole == [True] * 20 + [False] * 980 + [True]
    assert reports[999].text.startswith("WARNING: CPU: 0 PID: 1 at kernel/foo.c:12")


def test_megabytes_of_log_are_matched_in_time_linear_in_their_size(wire: Wire) -> None:
    def spill() -> None:
        for start in range(0, 320_000, 1000):
            wire.say(
                b"".join(
                    b"[%12.6f] a driver has this much to say, again and again: %d\r\n"
                    % (n / 100, n)
                    for n in range(start, start + 1000)
                )
            )
        wire.say(b"the end\r\n")

    thread = threading.Thread(target=spill)
    thread.start()
    # 25 MB. Copying a growing buffer for each read takes minutes.
    assert wire.console.expect(["^the end$", "panic"], timeout=60).index == 0
    thread.join()
