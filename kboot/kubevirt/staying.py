"""The backend for one machine that stays when the process that looks after it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from kboot.backend import BootServer, Machine, MachineSpec
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kube import CONFIG_MAPS, SECRETS, Client, current_context
from kboot.kubevirt import manifests
from kboot.kubevirt.backend import KubevirtBackend
from kboot.kubevirt.holder import Holder
from kboot.kubevirt.manifests import Manifest, Run
from kboot.kubevirt.mending import MendedServer
from kboot.kubevirt.settings import ClusterSettings
from kboot.kubevirt.view import Watches
from kboot.log import logger

_LIMIT_S = 30.0
#: How often who looks after a machine says so.
HEARTBEAT_S = 20.0

NOTE, POD = "note.json", "pod.yaml"


class StayingCluster(KubevirtBackend):
    """See `kboot.backend.StayingBackend`. Made in `kboot.kubevirt.named`."""

    def __init__(
        self,
        client: Client,
        run: Run,
        settings: ClusterSettings,
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
        return {
            "backend": self.name,
            "context": self.settings.context or current_context(),
            "namespace": self.run.namespace,
            "owner": self.settings.owner,
        }

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
            ttl = {manifests.TTL: f"{self.settings.keep_s:.0f}"}
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
            found.mend(deadline)
        with found.running(deadline):
            yield found

    @contextlib.contextmanager
    def power_on(self, spec: MachineSpec, deadline: Deadline) -> Iterator[Machine]:
        """The machine: switched on, or as it is. It stays if this is left, or fails."""
        machine = self.machine(spec)
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

    def server(self, token: str, conf: str) -> MendedServer:
        """As a run has it, but one that can be made once more."""
        return MendedServer(
            self.client,
            self.run,
            self.watches.pods,
            token=token,
            domain=self.settings.domain,
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
        """See in the run's object who looks after the machine."""
        holder = Holder.parse(owner["metadata"]["annotations"].get(manifests.HOLDER, ""))
        if holder is not None and holder != self._me:
            self._other = holder

    def _annotate(self, annotations: Mapping[str, str], deadline: Deadline) -> None:
        change = {"metadata": {"annotations": dict(annotations)}}
        self.client.patch(CONFIG_MAPS, self.run.name, change, deadline)
