"""The tiny system: a static busybox, a login on the serial line, and nothing else.

Its files lie in ``tiny_files/`` as they will lie in the guest; a file with ``#!`` is executable.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kboot import arch
from kboot.arch import Architecture
from kboot.cache import FileStamp, keep_file
from kboot.errors import ConfigError
from kboot.kernel.debian import fetch_file
from kboot.kernel.elf import parse_elf
from kboot.process import find_program, run
from kboot.rootfs.cpio import (
    Entry,
    archive,
    character_device,
    directory,
    gzipped,
    link,
    regular,
    with_parents,
)
from kboot.state import cache_directory

_FILES = Path(__file__).parent / "tiny_files"
_BUSYBOX = "usr/bin/busybox"
#: Fixed, so that the same password gives the same image.
_SALT = "kboot"
#: What this process has made already, by all that it is made of.
_made: dict[tuple[Path, FileStamp, str, str, bool], Path] = {}


def tiny_initramfs(
    *,
    architecture: str = arch.DEFAULT.name,
    password: str = "kboot",  # noqa: S107  # of a throw-away guest, and meant to be known
    autologin: bool = False,
    mirror: str = arch.DEBIAN_MIRROR,
) -> Path:
    """An initramfs (gzip) that boots to ``linux login: `` on the serial line; root has `password`.

    With `autologin` it boots to root's shell. The same arguments and the same busybox give the same
    bytes. Made of this host's static busybox, or if that is for another `architecture`, of Debian's
    from its `mirror`; kept in the cache. `ProcessError` if there is no busybox,
    `ConfigError` if it is not static, `InfraError` if it cannot be fetched.

    In the guest, files in ``/etc/kboot`` (say, from `overlay_initramfs`) turn things on:
    ``modules`` (kernel modules to load, one absolute path a line), ``network`` (DHCP on the first
    Ethernet device, in the background), ``autologin``.
    """
    if "\n" in password or not password:
        raise ConfigError("the password of the tiny root file system has to be one line, not empty")
    row = arch.of(architecture)
    busybox = _static_busybox(row, mirror)
    # Making it takes a tenth of a second, and who boots many machines asks for it each time.
    place = cache_directory("rootfs")
    key = (place, FileStamp.of(busybox), architecture, password, autologin)
    made = _made.get(key)
    if made is None or not made.is_file():
        image = _image(busybox, row, password, autologin=autologin)
        made = _made[key] = keep_file(place, "tiny.cpio.gz", image)
    return made


def _image(
    busybox: Path, architecture: Architecture, password: str, *, autologin: bool
) -> Iterable[bytes]:
    """The content of the image."""
    entries = [
        *(directory(path) for path in ("dev", "mnt", "proc", "root", "run", "sys", "tmp", "var")),
        *(link(path, f"usr/{path}") for path in ("bin", "lib", "sbin")),
        directory("usr/lib"),
        # The kernel opens it for init before /dev is mounted.
        character_device("dev/console", 5, 1, 0o600),
        character_device("dev/null", 1, 3, 0o666),
        regular(_BUSYBOX, busybox, executable=True),
        *_applets(busybox),
        *_system_files(),
        regular("etc/kboot/console", f"{architecture.console}\n".encode()),
        Entry(path="etc/shadow", mode=0o100600, content=_shadow(password)),
    ]
    if autologin:
        entries.append(regular("etc/kboot/autologin", b""))
    return gzipped(archive(with_parents(entries)))


def _static_busybox(architecture: Architecture, mirror: str) -> Path:
    path = Path(find_program("busybox"))
    elf = parse_elf(path.read_bytes())
    if elf is None or not elf.is_static:
        raise ConfigError(
            f"{path}: not a static program, so it cannot run in an initramfs; "
            "install one that is: apt-get install busybox-static"
        )
    if elf.architecture == architecture.name:
        return path
    return fetch_file(architecture.busybox_file, architecture=architecture.debian, mirror=mirror)


def _applets(busybox: Path) -> list[Entry]:
    """A link for each of its commands, as ``busybox --install`` would make them in the guest.

    It may not run here: of the commands of this host's busybox, those that it has the names of.
    """
    listing = run(["busybox", "--list-full"], timeout_s=10).stdout.decode()
    # All at once: to look for one name after the other takes a quarter of a second.
    names = set(busybox.read_bytes().split(b"\0")[1:-1])
    # Some names have no directory (linuxrc): those are not commands.
    places = [Path(line) for line in listing.split() if "/" in line]
    return [
        link(f"usr/{place.parent.name}/{place.name}", f"/{_BUSYBOX}")
        for place in places
        if place.name != "busybox" and place.name.encode() in names
    ]


def _system_files() -> list[Entry]:
    files = sorted(path for path in _FILES.rglob("*") if path.is_file())
    contents = [(str(path.relative_to(_FILES)), path.read_bytes()) for path in files]
    return [regular(name, text, executable=text.startswith(b"#!")) for name, text in contents]


def _shadow(password: str) -> bytes:
    """The content of ``/etc/shadow``, hashed by busybox, whose login will read it."""
    mkpasswd = ["busybox", "mkpasswd", "-m", "sha512", "-S", _SALT]
    hashed = run(mkpasswd, timeout_s=10, stdin=password.encode() + b"\n").stdout.strip()
    # Empty number fields, usual as they are, make busybox 1.35 pass over the line.
    ages = b":19000:0:99999:7:::\n"
    return b"root:" + hashed + ages + b"nobody:*" + ages
