"""Machines that outlive the process that started them: made, found by name, taken over, removed."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kboot.backend import BootServer, PersistentMachine, VirtualMachine
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError, InfraError
from kboot.kubevirt import manifests, ownership
from kboot.kubevirt.api import CONFIG_MAPS, SECRETS, ApiError, Client, connect, current_context
from kboot.kubevirt.backend import KubevirtBackend
from kboot.kubevirt.manifests import NAME_LABEL, OWNER_LABEL, Manifest, Run, label
from kboot.kubevirt.ownership import ClusterRun, Holder, user_name
from kboot.kubevirt.server import RecreatingServer
from kboot.kubevirt.watches import Watches
from kboot.log import logger
from kboot.machine_spec import MachineSpec

_LIMIT_S = 30.0
#: How often a supervisor renews its heartbeat.
HEARTBEAT_S = 20.0

NOTE, POD = "note.json", "pod.yaml"


class PersistentCluster(KubevirtBackend):
    """See `kboot.backend.PersistentBackend`. Made in `kboot.kubevirt.persistent`."""

    def __init__(
        self,
        client: Client,
        run: Run,
        settings: ClusterConfig,
        watches: Watches,
        *,
        me: Holder,
        note: str = "",
        pod: str = "",
    ) -> None:
        super().__init__(client, run, settings, watches)
        self._me = me
        self._note = note
        self._pod = pod
        self._found = bool(note)
        self._other: Holder | None = None
        #: Whether what was made is to stay at the end.
        self.left = False

    # ------------------------------------------------------------------ what the protocol promises

    @property
    def identifier(self) -> str:
        """Of the run."""
        return self.run.identifier

    @property
    def address(self) -> Mapping[str, str]:
        """The settings that lead here again."""
        kubeconfig = self.settings.kubeconfig or os.environ.get("KUBECONFIG", "")
        address = {
            "backend": self.name,
            "kubeconfig": kubeconfig,
            "context": self.settings.context or current_context(kubeconfig),
            "namespace": self.run.namespace,
            "cluster_owner": self.settings.cluster_owner,
        }
        return {key: value for key, value in address.items() if value}

    @property
    def note(self) -> str:
        """What was given to `keep` last."""
        return self._note

    def keep(self, note: str) -> None:
        """Put a note beside the machine, a Secret; from the first one on, the machine stays."""
        deadline = Deadline(_LIMIT_S)
        texts = {NOTE: note, POD: self._pod}
        if self._note:
            self.client.patch(SECRETS, self.run.note_name, {"stringData": texts}, deadline)
        else:
            self.client.create(manifests.note(self.run, texts), deadline)
            ttl = {manifests.TTL: f"{self.settings.cluster_keep_s:.0f}"}
            self._annotate(ttl, deadline)
        self._note = note

    def leave(self) -> None:
        """Let all stay as it is at the end of the ``with``, for anybody to take it up."""
        self.left = True

    def check_holder(self) -> None:
        """Raise `ClusterError` if somebody else has taken the machine."""
        if self._other is not None:
            raise ClusterError(f"the machine was taken over by {self._other}")

    @contextlib.contextmanager
    def serve(self, deadline: Deadline) -> Iterator[BootServer]:
        """The boot server: a new one, or the one that is there, which may have to be mended."""
        if not self._found:
            with super().serve(deadline) as server:
                yield server
            return
        found = self.server(*self.find_server(deadline))
        try:
            found.check()
        except ClusterError as error:
            logger.warning("%s: it is made once more", error)
            found.recreate(deadline)
        with found.running(deadline):
            yield found

    @contextlib.contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[VirtualMachine]:
        """The machine: switched on, or as it is. It stays if this is left, or fails."""
        # The disk with its iPXE is there as it is, and the file may be on another host.
        machine = self.machine(replace(spec, ipxe=None) if self._found else spec)
        power = (
            machine.met(deadline)
            if self._found
            else machine.powered_on(deadline, stays=lambda: self.left)
        )
        with power:
            try:
                yield machine
            except BaseException:
                # Of no use to us any more, but it is not ours alone.
                self.left = self.left or bool(self._note)
                raise

    # -------------------------------------------------------------------------------------- inside

    def server(self, token: str, conf: str) -> RecreatingServer:
        """As a run has it, but one that can be made once more."""
        return RecreatingServer(
            self.client,
            self.run,
            self.watches.pods,
            self.settings,
            token=token,
            conf=conf,
            pod=lambda: self._pod,
        )

    def create(self, manifest: Manifest, deadline: Deadline) -> None:
        """Make an object of the run; what the boot server's pod was like is remembered."""
        if manifest["kind"] == "Pod":
            self._pod = manifests.to_yaml([manifest])
        super().create(manifest, deadline)

    def is_ours(self) -> bool:
        """Ask the cluster whether nobody else has taken the machine."""
        with contextlib.suppress(ClusterError):
            self.hear(self.client.get(CONFIG_MAPS, self.run.name, Deadline(_LIMIT_S)))
        return self._other is None

    def hear(self, owner: Mapping[str, Any]) -> None:
        """Read the machine's supervisor in the run's object."""
        holder = Holder.parse(owner["metadata"]["annotations"].get(manifests.HOLDER, ""))
        if holder is not None and holder != self._me:
            self._other = holder

    def _annotate(self, annotations: Mapping[str, str], deadline: Deadline) -> None:
        change = {"metadata": {"annotations": dict(annotations)}}
        self.client.patch(CONFIG_MAPS, self.run.name, change, deadline)


