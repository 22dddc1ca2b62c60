"""Machines at iPXE's prompt: commands, settings, scripts, and a server that misbehaves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.backend import LocalVirtualMachine
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import GuestTimeout, IpxeCommandFailed
from kboot.ipxe.prompt import IpxeResult, screen_text
from kboot.machine.ipxe_machine import IpxeMachine
from kboot.machine_spec import Firmware
from kboot.session import Session, open_session

#: Lines of all lengths around the firmware's 80 columns, and beyond two rows.
LENGTHS = (1, 79, 80, 81, 160, 161)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with open_session(Config(accel="tcg"), evidence=tmp_path_factory.mktemp("evidence")) as opened:
        yield opened


@pytest.fixture(scope="module")
def bios(session: Session) -> Iterator[IpxeMachine]:
    """One machine for all tests that leave it at its prompt."""
    with session.ipxe(session.config, name="bios") as machine:
        yield machine


@pytest.fixture(scope="module")
def uefi(session: Session) -> Iterator[IpxeMachine]:
    """The same with the other firmware."""
    with session.ipxe(replace(session.config, firmware="uefi"), name="uefi") as machine:
        yield machine


@pytest.fixture(params=["bios", "uefi"])
def ipxe(request: pytest.FixtureRequest) -> IpxeMachine:
    """Each of them."""
    machine: IpxeMachine = request.getfixturevalue(request.param)
    return machine


def test_a_command_has_its_output_and_no_error(ipxe: IpxeMachine) -> None:
    result = ipxe.run("ifstat")
    assert result.ok
    assert result.text.startswith("net0: 52:54:00:")
    assert "[Link:up, TX:" in result.text


def test_a_command_that_fails_has_its_error(bios: IpxeMachine) -> None:
    result = bios.run(f"imgfetch --name none {bios.server.url('none')}")
    assert result.errno is not None
    assert result.errno.is_not_found
    assert "none... " in result.text
    with pytest.raises(IpxeCommandFailed, match=r"'imgstat none' failed: .*ipxe.org/err/"):
        bios.succeed("imgstat none")


def test_settings_are_read_and_written(ipxe: IpxeMachine) -> None:
    assert ipxe.get("net0/ip") == "10.0.2.15"
    assert ipxe.get("nothing") is None
    value = 'a value with spaces, 100 % of it = "quoted" ' + "x" * 100
    ipxe.set("mine", value)
    assert ipxe.get("mine") == value
    ipxe.set("mine", "")
    assert not ipxe.get("mine")
    for spoilt in ("two  spaces", " one before", "on ; reboot", "a && b"):
        with pytest.raises(ValueError, match=f"no way to give mine the value {spoilt!r}"):
            ipxe.set("mine", spoilt)
    with pytest.raises(IpxeCommandFailed, match=r"'show two words' failed: .*Usage:"):
        ipxe.get("two words")


@pytest.mark.parametrize("command", ["sleep 60", "read name"])
def test_a_command_that_does_not_end_is_ended(ipxe: IpxeMachine, command: str) -> None:
    with pytest.raises(GuestTimeout, match=rf"{command}' in 1 s; .*; it was ended by Ctrl-C"):
        ipxe.run(command, timeout=1)
    assert ipxe.succeed("echo still here") == "still here\n"


def test_no_line_is_garbled_by_what_the_screen_does_to_it(ipxe: IpxeMachine) -> None:
    for length in LENGTHS:
        text = "".join(chr(ord("a") + number % 26) for number in range(length))
        assert ipxe.run(f"echo {text}") == IpxeResult(
            command=f"echo {text}", text=f"{text}\n", errno=None
        )


def test_a_line_that_is_too_long_for_ipxe_is_refused(bios: IpxeMachine) -> None:
    with pytest.raises(ValueError, match="iPXE takes lines of 255 characters; with what kboot ad"):
        bios.run("echo " + "x" * 200)
    assert bios.succeed("echo still here") == "still here\n"


def test_what_looks_like_a_marker_is_output(bios: IpxeMachine) -> None:
    assert bios.succeed("echo ${kb}1; 0 iPXE> ").endswith("-1; 0 iPXE>\n")
    assert bios.succeed("echo one && echo two") == "one\ntwo\n"
    assert bios.succeed("isset ${nothing} || echo three") == "three\n"


@pytest.mark.parametrize(
    "command",
    [
        "",
        " ",
        "a\nb",
        "echo \x1b[2J",
        "echo # no",
        "exit",
        "chain x",
        "echo a && reboot",
        "a ; boot",
    ],
)
def test_what_is_no_command_is_refused(bios: IpxeMachine, command: str) -> None:
    with pytest.raises(ValueError, match="iPXE"):
        bios.run(command)


def test_a_script_runs_and_may_come_back(bios: IpxeMachine) -> None:
    mark = bios.console.mark()
    bios.boot("#!ipxe\necho hello from a script\nshell\n")
    bios.console.expect("^hello from a script$", since=mark)
    bios.wait()
    assert bios.succeed("echo here") == "here\n"
    # Whoever does not wait is not taken for somebody who types while it runs.
    bios.boot("#!ipxe\r\nsleep 1\r\nimgstat none\r\n")
    assert bios.succeed("echo there") == "there\n"
    with pytest.raises(ValueError, match="a script begins with a line #!ipxe, not with 'echo h"):
        bios.boot("echo hello\n")


def test_a_fault_of_the_server_is_what_ipxe_sees(bios: IpxeMachine, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(bytes(300_000))
    url = bios.server.put(tmp_path / "image")
    with bios.server.fault(url, "truncated", machine="", after=1000) as fault:
        error = bios.run(f"imgfetch --name image {url}").errno
        assert error is not None
        assert fault.hits == 1
    assert bios.run(f"imgfetch --name image {url}").ok
    bios.succeed("imgfree image")


def test_a_cable_that_is_pulled_in_the_middle_of_a_download_and_plugged_in_again(
    bios: IpxeMachine, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(bytes(400_000))
    url = bios.server.put(tmp_path / "image")
    with bios.server.fault(url, "slow", machine="", rate=200_000):
        bios.leave(f"imgfetch --name image {url}")
        for _ in Deadline(20).poll(0.02):
            if re.search(r"\.\.\. \d+%$", bios.console.unfinished):
                break
        bios.vm.set_link(up=False)
        assert isinstance(bios.vm, LocalVirtualMachine)
        assert bios.vm.silence_s() is None
        bios.vm.set_link(up=True)
        assert (bios.vm.silence_s() or 0.0) < 60
        bios.wait()
    assert "400000 bytes" in bios.succeed("imgstat image")
    bios.succeed("imgfree image")


def test_a_reset_comes_back_to_the_prompt(bios: IpxeMachine) -> None:
    bios.set("mine", "1")
    bios.reset()
    assert bios.get("mine") is None
    assert bios.get("net0/ip") == "10.0.2.15"


def test_a_prompt_is_restored(session: Session, bios: IpxeMachine) -> None:
    with session.ipxe(session.config, name="again") as restored:
        assert restored.restored_from
        assert restored.name != bios.name
        assert restored.get("net0/ip") == "10.0.2.15"


#: Debian 13's iPXE; ``make build/ipxe/trixie/ipxe.efi`` fetches it.
TRIXIE = Path(__file__).parent.parent / "build" / "ipxe" / "trixie"


@pytest.mark.parametrize(
    ("firmware", "file"),
    [
        # A card that is not the usual one, as it has the driver of no other.
        ("bios", "pxe-virtio.rom"),
        ("bios", "ipxe.lkrn"),
        ("bios", "undionly.kpxe"),
        ("uefi", "ipxe.efi"),
    ],
)
def test_an_ipxe_of_ones_own_boots_the_machine(
    session: Session, firmware: Firmware, file: str
) -> None:
    own = TRIXIE / file
    if not own.is_file():
        pytest.fail(f"no iPXE at {own}: run make {TRIXIE.relative_to(Path.cwd())}/ipxe.efi")
    config = replace(session.config, firmware=firmware, ipxe=own)
    with session.ipxe(config, name=file) as machine:
        assert machine.build is not None
        assert machine.build.version.startswith("1.21.1+git2025")
        assert {"DNS", "HTTP", "HTTPS", "TFTP"} <= set(machine.build.features)
        version = machine.get("version") or ""
        assert version.startswith("1.21.1+git2025")


def test_a_row_of_80_columns_goes_on_in_the_next() -> None:
    row = b"a" * 80
    assert screen_text(row + b"\r\nbc\r\nd", columns=80) == "a" * 80 + "bc\nd"
    assert screen_text(row + b"\r\n\r\nd", columns=80) == "a" * 80 + "\nd"
    assert screen_text(row + b"\r\nbc", columns=None) == "a" * 80 + "\nbc"
    assert screen_text(b"", columns=80) == ""
    assert screen_text(b"iPXE> sho\b \bow", columns=80) == "iPXE> show"
