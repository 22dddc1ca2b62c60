"""`make setup` installs every program that kboot, its tests and its benchmarks call by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.process import PACKAGES as ADVISED
from tests import schedule

CHECKOUT = Path(__file__).parent.parent
SCRIPT = CHECKOUT / ".ci" / "install-packages"

#: Debian's package of each program that is called.
PACKAGES = {
    "addr2line": "binutils",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "depmod": "kmod",
    "dropbear": "dropbear-bin",
    "dropbearkey": "dropbear-bin",
    "e2fsck": "e2fsprogs",
    "gcc": "gcc",
    "git": "git",
    "grub-mkimage": "grub-common",
    "make": "make",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mmd": "mtools",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mtype": "mtools",
    "nginx": "nginx-light",
    "nm": "binutils",
    "openssl": "openssl",
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "rpmbuild": "rpm",
    "ssh": "openssh-client",
    "strip": "binutils",
    "zstd": "zstd",
}
#: Of Debian's essential packages: on every system.
ESSENTIAL = {
    *(
        "bash",
        "cat",
        "cksum",
        "cp",
        "dash",
        "dpkg-deb",
        "env",
        "gzip",
        "ldd",
        "ls",
        "mkdir",
        "nohup",
    ),
    *("setpriv", "setsid", "sh", "sleep", "taskset", "timeout", "true", "unshare", "zcat"),
}
#: Without kubectl, what it is compared with is measured alone; without arch-test, root file systems
#: of other architectures are refused in one line.
OPTIONAL = {"arch-test", "kubectl"}

#: What is called by what is called: a module's build runs pahole, a link needs the C library.
INDIRECT = {
    *("dwarves", "libelf-dev", "libc6-dev", "ovmf", "ipxe-qemu", "python3-venv"),
    # What grub-mkimage makes a boot loader of.
    *("qemu-efi-aarch64", "grub-pc-bin", "grub-efi-amd64-bin"),
}

#: Functions that take a command, or the name of a program.
_CALLS = {"run", "spawn", "start_detached", "Popen", "check_output", "find_program", "_mtools"}
#: Not a program: the test of one that is not there, and the like.
_MADE_UP = {"qemu-of-tomorrow"}


def installed() -> set[str]:
    listed = re.findall(r"^(?:runtime|tests)=\(([^)]*)\)", SCRIPT.read_text(), re.MULTILINE)
    assert len(listed) == 2
    return set(" ".join(listed).split())


def programs_in(source: str) -> set[str]:
    """The names of programs that are called in a module."""
    tree = ast.parse(source)
    names = {name for call in _commands(tree) for name in _first_words(call)}
    variables = {
        word.id
        for call in _commands(tree)
        for word in ast.walk(_first(call))
        if isinstance(word, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if targets & variables:
                names |= set(_first_words(node.value))
    return names - _MADE_UP


def _commands(tree: ast.AST) -> Iterator[ast.expr]:
    """The first argument of every call that takes a command."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            # guest.run and the like run in the guest: a text, not a list.
            text = isinstance(node.args[0], ast.Constant)
            if name in _CALLS and (not text or name in {"find_program", "_mtools"}):
                yield node.args[0]


def _first(command: ast.expr) -> ast.expr:
    return command.elts[0] if isinstance(command, ast.List) and command.elts else command


def _first_words(command: ast.expr) -> Iterator[str]:
    first = _first(command)
    if isinstance(first, ast.Constant) and isinstance(first.value, str):
        yield first.value


def test_the_search_finds_commands_in_every_form() -> None:
    source = (
        'subprocess.run(["gcc", "-g", x])\nargv = ["make", *more]\nPopen(argv)\n'
        'run([*build, "x"])\nbuild = ["cpio"]\nfind_program("ssh")\nguest.run("nmap")\n'
    )
    assert programs_in(source) == {"gcc", "make", "cpio", "ssh"}


@pytest.mark.parametrize("part", ["kboot", "tests", "bench", ".ci"])
def test_every_program_that_is_called_is_installed(part: str) -> None:
    called = {
        name: str(path)
        for path in sorted((CHECKOUT / part).rglob("*.py"))
        for name in programs_in(path.read_text(encoding="utf-8"))
    }
    unknown = {
        name: where
        for name, where in called.items()
        if name not in PACKAGES and name not in ESSENTIAL and name not in OPTIONAL
    }
    assert unknown == {}, "put them into this table, and into .ci/install-packages"
    wanted = {PACKAGES[name] for name in called if name in PACKAGES}
    assert wanted - installed() == set()


def test_nothing_is_installed_without_need() -> None:
    assert installed() - set(PACKAGES.values()) - INDIRECT == set()


def test_the_remedies_of_kboot_name_the_same_packages() -> None:
    both = set(ADVISED) & set(PACKAGES)
    assert {"ssh", "nginx"} < both
    assert {name: ADVISED[name] for name in both} == {name: PACKAGES[name] for name in both}


def test_the_schedule_of_the_tests_names_what_is_there() -> None:
    for name in (*schedule.APART, *schedule.TOGETHER, *schedule.LONGEST_FIRST):
        file, _, test = name.partition("::")
        assert f"def {test}" in (CHECKOUT / "tests" / file).read_text(encoding="utf-8")
