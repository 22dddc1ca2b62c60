"""Ownership on a cluster: runs and their heartbeat, supervisors of machines, dead runs."""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import manifests
from kboot.kubevirt.api import CONFIG_MAPS, PODS, VIRTUAL_MACHINES, VMIS, ApiError, Client, Watch
from kboot.kubevirt.manifests import (
    HEARTBEAT,
    HOLDER,
    NAME_LABEL,
    OWNER_LABEL,
    PROCESS,
    RUN_LABEL,
    TTL,
    USER,
    Run,
    new_run,
    selector,
)
from kboot.kubevirt.watches import Watches
from kboot.log import logger

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: machine-id(5): tells apart virtual machines that go on from one snapshot.
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process, told from all others on all hosts."""

    #: ``user@host``
    user: str
    #: The host, its running kernel, and the namespace in which `pid` means something.
    host: str
    pid: int
    #: When it began, in ticks since its kernel's boot; a process id is used again.
    began: str

    @classmethod
    def this_process(cls) -> Holder:
        """Us."""
        space = Path("/proc/self/ns/pid").readlink()
        machine = _MACHINE_ID.read_text(encoding="ascii").strip() if _MACHINE_ID.exists() else ""
        host = f"{machine}/{_BOOT_ID.read_text(encoding='ascii').strip()}/{space}"
        return cls(user=user_and_host(), host=host, pid=os.getpid(), began=_began(os.getpid()))

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """What `to_text` has written; None for anything else."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def to_text(self) -> str:
        """As an annotation."""
        return json.dumps(asdict(self))

    def lives(self, *, silent_s: float, limit_s: float) -> bool:
        """Whether it still supervises the machine, if its last heartbeat is `silent_s` old.

        For a process of this host that is certain; others are given up after `limit_s`.
        """
        if self.host == Holder.this_process().host:
            return _began(self.pid) == self.began
        return silent_s < limit_s

    def is_running(self) -> bool | None:
        """Whether the process runs, if that can be known: it is one of this host; else None."""
        try:
            if self.host != Holder.this_process().host:
                return None
            began = _began(self.pid)
            if not began:
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            # Of another user, whose processes are hidden from us: proc(5), hidepid.
            return None
        return began == self.began

    def __str__(self) -> str:
        """For people."""
        return f"{self.user}, process {self.pid}"


def user_name() -> str:
    """The login name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def user_and_host() -> str:
    """Who runs this, for people who look at what is on their cluster."""
    return f"{user_name()}@{socket.gethostname()}"


def _began(pid: int) -> str:
    """When a process began; empty if there is none, or if it has ended and nobody has noticed."""
    try:
        # After the name, in parentheses: the state, and 19 fields later the start: proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


_LIMIT_S = 30.0
_NOT_FOUND = 404
#: A holder without a heartbeat for so long is dead: it has missed three.
_SILENCE_S = 70.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRun:
    """One run's owner object, and what hangs on it."""

    #: The name of the owner object, and of the boot server.
    name: str
    identifier: str
    #: Who runs it: ``user@host``.
    user: str
    #: Seconds since it began.
    age_s: float
    #: Seconds since it said last that it lives.
    silent_s: float
    #: After how much silence it is dead.
    ttl_s: float
    #: Name and owner of its machine, if that is a persistent one; else empty.
    machine: str
    owner: str
    #: The supervisor of such a machine, see `kboot.kubevirt.ownership`.
    holder: Holder | None
    #: Whether the process that has it runs, if that is one of this host; None if not known.
    running: bool | None
    #: The version of its owner object.
    version: str
    #: Its machines, with their states as KubeVirt words them.
    machines: tuple[tuple[str, str], ...]

    @property
    def dead(self) -> bool:
        """Whether its process has ended; of one on another host: was silent for too long."""
        return self.silent_s > self.ttl_s if self.running is None else not self.running


def find_runs(
    client: Client, *, now: datetime.datetime | None = None, limit_s: float = _LIMIT_S
) -> list[ClusterRun]:
    """The runs in the client's namespace, the oldest first; times are by the cluster's clock.

    Only what carries kboot's labels and its annotations is looked at. `ClusterError` if there is no
    such namespace.
    """
    deadline = Deadline(limit_s)
    owners, _ = client.find(CONFIG_MAPS, deadline, labelSelector=selector(component=manifests.RUN))
    machines, _ = client.find(VIRTUAL_MACHINES, deadline, labelSelector=selector())
    moment = now or client.now(deadline)
    if not owners:
        _require_namespace(client, deadline)
    runs = [_read(owner, machines, moment) for owner in owners]
    return sorted((run for run in runs if run), key=lambda run: (-run.age_s, run.name))


def _require_namespace(client: Client, deadline: Deadline) -> None:
    """Raise if there is no such namespace: a list of what is in it is empty, and no error."""
    name = "kboot-probe"
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    path = CONFIG_MAPS.path(client.namespace)
    try:
        client.json("POST", path, deadline, query={"dryRun": "All"}, body=probe)
    except ApiError as error:
        # Whatever else is refused, is refused in a namespace that is there.
        if error.status == _NOT_FOUND:
            raise


