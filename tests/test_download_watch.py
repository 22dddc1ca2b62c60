"""What is told of an iPXE that stands still: from its line, its requests, and what it receives."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator

import pytest

from kboot.backend import Fetch
from kboot.errors import ConfigError, ScriptEnded
from kboot.machine.boot import Boot
from kboot.machine.phases import Expected, Phase
from kboot.qemu import traffic

EXPECTED = Expected(
    nonce="abcd1234",
    query="m=m0&b=abcd1234",
    script_path="scripts/m0/boot.ipxe",
    kernel_path="artifacts/k1",
    initrd_paths={},
    release="6.1.0",
    command_line="kboot.nonce=abcd1234",
    kernel_bytes=8_000_000,
)
HALF = "http://10.0.2.2:8080/t0ken/artifacts/k1... 37%"


def loading(**changes: object) -> Boot:
    """A boot whose script runs, since 100 s."""
    boot = Boot(dataclasses.replace(EXPECTED, **changes), start=90)  # type: ignore[arg-type]
    boot.reach(Phase.SCRIPT, 100, "server")
    return boot


def fetched(size: int) -> Fetch:
    return Fetch(
        time=0,
        path="artifacts/k1",
        query=EXPECTED.query,
        status=200,
        size=size,
        complete=True,
        user_agent="iPXE",
    )


def test_a_download_of_which_no_byte_comes_is_told_soon() -> None:
    boot = loading()
    for second in range(100, 111):
        boot.see_silence(HALF, second, starved_s=0, silence_s=second - 100)
    with pytest.raises(ScriptEnded, match="stands still at 37%: no byte has come for 11 s") as told:
        boot.see_silence(HALF, 111, starved_s=0, silence_s=11)
    assert told.value.state == "hang"


@pytest.mark.parametrize(
    ("line", "starved_s", "silence_s"),
    [
        (HALF, 0.0, 0.2),  # slow
        (HALF, 55.0, 60.0),  # on a busy host
        ("iPXE> ", 0.0, 60.0),  # at its prompt
        ("Booting in 3 s", 0.0, None),
    ],
)
def test_what_goes_on_or_waits_is_no_hang(
    line: str, starved_s: float, silence_s: float | None
) -> None:
    boot = loading()
    for second in range(100, 160):
        boot.see_silence(line, second, starved_s=starved_s, silence_s=silence_s)


def test_dots_for_seconds_are_no_progress() -> None:
    boot = loading()
    line = HALF.removesuffix(" 37%")
    for second in range(11):
        boot.see_silence(line + "." * second, 100 + second, starved_s=0, silence_s=second)
    with pytest.raises(ScriptEnded, match=r"stands still: no byte has come for 11 s"):
        boot.see_silence(line + "." * 11, 111, starved_s=0, silence_s=11)


@pytest.mark.parametrize("before", [[], [(91, "")]])
def test_dots_of_a_line_whose_rest_is_not_there_yet_have_just_come(
    before: list[tuple[int, str]],
) -> None:
    boot = loading()
    for second, line in before:
        boot.see_silence(line, second, starved_s=0, silence_s=None)
    for second in range(200, 245):
        boot.see_silence("...", second, starved_s=0, silence_s=None)
    with pytest.raises(ScriptEnded, match="has not changed for 46 s"):
        boot.see_silence("...", 246, starved_s=0, silence_s=None)


def test_where_bytes_are_not_counted_ipxes_own_figure_is_watched_for_longer() -> None:
    boot = loading()
    for second in range(100, 140):
        boot.see_silence(HALF, second, starved_s=0, silence_s=None)
    with pytest.raises(ScriptEnded, match="line has not changed for 46 s"):
        boot.see_silence(HALF, 146, starved_s=0, silence_s=None)


def test_a_scripts_own_time_limit_comes_first() -> None:
    boot = loading(user_script="boot.ipxe", script_waits_s=20.0)
    boot.see_silence(HALF, 100, starved_s=0, silence_s=0)
    boot.see_silence(HALF, 121.5, starved_s=0, silence_s=21.5)
    with pytest.raises(ScriptEnded, match=r"its own time limit \(20 s\) has not ended it"):
        boot.see_silence(HALF, 122.5, starved_s=0, silence_s=22.5)


def test_another_file_that_was_started_in_the_kernels_place_is_told() -> None:
    boot = loading()
    boot.see_fetch(fetched(117), 101)
    boot.see_silence("", 108, starved_s=0, silence_s=None)
    with pytest.raises(ScriptEnded, match=r"117 bytes in the kernel's place .* 8,000,000") as told:
        boot.see_silence("", 110, starved_s=0, silence_s=None)
    assert told.value.state == "hang"


def test_a_script_that_pauses_may_be_silent_for_as_long() -> None:
    boot = loading(user_script="boot.ipxe", script_waits_s=60.0, script_pauses_s=20.0)
    boot.see_fetch(fetched(117), 101)
    boot.see_silence("", 121, starved_s=0, silence_s=None)
    with pytest.raises(ScriptEnded, match=r"117 bytes in the kernel's place"):
        boot.see_silence("", 124, starved_s=0, silence_s=None)


def test_a_script_that_has_gone_on_to_something_else_has_not_started_the_other_file() -> None:
    boot = loading()
    boot.see_fetch(fetched(117), 101)
    rescue = dataclasses.replace(fetched(8_000_000), path="scripts/m/rescue/vmlinuz")
    boot.see_fetch(rescue, 102)
    boot.see_silence("", 120, starved_s=0, silence_s=None)


def test_what_came_in_the_kernels_place_is_no_fetch_of_the_kernel() -> None:
    boot = loading()
    boot.see_fetch(fetched(117), 101)
    assert Phase.KERNEL not in boot.reached
    boot.see_fetch(dataclasses.replace(fetched(3), path="beacon/script"), 102)
    assert "never fetched kernel" in str(boot.contradiction())


def test_a_kernel_that_came_after_another_file_is_the_kernel() -> None:
    boot = loading()
    boot.see_fetch(fetched(117), 101)
    boot.see_fetch(fetched(8_000_000), 102)
    boot.see_silence("", 120, starved_s=0, silence_s=None)


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """The server's side of a connection that this process has made."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with client, theirs:
            yield theirs


