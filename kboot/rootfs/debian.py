"""A Debian system as an initramfs: systemd, ssh, root's login on the serial console.

``mmdebstrap`` makes it, as root, or in user namespaces. It takes a minute, so it is kept: by all
that it is made of, but for the day on which its packages were fetched. For another architecture
than this host's, its packages' programs run by ``qemu-user-static``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kboot import arch, process, state
from kboot.cache import keep_directory
from kboot.errors import ConfigError, InfraError, ProcessError
from kboot.locks import lock_file
from kboot.log import logger, step
from kboot.rootfs.cpio import Entry, archive, link, write_zstd
from kboot.state import cache_directory

DEFAULT_SUITE = "trixie"

_DECLARED = re.compile(
    r"debian(?::(?P<suite>[a-z][a-z0-9.-]*))?(?:\+(?P<packages>[a-z0-9][a-z0-9+.,-]*))?"
)
_PACKAGES = (
    *("systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "iproute2", "openssh-server"),
    *("ca-certificates", "procps"),
)
#: What a machine under test has no use for, and what takes a third of the room.
_EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "systemd-networkd-wait-online.service"),
)
_NETWORK = "[Match]\nType=ether\n[Network]\nDHCP=yes\n"
#: As the tiny system does it: see `kboot.rootfs.modules`.
_MODULES_UNIT = """\
[Unit]
Description=Kernel modules that were asked for
DefaultDependencies=no
ConditionPathExists=/etc/kboot/modules
After=systemd-journald.socket
Before=systemd-udev-trigger.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'while read -r module; do insmod "$module"; done < /etc/kboot/modules'

[Install]
WantedBy=sysinit.target
"""
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_LIMIT_S = 1800.0
_FOREIGN_NEEDS = "apt-get install arch-test qemu-user-static binfmt-support"
_KEPT_IMAGE = "debian.cpio.zst"
_ABOUT = "about.json"

#: Told what is being done, as it is; for people.
OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianSystem:
    """What is to be in it."""

    suite: str = DEFAULT_SUITE
    #: Beside those that every one has; sorted.
    packages: tuple[str, ...] = ()
    password: str = "kboot"  # noqa: S105  of a throw-away guest, and meant to be known
    mirror: str = arch.DEBIAN_MIRROR
    #: As ``uname -m`` says it.
    architecture: str = arch.DEFAULT.name

    @property
    def label(self) -> str:
        """As it is declared: ``debian:trixie+gdb,strace``."""
        extra = f"+{','.join(self.packages)}" if self.packages else ""
        return f"debian:{self.suite}{extra}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSystem:
    """One that was made."""

    label: str
    architecture: str
    path: Path
    size_bytes: int
    #: Seconds since the epoch.
    made: float
    used: float


def is_debian(value: str) -> bool:
    """Whether this declares a Debian system: ``debian[:SUITE][+PACKAGE,...]``."""
    return _DECLARED.fullmatch(value) is not None


def read_debian(
    value: str,
    *,
    password: str = "kboot",  # noqa: S107  as above
    mirror: str = arch.DEBIAN_MIRROR,
    architecture: str = arch.DEFAULT.name,
) -> DebianSystem:
    """What ``debian[:SUITE][+PACKAGE,...]`` declares. `ConfigError` if it does not."""
    found = _DECLARED.fullmatch(value)
    if found is None:
        raise ConfigError(f"rootfs {value}: not debian[:SUITE][+PACKAGE,...]")
    packages = tuple(sorted(filter(None, (found["packages"] or "").split(","))))
    return DebianSystem(
        suite=found["suite"] or DEFAULT_SUITE,
        packages=packages,
        password=password,
        mirror=mirror,
        architecture=architecture,
    )


def foreign_fault(architecture: str) -> str | None:
    """None if this host runs an architecture's programs, or else why not and what to install."""
    row = arch.of(architecture)
    if row.is_hosts:
        return None
    try:
        # As mmdebstrap itself asks.
        done = process.run(["arch-test", row.debian], timeout_s=30, check=False)
    except ProcessError:
        return f"arch-test, which tells whether its programs run here, is missing: {_FOREIGN_NEEDS}"
    return None if done.exit_status == 0 else f"its programs do not run here: {_FOREIGN_NEEDS}"


