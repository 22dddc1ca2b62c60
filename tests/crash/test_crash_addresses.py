"""Reports of kernels that print addresses where others print names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from kboot.cli.crash_symbols import names_of_push
from kboot.config import Config
from kboot.crash import AddressNames, CrashReport, Scanner
from kboot.errors import ConfigError
from kboot.kernel import read_kernel
from kboot.kernel.symbols import SymbolTable, read_symbols, symbols_of
from kboot.session import open_session
from kboot.testing import RECORDED_BOOT, FakeBackend, write_kernel
from tests.crash.crash_logs import encode
from tests.crash.test_crash_titles import CALM, ROWS, Row

BASE = 0xFFFFFFFF81000000
MOVED = 0x2E000000
_SYMBOL = re.compile(r"(?::\w+:)?([A-Za-z_.][\w.$]*)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[\w+\])?")


def system_map(path: Path, *functions: str, base: int = BASE, step: int = 0x1000) -> Path:
    """A System.map of these functions, in order, each `step` bytes long."""
    names = ["_text", *functions, "_etext"]
    lines = [f"{base + step * index:016x} T {name}\n" for index, name in enumerate(names)]
    path.write_text("0000000000000000 A fixed_percpu_data\n" + "".join(lines), encoding="ascii")
    return path


def scan(lines: list[str], names: AddressNames | None) -> list[CrashReport]:
    scanner = Scanner(names)
    events = scanner.feed(encode([f"[   42.{n:06}] {line}" for n, line in enumerate(lines)]))
    return [event for event in events + scanner.close() if isinstance(event, CrashReport)]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> SymbolTable:
    """Of all the functions in the table of reports."""
    found = {match[1] for row in ROWS for line in row.lines for match in _SYMBOL.finditer(line)}
    return read_symbols(system_map(tmp_path_factory.mktemp("map") / "System.map", *sorted(found)))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.lines[row.before][:60])
def test_a_kernel_without_symbols_has_the_same_titles(row: Row, table: SymbolTable) -> None:
    places = {symbol.name: symbol.address for symbol in table.symbols}

    def bare(match: re.Match[str]) -> str:
        return f"0x{places[match[1]] + MOVED + int(match[2], 16):016x}"

    text = [_SYMBOL.sub(bare, line) for line in row.lines]
    lines = [*CALM, *text, *["audit: type=1400"] * 40]
    names = AddressNames(table)
    names.moves.append((0, MOVED))
    found = scan(lines, names)
    assert tuple(report.title for report in found) == row.titles
    without = scan(lines, None)
    assert [r.start_line for r in without[:1]] == [r.start_line for r in found[:1]]


def test_a_machines_crash_has_the_names_that_came_with_its_kernel(tmp_path: Path) -> None:
    recorded = (RECORDED_BOOT / "serial.log").read_text(encoding="utf-8")
    begin = recorded.index("Kernel panic")
    (moved,) = re.findall(r"Kernel Offset: (0x\w+)", recorded)
    functions = sorted({match[1] for match in _SYMBOL.finditer(recorded, begin)})
    system_map(tmp_path / "System.map-6.99.1-mine", *functions)

    def bare(match: re.Match[str]) -> str:
        place = BASE + 0x1000 * (1 + functions.index(match[1])) + int(match[2], 16)
        return f"0x{place + int(moved, 16):016x}"

    record = tmp_path / "record"
    record.mkdir()
    for name in ("boot.ipxe", "access.jsonl"):
        shutil.copy(RECORDED_BOOT / name, record)
    log = recorded[:begin] + _SYMBOL.sub(bare, recorded[begin:])
    (record / "serial.log").write_bytes(log.encode())
    kernel = write_kernel(tmp_path / "vmlinuz", "6.99.1-mine")
    config = Config(kernel=str(kernel), isolation="none")
    backend = FakeBackend(record)
    with open_session(config, evidence=tmp_path / "evidence", backend=backend) as session:
        machine = session.machine(session.settings(session.config), name="replayed")
        with machine.expect_crash("panic") as crash:
            machine.panic()
    assert "write_sysrq_trigger" in [frame.function for frame in crash.report.frames]


class UnreadSymbols:
    """Must not be asked for anything."""

    in_upper_half = True

    @property
    def base(self) -> int:
        raise AssertionError

    def find(self, address: int, *, is_return: bool = False) -> None:
        raise AssertionError(hex(address), is_return)


def test_a_report_that_has_its_names_reads_no_symbols() -> None:
    recorded = (RECORDED_BOOT / "serial.log").read_text(encoding="utf-8")
    lines = recorded[recorded.index("Kernel panic") :].splitlines()
    (report,) = scan(
        [re.sub(r"^\[.*?\] ", "", line) for line in lines], AddressNames(UnreadSymbols())
    )
    assert "Kernel Offset: 0x" in report.text
    esr = ["Internal error: Oops: 0000000096000004 [#1] SMP", "  ESR = 0x0000000096000004"]
    assert scan([*esr, "pc : tdev_read+0x1/0x2"], AddressNames(UnreadSymbols()))


ARM_OLD = [
    "Division by zero in kernel.",
    "CPU: 1 PID: 77 Comm: tester Not tainted 4.4.0 #1",
    "Backtrace:",
    "Function entered at [<c0002010>] from [<c0001020>]",
    "Function entered at [<c0001010>] from [<c0003020>]",
]


def test_arms_own_form_of_a_stack_gets_names(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    names = ["_text", "tdev_rate", "Ldiv0", "tdev_open", "_etext"]
    lines = [f"{0xC0000000 + 0x1000 * at:08x} T {name}\n" for at, name in enumerate(names)]
    path.write_text("".join(lines), encoding="ascii")
    (report,) = scan(ARM_OLD, AddressNames(read_symbols(path)))
    assert report.title == "division by zero in tdev_rate"


def test_the_offset_in_a_panic_says_how_far_its_kernel_was_moved(tmp_path: Path) -> None:
    path = system_map(tmp_path / "System.map", "tdev_read", "tdev_open")
    lines = [
        "general protection fault: 0000 [#1] SMP",
        "CPU: 1 PID: 77 Comm: tester Not tainted 6.1.0 #1",
        f"RIP: 0010:0x{BASE + MOVED + 0x1010:x}",
        "Call Trace:",
        f" 0x{BASE + MOVED + 0x2020:x}",
        f" ? 0x{BASE + MOVED + 0x2000:x}",
        "---[ end trace 0000000000000000 ]---",
        "Kernel panic - not syncing: Fatal exception",
        f"Kernel Offset: {MOVED:#x} from {BASE:#x} (relocation range: 0x0-0x1)",
    ]
    oops, _ = scan(lines, AddressNames(read_symbols(path)))
    assert oops.title == "general protection fault in tdev_read"
    shown = [(f.function, f.offset, f.size, f.reliable) for f in oops.frames]
    # What is behind a function's end was called by that function, and does not return to it.
    assert shown == [
        ("tdev_read", 0x10, 0x1000, True),
        ("tdev_open", 0x20, 0x1000, True),
        ("tdev_read", 0x1000, 0x1000, False),
    ]
    assert oops.frames[1].address == BASE + MOVED + 0x2020
    # A copy of /proc/kallsyms has the addresses of the kernel that was moved.
    moved = system_map(tmp_path / "kallsyms", "tdev_read", "tdev_open", base=BASE + MOVED)
    assert scan(lines, AddressNames(read_symbols(moved)))[0].title == oops.title


def test_numbers_that_are_no_code_stay_as_they_are(table: SymbolTable) -> None:
    lines = [
        "BUG: unable to handle page fault for address: ffffffff81001010",
        "Oops: 0000 [#1] SMP",
        "CPU: 1 PID: 77 Comm: tester Not tainted 6.1.0 #1",
        "RIP: 0010:tdev_x+0x12/0x34",
        "RAX: ffffffff81001010 RBX: 0000000000000000",
        "#PF: error_code(0x00000010) - not-present page",
        "RIP: 0033:0x7f8812345678",
    ]
    names = AddressNames(table)
    (report,) = scan(lines, names)
    assert report.text.splitlines() == lines
    assert (names.named, names.unnamed) == (0, 0)


def test_one_address_with_several_names_has_the_kernels_choice(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    lines = [
        "ffffffff81000000 T _text",
        "ffffffff81001000 W tdev_weak",
        "ffffffff81001000 T __tdev_strong",
        "ffffffff81001000 T tdev_strong",
        "ffffffff81001010 t $x.12",
        "ffffffff81001020 d tdev_table",
        "ffffffff81001040 T tdev_next",
        "ffffffff81002000 T _etext",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    table = read_symbols(path)
    assert str(table.find(BASE + 0x1018)) == "tdev_strong+0x18/0x20"
    assert table.find(BASE + 0x1030) is None
    assert table.find(BASE - 1) is None
    assert table.size_of("tdev_next") == 0xFC0


def test_kallsyms_names_modules(tmp_path: Path) -> None:
    path = tmp_path / "kallsyms"
    lines = ["T _text", "T _stext", "T tdev_core"]
    text = "".join(f"{BASE + 0x1000 * at:016x} {line}\n" for at, line in enumerate(lines))
    module = "ffffffffc0001000 t tdev_hook\t[tdev]\nffffffffc0001100 t tdev_exit\t[tdev]\n"
    path.write_text(text + module, encoding="ascii")
    assert str(read_symbols(path).find(0xFFFFFFFFC0001010)) == "tdev_hook+0x10/0x100 [tdev]"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello\nworld\n" * 40, "neither a System.map, nor a copy of /proc/kallsyms, nor"),
        (b"\0\1\2" * 999, "neither a System.map"),
        (b"\x7fELF\x01\x01", "not a 64-bit ELF file"),
        (b"0000000000000000 T _text\n" * 9, "all its addresses are zero; copy /proc/kallsyms as"),
        (b"ffffffff81000000 D tdev\n" * 9, "there is no function in it"),
        (b"ffffffffffffffff B The real System.map is in the linux-image-dbg package\n", "a note"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_symbol_table_is_told_in_one_line(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "symbols"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(words)) as told:
        read_symbols(path)
    assert "\n" not in str(told.value)


def test_a_kernel_that_was_built_anew_takes_its_symbols_with_it(tmp_path: Path) -> None:
    image = write_kernel(tmp_path / "vmlinuz", "6.99.1-mine")
    path = system_map(tmp_path / "System.map-6.99.1-mine", "tdev_read")
    kernel = read_kernel(image)
    assert kernel.symbols == path
    table = symbols_of(kernel)
    assert table is not None
    assert str(table.find(BASE + 0x1010)) == "tdev_read+0x10/0x1000"
    write_kernel(image, "6.99.1-mine+")
    assert symbols_of(kernel) is None
    write_kernel(image, "6.99.1-mine")
    path.write_text("broken", encoding="ascii")
    assert symbols_of(kernel) is None


def test_a_persistent_machines_log_is_read_with_its_kernels_symbols(tmp_path: Path) -> None:
    image = write_kernel(tmp_path / "vmlinuz", "6.99.1-mine")
    kernel = read_kernel(image)
    push = {"number": 1, "kernel": str(image), "sha256": kernel.sha256}
    assert names_of_push(push) is None
    system_map(tmp_path / "System.map-6.99.1-mine", "tdev_read")
    names = names_of_push(push)
    assert names is not None
    assert names.put(f"RIP: 0010:{BASE + 0x1010:#x}", 0).endswith("tdev_read+0x10/0x1000")
    # Which of two kernels has printed a line cannot be told; nor what a file was before.
    for other in ({"number": 2}, {"sha256": "0" * 64}, {"kernel": str(tmp_path / "gone")}):
        assert names_of_push(push | other) is None