def test_a_process_is_silent_since_it_has_received_something(connection: socket.socket) -> None:
    def silent_s() -> float:
        found = traffic.silence_s(os.getpid())
        assert found is not None
        return found

    connection.sendall(b"x")
    while silent_s() < 0.05:
        pass
    connection.sendall(b"x")
    before = silent_s()
    assert before < 0.05
    assert traffic.silence_s(1) is None or os.getpid() == 1


def test_an_ipxe_without_https_is_told_as_soon_as_it_has_an_address() -> None:
    boot = Boot(dataclasses.replace(EXPECTED, tls="on"), start=90)
    boot.see_line("iPXE 1.0.0+git-20190125 -- Open Source Network Boot Firmware -- x", 95)
    boot.see_line("Features: DNS HTTP iSCSI TFTP bzImage ELF PXE Menu PXEXT", 95)
    with pytest.raises(ConfigError, match=r"this build of iPXE has no HTTPS: iPXE 1\.0\.0"):
        boot.see_line("net0: 10.0.2.15/255.255.255.0 gw 10.0.2.2", 96)


def test_an_ipxe_with_https_and_one_that_says_nothing_go_on() -> None:
    for features in ("Features: DNS HTTP HTTPS iSCSI", ""):
        boot = Boot(dataclasses.replace(EXPECTED, tls="on"), start=90)
        boot.see_line("iPXE 1.21.1+git2025 -- Open Source Network Boot Firmware -- x", 95)
        boot.see_line(features, 95)
        boot.see_line("net0: 10.0.2.15/255.255.255.0 gw 10.0.2.2", 96)
        boot.see_line("... Permission denied (https://ipxe.org/0216e63b)", 97)
        with pytest.raises(ScriptEnded, match=r"not trusted \(EACCES\).*make TRUST=ca.pem"):
            boot.see_line("No more network devices", 98)