def debian_initramfs(system: DebianSystem, on_step: OnStep = lambda _: None) -> Path:
    """The initramfs (zstd), made if it is not there, which takes a minute.

    `ProcessError` if mmdebstrap is missing, `ConfigError` for a suite or package that the mirror
    does not have, `InfraError` if it cannot be made, or not for this architecture.
    """
    place = _place()
    target = place / _key(system)

    def fill(directory: Path) -> None:
        if fault := foreign_fault(system.architecture):
            raise InfraError(
                f"rootfs {system.label} cannot be made for {system.architecture} here: {fault}, "
                "or give an initramfs as rootfs"
            )
        with step(f"make {system.label} for {system.architecture}"):
            _make(system, directory, on_step)

    try:
        kept = keep_directory(target, fill)
    except ProcessError as error:
        raise explained(str(error), system) from error
    # When it was used last is what `prune` goes by.
    os.utime(kept / _ABOUT)
    return kept / _KEPT_IMAGE


def kept_systems() -> list[KeptSystem]:
    """Those that were made, the least recently used first."""
    found = []
    for directory in _place().iterdir():
        with contextlib.suppress(OSError, ValueError, KeyError):
            about = json.loads((directory / _ABOUT).read_text(encoding="utf-8"))
            image = directory / _KEPT_IMAGE
            found.append(
                KeptSystem(
                    label=about["label"],
                    # Once they were all for one.
                    architecture=about.get("architecture", arch.DEFAULT.name),
                    path=image,
                    size_bytes=image.stat().st_size,
                    made=about["made"],
                    used=(directory / _ABOUT).stat().st_mtime,
                )
            )
    return sorted(found, key=lambda each: each.used)


def remove_system(kept: KeptSystem) -> None:
    """Remove one; it can be made again. It is never seen half."""
    place = _place()
    with lock_file(place / ".lock"):
        old = place / ".removed"
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            kept.path.parent.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def forget_system(system: DebianSystem) -> None:
    """Have the next call of `debian_initramfs` make it anew."""
    for kept in kept_systems():
        if kept.path.parent.name == _key(system):
            remove_system(kept)


def _place() -> Path:
    return cache_directory("debian")


def _key(system: DebianSystem) -> str:
    recipe = [dataclasses.asdict(system), _command(system), _SETUP, _NETWORK]
    recipe += [_MODULES_UNIT, _MASKED]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]


#: In the new root, as root.
_SETUP = f"""\
set -e
ln -sf sbin/init init
echo debian > etc/hostname
systemctl enable -q systemd-networkd kboot-modules
systemctl mask -q {" ".join(_MASKED)}
rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/log/*.log var/cache/debconf/*-old boot/*
"""


def _command(system: DebianSystem) -> list[str]:
    """The command that makes the system, but for its output."""
    return [
        "mmdebstrap",
        "--variant=minbase",
        "--format=tar",
        f"--architectures={arch.of(system.architecture).debian}",
        f"--include={','.join((*_PACKAGES, *system.packages))}",
        *(f"--dpkgopt=path-exclude={path}" for path in _EXCLUDED),
        # A mirror may be a frozen one, whose lists have expired.
        '--aptopt=Acquire::Check-Valid-Until "false"',
        '--customize-hook=cp "$KBOOT_FILES/kboot-modules.service" "$1/etc/systemd/system/"',
        '--customize-hook=cp "$KBOOT_FILES/80-kboot.network" "$1/etc/systemd/network/"',
        '--customize-hook=chroot "$1" chpasswd < "$KBOOT_FILES/password"',
        '--customize-hook=chroot "$1" sh < "$KBOOT_FILES/setup"',
        system.suite,
        "-",
        system.mirror,
    ]


def _make(system: DebianSystem, directory: Path, on_step: OnStep) -> None:
    tar, log = directory / "root.tar", directory / "log"
    with _workplace(directory) as (place, marks):
        _write_files(system, place)
        environ = {"KBOOT_FILES": str(place), "TMPDIR": str(place), "LC_ALL": "C", **marks}
        command = [str(tar) if word == "-" else word for word in _command(system)]
        command[0] = process.find_program(command[0])
        on_step(f"mmdebstrap {system.label}")
        if os.geteuid() == 0:
            # What it mounts ends with it, however it ends: else whoever clears the directory
            # would clear the host's /sys.
            command = [*_APART, *command]
        with process.spawn(command, log=log, env=environ, stop_grace_s=0.5) as running:
            _follow(running, on_step)
            status = running.exit_status()
        if status != 0:
            raise ProcessError(_reason(log, status))
    on_step("pack the initramfs")
    pack(tar, directory / _KEPT_IMAGE)
    tar.unlink()
    about = {"label": system.label, "architecture": system.architecture, "made": time.time()}
    (directory / _ABOUT).write_text(json.dumps(about), encoding="utf-8")


