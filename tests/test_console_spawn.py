"""pexpect on the serial line: what a pexpect script may rely on."""

from __future__ import annotations

import io
import re
import socket
import threading
from collections.abc import Iterator

import pexpect
import pytest
from pexpect.spawnbase import SpawnBase

from kboot.console import Console
from kboot.crash import Scanner
from kboot.errors import InfraError, KernelCrash
from tests.serial_lines import SocketStream, console_on, terminal
from tests.test_console import PANIC


@pytest.fixture
def line() -> Iterator[tuple[Console, socket.socket]]:
    host, guest = socket.socketpair()
    with guest, Console(SocketStream(host), record=None, scanner=Scanner()) as console:
        yield console, guest


def test_a_list_of_patterns_is_expected_as_by_pexpect(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    child = console.spawn()
    assert isinstance(child, SpawnBase)
    guest.sendall(b"Debian 12 ttyS0\r\n\r\nhost login: ")
    assert child.expect([pexpect.EOF, "assword: ", re.compile(r"(\w+) login: ")], timeout=5) == 2
    assert child.before == "Debian 12 ttyS0\r\n\r\n"
    assert child.after == "host login: "
    assert isinstance(child.match, re.Match)
    assert child.match.group(1) == "host"


def test_it_reads_from_the_call_on_and_leaves_all_to_the_console(
    line: tuple[Console, socket.socket],
) -> None:
    console, guest = line
    guest.sendall(b"before\r\n")
    console.expect("before", timeout=5)
    first, second = console.spawn(encoding=None), console.spawn(timeout=0.2)
    guest.sendall(b"one\r\ntwo\r\n")
    assert first.expect_exact([b"before", b"two"], timeout=5) == 1
    assert first.before == b"one\r\n"
    assert second.expect("one", timeout=5) == 0
    assert second.expect(["never", pexpect.TIMEOUT]) == 1
    assert console.expect("two", timeout=5).text == "two"


def test_no_output_in_time_is_pexpects_timeout(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    child = console.spawn()
    guest.sendall(b"something")
    with pytest.raises(pexpect.TIMEOUT, match="no output for pexpect in"):
        child.expect("never", timeout=0.3)
    assert child.before == "something"


def test_a_machine_that_is_gone_is_eof(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    child = console.spawn()
    guest.sendall(b"last words")
    guest.close()
    assert child.expect(["never", pexpect.EOF], timeout=5) == 1
    assert child.before == "last words"
    assert not child.isalive()
    with pytest.raises(pexpect.EOF, match="the serial console closed"):
        child.expect("more", timeout=5)


def test_a_fault_of_the_host_is_raised_as_itself() -> None:
    def check() -> None:
        raise InfraError("nginx stopped")

    host, guest = socket.socketpair()
    with (
        guest,
        Console(SocketStream(host), record=None, scanner=Scanner(), check=check) as console,
        pytest.raises(InfraError, match="nginx stopped"),
    ):
        console.spawn().expect("never", timeout=30)


def test_a_crash_ends_an_expect_and_what_comes_after_it_is_no_answer(
    line: tuple[Console, socket.socket],
) -> None:
    console, guest = line
    child = console.spawn()
    threading.Timer(0.2, guest.sendall, [PANIC]).start()
    with pytest.raises(KernelCrash, match="sysrq triggered crash"):
        child.expect("never", timeout=30)
    guest.sendall(b"SeaBIOS (version 1.16)\r\nhost login: ")
    with pytest.raises(KernelCrash):
        child.expect("login: ", timeout=30)


def test_what_is_typed_arrives_and_is_logged(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    log = io.StringIO()
    child = console.spawn(logfile=log)
    assert child.sendline("ls") == 3
    child.sendcontrol("c")
    child.write("x")
    child.writelines(["y", "z"])
    assert guest.recv(100, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == b"ls\r\x03xyz"
    assert log.getvalue() == "ls\r\x03xyz"


def test_a_megabyte_is_read_line_by_line(line: tuple[Console, socket.socket]) -> None:
    console, guest = line
    child = console.spawn(timeout=20)
    wanted = [f"line {number}\r\n" for number in range(2000)]
    threading.Thread(target=guest.sendall, args=["".join(wanted).encode()]).start()
    assert [child.readline() for _ in wanted] == wanted


def test_a_shell_is_driven_by_a_pexpect_script() -> None:
    with terminal(["dash"]) as stream, console_on(stream) as console:
        child = console.spawn()
        child.sendline("stty -echo; echo $((40 + 2))")
        child.expect(r"\r(?:\n)?(\d+)\r\n", timeout=20)
        assert isinstance(child.match, re.Match)
        assert child.match.group(1) == "42"
        child.sendline("exit")
