"""What keeps a pod from starting and passes by itself, and for how long that is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api import EVENTS, PODS, ApiError, Client, Watch
from kboot.kubevirt.diagnosis import Obstacle, Trouble
from kboot.kubevirt.manifests import Manifest, selector
from kboot.log import logger

#: How often it is looked again whether waiting helps.
_LOOK_S = 0.5
_REQUEST_LIMIT_S = 10.0

#: How long a trouble is borne for which nothing is known to be under way. A cluster's autoscaler
#: looks for pods without a node every 10 s; the scheduler comes back to a pod after 10 s at most;
#: a quota's use is counted anew a little after a pod is gone, and KubeVirt then tries again.
_GRACE_S = {Obstacle.ROOM: 12.0, Obstacle.QUOTA: 5.0, Obstacle.CLAIM: 0.0}
_GRACE_AFTER_ENDING_S = 15.0

#: Of the cluster autoscaler and of Karpenter: a node is on its way, or none will come.
_ADDS_NODE = {"TriggeredScaleUp", "Nominated"}
_ADDS_NONE = "NotTriggerScaleUp"
_STARTS_NODE = "node.kubernetes.io/not-ready"


class Patience:
    """Decides for one start whether waiting helps, and says in the log why it waits."""

    def __init__(self, client: Client, what: str) -> None:
        """`what` is what is to start, for the log."""
        self._client = client
        self._what = what
        self._begun = time.monotonic()
        #: Until when a trouble without a reason to wait is borne, by its kind.
        self._grace: dict[Obstacle, Deadline] = {}
        self._told = ""

    def bears(self, trouble: Trouble) -> bool:
        """Whether to wait on."""
        if trouble.obstacle is None:
            return False
        try:
            reason = self._reason(trouble, trouble.obstacle)
        except ClusterError as error:
            logger.debug("what %s waits for is not known: %s", self._what, error)
            reason = None
        if reason:
            if reason != self._told:
                logger.warning("%s waits: %s (%s)", self._what, reason, trouble.message)
                self._told = reason
            self._grace[trouble.obstacle] = Deadline(_GRACE_AFTER_ENDING_S)
            return True
        if reason == "":
            return False
        grace = self._grace.setdefault(trouble.obstacle, Deadline(_GRACE_S[trouble.obstacle]))
        if not self._told and not grace.expired:
            self._told = "to see whether room is made"
            logger.warning(
                "%s waits %.0f s %s (%s)", self._what, grace.seconds, self._told, trouble.message
            )
        return not grace.expired

    def error(self, trouble: Trouble) -> ClusterError:
        """The error for a trouble that was not borne, or did not pass in time."""
        words = trouble.text
        if trouble.obstacle is Obstacle.CLAIM:
            for claim in trouble.claims:
                if said := self._last_warning(claim):
                    words += f"; the cluster says about claim {claim}: {said}"
        waited_s = time.monotonic() - self._begun
        return ClusterError(f"{words} (waited {waited_s:.0f} s)" if self._told else words)

    # -------------------------------------------------------------------------------- inside

    def _reason(self, trouble: Trouble, obstacle: Obstacle) -> str | None:
        """Why to wait; empty if it is known to be in vain, None if nothing is known."""
        if obstacle is Obstacle.CLAIM:
            hopeless = any(_is_hopeless(self._last_warning(claim)) for claim in trouble.claims)
            return "" if hopeless else "a volume claim is being bound"
        pods, _ = self._client.find(PODS, Deadline(_REQUEST_LIMIT_S), labelSelector=selector())
        if ending := sum(map(_is_ending, pods)):
            return f"{ending} pod{'s' * (ending > 1)} of earlier machines or runs still ending"
        if obstacle is Obstacle.QUOTA:
            return None
        if _STARTS_NODE in trouble.message:
            return "a node is starting"
        seen = [str(each.get("reason")) for each in self._events_about(trouble.pod)]
        if _ADDS_NODE.intersection(seen):
            return "a node is being added"
        return "" if _ADDS_NONE in seen else None

    def _events_about(self, name: str) -> list[dict[str, Any]]:
        if not name:
            return []
        about = f"involvedObject.name={name}"
        return self._client.find(EVENTS, Deadline(_REQUEST_LIMIT_S), fieldSelector=about)[0]

    def _last_warning(self, name: str) -> str:
        """What the cluster has warned of last about an object; empty if of nothing."""
        try:
            events = self._events_about(name)
        except ClusterError as error:
            logger.debug("what was said about %s is not known: %s", name, error)
            return ""
        said = [str(each.get("message", "")) for each in events if each.get("type") == "Warning"]
        return said[-1] if said else ""


def wait_for(
    watch: Watch,
    find: Callable[[], Any],
    find_trouble: Callable[[], Trouble | None],
    patience: Patience,
    deadline: Deadline,
) -> Any:
    """As `Watch.wait_for`, as long as no trouble shows that waiting does not mend.

    Raises `ClusterError` with the trouble, also if there still is one at the deadline.
    """
    trouble: Trouble | None = None

    def look() -> Any:
        nonlocal trouble
        if (found := find()) is not None:
            trouble = None
            return found
        trouble = find_trouble()
        return True if trouble else None

    while True:
        found = watch.wait_for(look, deadline)
        if trouble is None:
            return found
        # Asked outside of the wait, which has the watches' lock.
        if deadline.expired or not patience.bears(trouble):
            raise patience.error(trouble)
        time.sleep(min(_LOOK_S, deadline.remaining))


def create(client: Client, manifest: Manifest, what: str, deadline: Deadline) -> dict[str, Any]:
    """Create an object, once a quota that is held by what is ending allows it."""
    patience = Patience(client, what)
    while True:
        try:
            return client.create(manifest, deadline)
        except ApiError as error:
            if "exceeded quota" not in error.text:
                raise
            trouble = Trouble(text=str(error), message=error.text, obstacle=Obstacle.QUOTA)
            if deadline.expired or not patience.bears(trouble):
                raise
        time.sleep(min(_LOOK_S, deadline.remaining))


def _is_ending(pod: dict[str, Any]) -> bool:
    """Whether a pod ends, and has its memory still."""
    phase = pod.get("status", {}).get("phase")
    return "deletionTimestamp" in pod["metadata"] and phase not in {"Succeeded", "Failed"}


def _is_hopeless(warning: str) -> bool:
    return "storageclass" in warning and "not found" in warning