_REQUEST_LIMIT_S = 30.0
#: A cluster that is not there is not waited for where its machines are only listed.
_FIND_LIMIT_S = 8.0
_CONFLICT = 409
_MISSING = 404


@contextlib.contextmanager
def open_persistent(settings: ClusterConfig, name: str) -> Iterator[PersistentCluster]:
    """The backend for a new machine called `name`, which is removed at the end unless it is left.

    `ConfigError` if there is one of that name already.
    """
    settings = _with_owner(settings)
    client = connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)
    if there := _find(client, settings, name):
        raise _taken(there)
    me = Holder.this_process()
    labels = {NAME_LABEL: name, OWNER_LABEL: label(settings.cluster_owner)}
    run = ownership.begin(client, labels=labels, annotations={manifests.HOLDER: me.to_text()})
    left = False
    try:
        # Of two who have begun at the same time, both find the same one to be the first.
        first = _find(client, settings, name)
        if first and first.identifier != run.identifier:
            raise _taken(first)
        with contextlib.ExitStack() as stack:
            watches = ownership.watch(stack, client, run)
            backend = PersistentCluster(client, run, settings, watches, me=me)
            stack.enter_context(_kept_alive(backend))
            try:
                yield backend
            finally:
                left = backend.left
    finally:
        _finish(client, run, me, left=left)


@contextlib.contextmanager
def take_over_persistent(
    settings: ClusterConfig, name: str, *, by_force: bool = False
) -> Iterator[PersistentCluster]:
    """The backend for the machine called `name` that is there: taken up, if nobody has it.

    It is removed at the end unless it is left, or the ``with`` fails. `ConfigError` if there is
    none, or if it has a live supervisor, unless it is taken from that `by_force`.
    """
    settings = _with_owner(settings)
    client = connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)
    me = Holder.this_process()
    there = _take(client, settings, name, me, by_force=by_force)
    run = Run(identifier=there.identifier, namespace=client.namespace)
    left = True
    try:
        run = ownership.join(client, there.identifier)
        with contextlib.ExitStack() as stack:
            watches = ownership.watch(stack, client, run)
            note, pod = _read_note(client, run, name)
            backend = PersistentCluster(client, run, settings, watches, me=me, note=note, pod=pod)
            stack.enter_context(_kept_alive(backend))
            yield backend
            left = backend.left
    finally:
        _finish(client, run, me, left=left)


def find_persistent(settings: ClusterConfig) -> list[PersistentMachine]:
    """The machines that stay in the namespace, whoever they belong to."""
    client = connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)
    owner = label(_with_owner(settings).cluster_owner)
    return [
        PersistentMachine(
            identifier=run.identifier,
            name=run.machine,
            owner=run.owner,
            ours=run.owner == owner,
            user=run.user,
            age_s=run.age_s,
            silent_s=run.silent_s,
            ttl_s=run.ttl_s,
            condition=next((how for _, how in run.machines), "not there"),
            holder=str(run.holder) if ownership.holder_lives(run) else "",
        )
        for run in ownership.find_runs(client, limit_s=_FIND_LIMIT_S)
        if run.machine
    ]