def remove(client: Client, run: ClusterRun) -> bool:
    """Delete a run with all that belongs to it, if it is still as it was found; whether it was.

    One whose process has come back in the meantime has said so by a change, and stays.
    """
    return client.delete(CONFIG_MAPS, run.name, Deadline(_LIMIT_S), version=run.version)


def about_machine(run: ClusterRun) -> str:
    """The supervisor of the run's persistent machine, in words."""
    supervisor = f"supervised by {run.holder}" if holder_lives(run) else "no supervisor"
    return f"machine {run.machine} of {run.owner}, {supervisor}"


def holder_lives(run: ClusterRun) -> bool:
    """Whether the run's machine has a supervisor."""
    holder = run.holder
    return holder is not None and holder.lives(silent_s=run.silent_s, limit_s=_SILENCE_S)


def _read(
    owner: Mapping[str, Any], machines: Iterable[Mapping[str, Any]], now: datetime.datetime
) -> ClusterRun | None:
    """A run from its owner object; None if it is not one after all."""
    metadata = owner["metadata"]
    notes = metadata.get("annotations") or {}
    identifier = metadata.get("labels", {}).get(RUN_LABEL)
    try:
        heartbeat = datetime.datetime.fromisoformat(notes[HEARTBEAT])
        created = datetime.datetime.fromisoformat(metadata["creationTimestamp"])
        ttl_s = float(notes[TTL])
    except (KeyError, ValueError):
        return None
    if not identifier:
        return None
    process = Holder.parse(notes.get(PROCESS, ""))
    own = [each for each in machines if each["metadata"]["labels"].get(RUN_LABEL) == identifier]
    return ClusterRun(
        name=metadata["name"],
        identifier=identifier,
        user=notes.get(USER, "unknown"),
        age_s=(now - created).total_seconds(),
        silent_s=(now - heartbeat).total_seconds(),
        ttl_s=ttl_s,
        machine=metadata["labels"].get(NAME_LABEL, ""),
        owner=metadata["labels"].get(OWNER_LABEL, ""),
        holder=Holder.parse(notes.get(HOLDER, "")),
        running=process.is_running() if process else None,
        version=metadata["resourceVersion"],
        machines=tuple(
            (vm["metadata"]["name"], str(vm.get("status", {}).get("printableStatus", "unknown")))
            for vm in own
        ),
    )


#: A cluster that cannot be reached at the beginning is told soon.
START_LIMIT_S = 15.0
_END_LIMIT_S = 30.0
#: Well below the time to live, so that a few may be lost.
HEARTBEAT_S = 60.0


def begin(
    client: Client,
    *,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Run:
    """A new run, which lives from now on; with more labels and annotations on its owner object."""
    run = Run(identifier=new_run(), namespace=client.namespace)
    deadline = Deadline(START_LIMIT_S)
    manifest = manifests.owner(run, user=user_and_host(), now=client.now(deadline))
    manifest["metadata"]["labels"] |= labels or {}
    manifest["metadata"]["annotations"] |= annotations or {}
    made = client.create(manifest, deadline)
    return replace(run, owner_uid=made["metadata"]["uid"])


def join(client: Client, identifier: str) -> Run:
    """A run that is there. `ClusterError` if it is not."""
    run = Run(identifier=identifier, namespace=client.namespace)
    owner = client.get(CONFIG_MAPS, run.name, Deadline(START_LIMIT_S))
    return replace(run, owner_uid=owner["metadata"]["uid"])


def watch(stack: contextlib.ExitStack, client: Client, run: Run) -> Watches:
    """Watch the run's machines and pods until the stack ends."""
    changed = threading.Condition()
    vms, vmis, pods = (
        stack.enter_context(
            Watch(client, resource, selector=selector(run.identifier), changed=changed)
        )
        for resource in (VIRTUAL_MACHINES, VMIS, PODS)
    )
    return Watches(vms=vms, vmis=vmis, pods=pods)


def end(client: Client, run: Run) -> None:
    """Remove all that the run has made; a cluster that is gone is no reason to fail."""
    try:
        client.delete(CONFIG_MAPS, run.name, Deadline(_END_LIMIT_S))
    except ClusterError as error:
        logger.warning(
            "run %s could not be removed from the cluster: %s; kboot gc will do it", run.name, error
        )


@contextlib.contextmanager
def heartbeat(
    client: Client,
    run: Run,
    *,
    interval_s: float | None = None,
    heard: Callable[[Mapping[str, Any]], None] = lambda _owner: None,
) -> Iterator[None]:
    """Say from time to time, by the cluster's clock, that the run lives; as long as the ``with``.

    `heard` is called with the owner object as it is after each beat.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(interval_s or HEARTBEAT_S):
            deadline = Deadline(HEARTBEAT_S)
            try:
                now = manifests.timestamp(client.now(deadline))
                change = {"metadata": {"annotations": {HEARTBEAT: now}}}
                heard(client.patch(CONFIG_MAPS, run.name, change, deadline))
            except Exception as error:
                # Whatever it is: without a heartbeat, the run would be removed as dead.
                logger.debug("the run's heartbeat was not taken: %s", error, exc_info=True)

    thread = threading.Thread(target=beat, name="kboot-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
