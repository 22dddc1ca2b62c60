"""``kboot crash`` as its user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kboot.testing import write_kernel
from tests.crash.crash_logs import DATA

C_SOURCE = """\
const char linux_banner[] = "Linux version 6.1.0 (a@b) (gcc) #1 SMP";

__attribute__((noinline)) int inner(volatile int *where)
{
    return *where;
}

int outer(volatile int *where)
{
    int value = inner(where);
    return value + 1;
}

int main(void)
{
    return linux_banner[0] + outer(0);
}
"""


def crash(*argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "kboot", "crash", *argv]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)


@pytest.fixture
def vmlinux(tmp_path: Path) -> Path:
    """A small program that has what of a kernel image matters here."""
    source = tmp_path / "kernel.c"
    source.write_text(C_SOURCE, encoding="utf-8")
    image = tmp_path / "vmlinux"
    subprocess.run(["gcc", "-g", "-O1", "-o", str(image), str(source)], check=True)
    return image


def oops(release: str = "6.1.0") -> bytes:
    lines = [
        "general protection fault: 0000 [#1] SMP",
        f"CPU: 0 PID: 7 Comm: t Not tainted {release} #1",
        "RIP: 0010:inner+0x1/0x3",
        "Call Trace:",
        " outer+0x5/0x9",
        " made_up+0x5/0x9",
        "---[ end trace 0000000000000000 ]---",
    ]
    return "\n".join(lines).encode() + b"\n"


def test_a_crash_is_told_and_exits_with_1() -> None:
    done = crash(str(DATA / "gpf-4.14.log"))
    text = done.stdout.decode()
    assert done.returncode == 1
    assert "general protection fault in sess_put" in text
    assert "caused by: general protection fault in sess_put (line 3)" in text
    assert "-> sess_put+0x5f/0x1b0  net/sess/core.c:411" in text


def test_a_clean_log_exits_with_0_and_says_nothing() -> None:
    done = crash(str(DATA / "clean" / "debian-6.1-boot.log"))
    assert (done.returncode, done.stdout) == (0, b"")


def test_json_is_one_object_per_report_and_line() -> None:
    done = crash("--json", str(DATA / "gpf-4.14.log"))
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["kind"], first["function"]) == ("general-protection", "sess_put")
    assert second["caused_by"]["start_line"] == first["start_line"] == 3


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (b"BZh91AY", "bzip2"),
        (b"PK\x03\x04\x14", "zip"),
        (b"\x7fELF\x02\x01", "not a console log but an ELF file"),
        (b"QFI\xfb\0\0\0\3", "not a console log but a qcow2 disk image"),
        (b"070701" + b"0" * 90, "not a console log but an initramfs"),
        (bytes(range(256)) * 40, "not a console log but unknown binary data"),
        ("[    1.000000] x".encode("utf-16-le"), "iconv -f UTF-16LE"),
        ("[    1.000000] x".encode("utf-16-be"), "iconv -f UTF-16BE"),
        (None, "there is no such file"),
    ],
)
def test_what_is_no_log_gets_one_line_and_exit_code_2(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "input"
    if content is not None:
        path.write_bytes(content)
    done = crash(str(path))
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_a_kernel_given_as_a_log_is_called_what_it_is(tmp_path: Path) -> None:
    done = crash(str(write_kernel(tmp_path / "vmlinuz")))
    assert done.returncode == 2
    assert "vmlinuz is not a console log but a Linux kernel image" in done.stderr.decode()


@pytest.mark.parametrize(
    "noise",
    [b"", b"\0" * 9000, bytes(range(1, 256)) * 4, "журнал ядра\n".encode(), b"\xff\xfe\x01\x02"],
    ids=["nothing", "zeros", "any bytes", "Russian", "broken"],
)
def test_noise_at_the_start_makes_no_log_a_binary(tmp_path: Path, noise: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(noise + b"\n" + oops())
    assert b"general protection fault" in crash(str(log)).stdout


def test_standard_input_is_followed_live() -> None:
    command = [sys.executable, "-m", "kboot", "crash", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write(b"[    1.000000] Kernel panic - not syncing: now\n")
        running.stdin.flush()
        # The input has not ended yet.
        assert running.stdout.readline() == b"panic: now\n"
        running.stdin.close()
        assert running.wait(20) == 1


def test_vmlinux_adds_file_and_line(tmp_path: Path, vmlinux: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(oops())
    done = crash("--vmlinux", str(vmlinux), str(log))
    text = done.stdout.decode()
    assert done.returncode == 1, done.stderr
    assert "kernel.c:5" in text
    assert "kernel.c:10" in text
    assert "made_up+0x5/0x9\n" in text


def test_another_kernels_vmlinux_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(oops("6.9.9"))
    done = crash("--vmlinux", str(vmlinux), str(log))
    assert done.returncode == 2
    assert "is Linux 6.1.0, but the log is of Linux 6.9.9" in done.stderr.decode()


def test_a_stripped_vmlinux_is_refused(tmp_path: Path, vmlinux: Path) -> None:
    stripped = tmp_path / "stripped"
    shutil.copy(vmlinux, stripped)
    subprocess.run(["strip", str(stripped)], check=True)
    log = tmp_path / "log"
    log.write_bytes(oops())
    done = crash("--vmlinux", str(stripped), str(log))
    assert done.returncode == 2
    assert "has no symbol table" in done.stderr.decode()


def two_boots(path: Path) -> Path:
    banner = b"[    0.000000] Linux version 6.1.0 (a@b) (gcc) #1 SMP\n"
    panics = [b"[    1.000000] Kernel panic - not syncing: boot %d\n" % n for n in (1, 2, 3)]
    path.write_bytes(b"SeaBIOS (version 1)\n" + b"".join(banner + panic for panic in panics))
    return path


@pytest.mark.parametrize(
    ("option", "boots"),
    [
        (("--boot", "last"), [3]),
        (("--boot", "1"), [1]),
        (("--boot", "2"), [2]),
        (("--since-boot", "2"), [2, 3]),
        (("--since-boot", "1"), [1, 2, 3]),
        (("--since-boot", "last"), [3]),
    ],
)
def test_a_log_of_several_boots_can_be_read_from_one_of_them(
    tmp_path: Path, option: tuple[str, str], boots: list[int]
) -> None:
    done = crash("--json", *option, str(two_boots(tmp_path / "log")))
    texts = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    assert [int(text[-1]) for text in texts] == boots


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--boot", "7"), "there is no boot 7, but 3"),
        (("--boot", "0"), "neither a boot's number"),
        (("--boot", "1", "--since-boot", "1"), "exclude each other"),
    ],
)
def test_a_boot_that_is_not_there_is_refused(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = crash(*options, str(two_boots(tmp_path / "log")))
    assert done.returncode == 2
    assert words in done.stderr.decode()


def test_of_many_logs_one_without_that_boot_is_skipped(tmp_path: Path) -> None:
    two_boots(tmp_path / "b")
    (tmp_path / "a").write_bytes(oops())
    done = crash("--json", "--boot", "2", str(tmp_path))
    assert [json.loads(line)["log"] for line in done.stdout.splitlines()] == [str(tmp_path / "b")]
    assert f"skipped: {tmp_path / 'a'}: there is no boot 2" in done.stderr.decode()


def test_many_logs_make_a_table_of_titles(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "below"
    logs.mkdir(parents=True)
    for name in ("a", "b"):
        (logs / name).write_bytes(oops())
    (logs / "c").write_bytes(b"[    1.000000] Kernel panic - not syncing: alone\n")
    (logs / "d.gz").write_bytes(b"\x1f\x8b\x08\x00rest")
    done = crash(str(logs.parent))
    header, first, second = done.stdout.decode().splitlines()
    assert done.returncode == 1
    assert header.split() == ["REPORTS", "LOGS", "TITLE", "FIRST"]
    assert first.split() == f"2 2 general protection fault in inner {logs / 'a'}:1".split()
    assert second.split() == f"1 1 panic: alone {logs / 'c'}:1".split()
    assert "d.gz is not a console log but gzip" in done.stderr.decode()
    lines = crash("--json", str(logs / "a"), str(logs / "c")).stdout.splitlines()
    assert [json.loads(line)["log"] for line in lines] == [str(logs / "a"), str(logs / "c")]


def test_a_complaint_alone_is_shown_and_exits_with_0(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trace = b"CPU: 0 PID: 7 Comm: t Not tainted 6.1.0 #1\nCall Trace:\n outer+0x5/0x9\n"
    log.write_bytes(b"irq 17: nobody cared (try booting with the irqpoll option)\n" + trace)
    done = crash(str(log))
    assert done.returncode == 0
    assert "interrupt that nobody handles" in done.stdout.decode()


LINKED = 0xFFFFFFFF81000000


def bare_oops(address: int, *, moved: int | None = None, release: str = "6.1.0") -> bytes:
    """An oops, and its panic, of a kernel that prints no names."""
    lines = [
        f"Linux version {release} (a@b) (gcc) #1 SMP",
        "general protection fault: 0000 [#1] SMP",
        f"CPU: 0 PID: 7 Comm: t Not tainted {release} #1",
        f"RIP: 0010:{address:#x}",
        "Call Trace:",
        f" {address:#x}",
        "---[ end trace 0000000000000000 ]---",
    ]
    if moved is not None:
        lines.append("Kernel panic - not syncing: Fatal exception")
        lines.append(f"Kernel Offset: {moved:#x} from {LINKED:#x} (relocation range: 0x0-0x1)")
    return b"".join(b"[    1.%06d] %s\n" % (n, line.encode()) for n, line in enumerate(lines))


@pytest.fixture
def system_map(tmp_path: Path) -> Path:
    path = tmp_path / "System.map-6.1.0"
    names = ["_text", "tdev_read", "tdev_open", "_etext"]
    path.write_text("".join(f"{LINKED + 0x1000 * n:x} T {name}\n" for n, name in enumerate(names)))
    return path


def test_a_system_map_names_what_a_kernel_shows_as_addresses(
    tmp_path: Path, system_map: Path
) -> None:
    log = tmp_path / "log"
    # Each boot has an offset of its own, which only its panic tells, at its very end.
    early = bare_oops(LINKED + 0x1010 + 0x3000000)
    first = early + bare_oops(LINKED + 0x1010 + 0x3000000, moved=0x3000000).partition(b"\n")[2]
    log.write_bytes(first + bare_oops(LINKED + 0x2010 + 0x5000000, moved=0x5000000))
    done = crash("--json", "--symbols", str(system_map), str(log))
    titles = [json.loads(line)["title"] for line in done.stdout.splitlines()]
    oopses = [title for title in titles if not title.startswith("panic")]
    assert oopses == [f"general protection fault in tdev_{x}" for x in ("read", "read", "open")]
    assert (done.returncode, done.stderr) == (1, b"")


def test_addresses_that_nobody_knows_are_told(tmp_path: Path, system_map: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(bare_oops(LINKED + 0x1010 + 0x3000000))
    done = crash("--symbols", str(system_map), str(log))
    assert done.stdout.decode().startswith("general protection fault\n")
    (remark,) = done.stderr.decode().splitlines()
    assert "was moved (KASLR)" in remark


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (bare_oops(LINKED + 0x1010, release="6.9.9"), "is Linux 6.1.0, but the log is of Linux"),
        (
            oops().replace(
                b"made_up+0x5/0x9",
                b"tdev_read+0x1/0x40\n tdev_open+0x2/0x50\n _text+0x3/0x60",
            ),
            "is of another kernel than the log: tdev_read has 0x1000 bytes there, and 0x40",
        ),
    ],
    ids=["release", "sizes"],
)
def test_another_kernels_symbols_are_refused(
    tmp_path: Path, system_map: Path, log: bytes, words: str
) -> None:
    path = tmp_path / "log"
    path.write_bytes(log)
    done = crash("--symbols", str(system_map), str(path))
    assert done.returncode == 2
    assert words in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


def test_a_vmlinux_has_names_files_and_lines_for_addresses(tmp_path: Path) -> None:
    source, image, log = tmp_path / "kernel.c", tmp_path / "vmlinux", tmp_path / "log"
    source.write_text(C_SOURCE, encoding="utf-8")
    place = ["-nostdlib", "-static", "-mcmodel=kernel", f"-Wl,-Ttext={LINKED:#x},-e,main"]
    command = ["gcc", "-g", "-O1", "-fno-pie", "-no-pie", *place, "-o", str(image), str(source)]
    subprocess.run(command, check=True)
    listing = subprocess.run(["nm", str(image)], check=True, capture_output=True, text=True).stdout
    inner = int(next(line for line in listing.splitlines() if line.endswith(" inner"))[:16], 16)
    log.write_bytes(bare_oops(inner + 1 + 0x3000000, moved=0x3000000))
    done = crash("--symbols", str(image), str(log))
    text = done.stdout.decode()
    assert text.startswith("general protection fault in inner\n"), done.stderr
    assert "kernel.c:5" in text