def remove_persistent(settings: ClusterConfig, name: str) -> bool:
    """Remove a machine without a supervisor, and all that belongs to it; whether it was there.

    `ConfigError` if it has a live supervisor.
    """
    client = connect(settings.context, settings.namespace, kubeconfig=settings.kubeconfig)
    while there := _find(client, _with_owner(settings), name):
        _require_free(there)
        if ownership.remove(client, there):
            return True
        # It has changed since: somebody may have taken it up.
    return False


# ------------------------------------------------------------------------------------------ inside


def _with_owner(settings: ClusterConfig) -> ClusterConfig:
    return replace(settings, cluster_owner=settings.cluster_owner or user_name())


def _find(client: Client, settings: ClusterConfig, name: str) -> ClusterRun | None:
    owner = label(settings.cluster_owner)
    found = (
        run for run in ownership.find_runs(client) if (run.machine, run.owner) == (name, owner)
    )
    return next(found, None)


def _taken(run: ClusterRun) -> ConfigError:
    return ConfigError(
        f"there is a machine called {run.machine} of {run.owner} on the cluster already, started "
        f"by {run.user}: kboot status {run.machine}; kboot down {run.machine}"
    )


def _require_free(run: ClusterRun) -> None:
    if ownership.holder_lives(run):
        raise ConfigError(
            f"the machine {run.machine} is supervised by {run.holder}, heard of "
            f"{run.silent_s:.0f} s ago: use it there, or take it over: kboot take "
            f"{run.machine}"
        )


def _take(
    client: Client, settings: ClusterConfig, name: str, me: Holder, *, by_force: bool
) -> ClusterRun:
    """Become the machine's supervisor."""
    deadline = Deadline(_REQUEST_LIMIT_S)
    for _ in deadline.poll(0.2):
        there = _find(client, settings, name)
        if there is None:
            raise ConfigError(
                f"there is no machine called {name} of {settings.cluster_owner} in namespace "
                f"{client.namespace}; start it: kboot up"
            )
        if not by_force:
            _require_free(there)
        now = manifests.timestamp(client.now(deadline))
        notes = {manifests.HOLDER: me.to_text(), manifests.HEARTBEAT: now}
        # Only if it is as we have seen it: another one may be doing the same.
        change = {"metadata": {"annotations": notes, "resourceVersion": there.version}}
        try:
            client.patch(CONFIG_MAPS, there.name, change, deadline)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
        else:
            return there
    raise ClusterError(f"the machine {name} could not be taken up: its object changes all the time")


def _read_note(client: Client, run: Run, name: str) -> tuple[str, str]:
    try:
        data = client.get(SECRETS, run.note_name, Deadline(_REQUEST_LIMIT_S))["data"]
        note, pod = (base64.b64decode(data[key]).decode() for key in (NOTE, POD))
    except (ApiError, KeyError) as error:
        if isinstance(error, ApiError) and error.status != _MISSING:
            raise
        raise InfraError(
            f"the machine {name} was never finished: who started it has ended too early; "
            f"kboot down {name} removes it"
        ) from error
    return note, pod


@contextlib.contextmanager
def _kept_alive(backend: PersistentCluster) -> Iterator[None]:
    with ownership.heartbeat(
        backend.client, backend.run, interval_s=HEARTBEAT_S, heard=backend.hear
    ):
        yield


def _finish(client: Client, run: Run, me: Holder, *, left: bool) -> None:
    """Remove the run, or, if it is `left`, note that it has no supervisor any more."""
    if left:
        try:
            owner = client.get(CONFIG_MAPS, run.name, Deadline(_REQUEST_LIMIT_S))
            if Holder.parse(owner["metadata"]["annotations"].get(manifests.HOLDER, "")) == me:
                nobody = {"metadata": {"annotations": {manifests.HOLDER: ""}}}
                client.patch(CONFIG_MAPS, run.name, nobody, Deadline(_REQUEST_LIMIT_S))
        except ClusterError as error:
            logger.debug("not said that the machine is left: %s", error)
    else:
        ownership.end(client, run)
    client.close()