@contextlib.contextmanager
def _workplace(directory: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Where mmdebstrap works, and what it needs in its environment for that to be cleared.

    As root it is in `directory`, which the next maker clears if we are killed. In a user namespace
    its root is another user than we are, who does not get there.
    """
    if os.geteuid() == 0:
        place = directory / "work"
        place.mkdir()
        yield place, {}
        shutil.rmtree(place)
        return
    with state.run_directory() as run, state.open_directory(run) as folder:
        yield folder, state.environment(run)


def _write_files(system: DebianSystem, place: Path) -> None:
    files = {
        "kboot-modules.service": _MODULES_UNIT,
        "80-kboot.network": _NETWORK,
        "password": f"root:{system.password}\n",
        "setup": _SETUP,
    }
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
        (place / name).chmod(0o644)


def _follow(running: process.Process, on_step: OnStep) -> None:
    """Tell what mmdebstrap says of its steps until it ends."""
    begin, seen = time.monotonic(), 0
    while running.exit_status() is None and time.monotonic() - begin < _LIMIT_S:
        lines = running.log.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines[seen:-1]:
            if line.startswith("I: "):
                logger.debug("mmdebstrap: %s", line[3:])
                on_step(line[3:].removesuffix("..."))
        seen = len(lines) - 1
        time.sleep(0.2)


def _reason(log: Path, status: int | None) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if line.startswith(("E: ", "Err:", "W: Failed"))]
    words = "; ".join(dict.fromkeys(said)) or text.strip()[-400:]
    return f"mmdebstrap failed (exit status {status}): {words[:600]}"


def explained(text: str, system: DebianSystem) -> ConfigError | InfraError:
    """Who has to act on what mmdebstrap has said."""
    if missing := re.findall(r"Unable to locate package (\S+)|Package '?([^\s']+)'? has no", text):
        name = "".join(missing[0])
        return ConfigError(f"rootfs {system.label}: {system.suite} has no package {name}")
    if "does not have a Release file" in text:
        return ConfigError(f"rootfs {system.label}: the mirror has no suite {system.suite}: {text}")
    if "newuidmap" in text or "unshare" in text or "chroot mode" in text:
        needs = (
            "as root it needs mounts of its own, which neither an unprivileged container has, nor "
            "a chroot that is no mount point (mount --bind DIR DIR before chroot DIR)"
            if os.geteuid() == 0 and "newuidmap" not in text
            else "without root it needs user namespaces, the programs of the package uidmap, and "
            "ids for the user in /etc/subuid and /etc/subgid (usermod --add-subuids 100000-165535 "
            "--add-subgids 100000-165535 USER)"
        )
        return InfraError(f"rootfs {system.label}: {text}; {needs}")
    return ProcessError(f"rootfs {system.label}: {text}")


def pack(tar: Path, target: Path) -> None:
    """Write what is in a tar archive as an initramfs."""
    write_zstd(target, archive(_entries(tar)), level=9)


def _entries(tar: Path) -> Iterator[Entry]:
    with tarfile.open(tar) as opened:
        for member in opened:
            path = member.name.removeprefix("./").strip("/")
            if not path or path == "." or path.startswith("dev/"):
                continue
            if (entry := _entry(opened, member, path)) is not None:
                yield entry
    # What the kernel opens for init before /dev is mounted.
    for name, minor in (("console", 1), ("null", 3)):
        mode = 0o020600 if name == "console" else 0o020666
        yield Entry(path=f"dev/{name}", mode=mode, device=(5 if minor == 1 else 1, minor))


def _entry(opened: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> Entry | None:
    owner = (member.uid, member.gid)
    if member.isdir():
        return Entry(path=path, mode=0o040000 | member.mode, owner=owner)
    if member.issym():
        return dataclasses.replace(link(path, member.linkname), owner=owner)
    # A hard link is another file with the same content.
    file = opened.extractfile(member) if member.isfile() or member.islnk() else None
    if file is None:
        return None
    return Entry(path=path, mode=0o100000 | member.mode, content=file.read(), owner=owner)
