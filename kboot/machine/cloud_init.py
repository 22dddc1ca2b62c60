"""cloud-init in the guest: its data on the boot server, and waiting until it has finished.

The data source is NoCloud, by a URL on the kernel's command line
(``ds=nocloud;dsmode=net;s=URL``): the same on every backend, without a disk. See the data source's
page in cloud-init's documentation. A machine that boots from its disk has its data on another one:
`kboot.machine.cloud_init_disk`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path

from kboot.backend import BootServer
from kboot.deadline import Deadline
from kboot.errors import CommandFailed, ConfigError, GuestError, InfraError
from kboot.guest import Guest
from kboot.log import logger, step

#: What cloud-init takes for user data; the first line says which kind it is.
_KINDS = ("#cloud-config", "#!", "#include", "## template:", "#cloud-boothook", "#part-handler")
_LOGS = ("/var/log/cloud-init.log", "/var/log/cloud-init-output.log")
_LOG_LIMIT_S = 60.0
#: cloud-init would switch to en_US.UTF-8, which a minimal Debian does not have; what the user's
#: data says comes first.
VENDOR_DATA = "#cloud-config\nlocale: false\n"
#: Of `cloud-init status`: done, though something was not as it should be (since 23.4).
_DEGRADED = 2
_NOT_FOUND = 127
#: The data source that it falls back to: it has done what it does without user data.
_NO_DATA = "DataSourceNone"


def read_user_data(path: Path) -> str:
    """The user data in a file. `ConfigError` if cloud-init would pass over it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cloud-init {path}: cannot be read: {reason}") from error
    if not text.startswith((*_KINDS, "Content-Type:", "MIME-Version:")):
        first = text.partition("\n")[0][:60]
        raise ConfigError(
            f"cloud-init {path}: its first line is {first!r}, which cloud-init passes over; begin "
            "with #cloud-config, or #! for a script"
        )
    return text


def parameter(server: BootServer, machine_name: str) -> str:
    """The kernel parameter that leads cloud-init to its data."""
    # Without dsmode, 22.4 (Debian 12) finds the URL and takes nothing from there: it waits for a
    # local source.
    return f"ds=nocloud;dsmode=net;s={server.url(f'scripts/{_directory(machine_name)}')}/"


def publish(server: BootServer, machine_name: str, user_data: str, *, host_name: str = "") -> None:
    """Publish what a machine's cloud-init asks for.

    With a `host_name`, it is that of the guest, which is an instance of its own then.
    """
    meta = meta_data(host_name or machine_name, user_data, own_instance=bool(host_name))
    files = {
        "user-data": user_data,
        "meta-data": json.dumps(meta),
        "vendor-data": VENDOR_DATA,
    }
    for name, text in files.items():
        server.write(f"{_directory(machine_name)}/{name}", text)


def _directory(machine_name: str) -> str:
    return f"{machine_name}/cloud-init"


def meta_data(host_name: str, user_data: str, *, own_instance: bool = False) -> dict[str, str]:
    """JSON is YAML. Another instance-id has cloud-init do all once more.

    It has the host name in it if each of these machines is an instance of its own.
    """
    digest = hashlib.sha256(user_data.encode()).hexdigest()[:16]
    instance = f"kboot-{host_name}-{digest}" if own_instance else f"kboot-{digest}"
    return {"instance-id": instance, "local-hostname": host_name}


def wait_until_done(guest: Guest, deadline: Deadline, evidence_directory: Path) -> None:
    """Wait until cloud-init has finished. `GuestError` if it has failed, or is not there.

    Its logs are then in the evidence directory.
    """
    with step("wait for cloud-init"):
        done = guest.run("cloud-init status --wait", timeout=max(deadline.remaining, 1.0))
    if done.exit_status == _NOT_FOUND:
        raise GuestError("there is no cloud-init in the guest; give a root file system that has it")
    told = guest.run("cloud-init status --long", deadline=deadline).stdout
    status = (re.findall(r"^status: (.+)$", told, re.MULTILINE) or ["unknown"])[0]
    has_data = _NO_DATA not in told
    if has_data and done.exit_status == 0 and status == "done":
        return
    with contextlib.suppress(GuestError, InfraError, OSError):
        _keep_logs(guest, evidence_directory)
    log, words = evidence_directory / "cloud-init.log", _reason(told)
    if not has_data:
        raise GuestError(
            "cloud-init has found no data: has the kernel a driver for the card or the disk that "
            f"they come by? see {log}"
        )
    if done.exit_status == _DEGRADED and status in {"done", "degraded done"}:
        logger.warning("cloud-init has finished, and complains: %s", words)
        return
    raise GuestError(f"cloud-init: {status}{words and ': ' + words}; see {log}")


def _keep_logs(guest: Guest, directory: Path) -> None:
    for log in _LOGS:
        with contextlib.suppress(CommandFailed):
            guest.get(log, directory / Path(log).name, timeout=_LOG_LIMIT_S)


def _reason(told: str) -> str:
    """What `cloud-init status --long` says of errors, on one line."""
    lines = [line.strip() for line in told.splitlines()]
    begin = next(
        (at for at, line in enumerate(lines) if line.startswith(("detail:", "errors:"))), None
    )
    found = lines[begin:] if begin is not None else []
    return " ".join(" ".join(found).replace("detail:", "").split())[:400]
