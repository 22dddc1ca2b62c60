"""What a kubelet does for boot server pods: run their nginx, as a real one on this host."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import math
import os
import re
import socket
from base64 import b64decode
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from kboot import process, state
from tests.kubevirt.cluster.store import Object, Store, now

_NOBODY = 65534

#: What the scheduler says of a pod whose claim is not bound yet.
UNBOUND = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"

#: The image that no registry has.
MISSING_IMAGE = "localhost/none:1"


class RunningPod:
    """A pod's nginx."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        #: Ports on this host, by the pod's own.
        self.ports: dict[int, int] = {}
        #: When its Service knows it, by the event loop's clock.
        self.behind_service_s = math.inf
        self.stop = contextlib.ExitStack()
        self.process: process.Process
        self._stamped: list[tuple[datetime.datetime, bytes]] = []
        self._taken = 0

    def lines(self) -> list[tuple[datetime.datetime, bytes]]:
        """The whole lines of the log so far; each is stamped once, when it is taken."""
        with self.log.open("rb") as log:
            log.seek(self._taken)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._taken += len(whole) + len(newline)
        for line in (whole + newline).splitlines(keepends=True):
            self._stamped.append((datetime.datetime.now(datetime.UTC), line))
        return self._stamped


class Kubelet:
    def __init__(self, store: Store, directory: Path, domain: str) -> None:
        self._store = store
        self._directory = directory
        self._domain = domain
        #: Seconds from the first pod that wants a claim until it is bound (WaitForFirstConsumer).
        self.binding_s = 0.1
        #: By uid.
        self.running: dict[str, RunningPod] = {}
        #: From the moment at which a pod is ready until its Service has it as an endpoint.
        self.endpoint_lag_s = 0.1
        self._tasks: set[asyncio.Task[None]] = set()
        store.listeners.append(self._notice)

    def _notice(self, event: str, plural: str, pod: Object) -> None:
        if plural != "pods" or "kubevirt.io" in pod["metadata"].get("labels", {}):
            return
        if event == "ADDED" and pod["spec"]["containers"][0].get("command") != ["true"]:
            task = asyncio.get_running_loop().create_task(self._run(pod))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif event == "DELETED" and (running := self.running.pop(pod["metadata"]["uid"], None)):
            running.stop.close()

    def close(self) -> None:
        for running in self.running.values():
            running.stop.close()

    async def _run(self, pod: Object) -> None:
        self._store.status("pods", pod, phase="Pending", conditions=_conditions(ready=False))
        await asyncio.sleep(0.05)
        image = pod["spec"]["containers"][0]["image"]
        if image == MISSING_IMAGE:
            self._waits(pod, "ErrImagePull", f'failed to pull and unpack image "{image}"')
            return
        await self._bind_claim(pod)
        self._waits(pod, "ContainerCreating", "")
        await asyncio.sleep(0.1)
        uid = pod["metadata"]["uid"]
        running = RunningPod(self._directory / f"pod-{uid[:8]}")
        self.running[uid] = running
        self._start(pod, running)
        await self._wait_until_up(running, pod)
        running.behind_service_s = asyncio.get_running_loop().time() + self.endpoint_lag_s
        container = _container(pod, ready=True, state={"running": {"startedAt": now()}})
        self._store.status(
            "pods",
            pod,
            phase="Running",
            podIP="10.244.0.9",
            conditions=_conditions(ready=True),
            containerStatuses=[container],
        )
        while running.process.exit_status() is None:
            await asyncio.sleep(0.1)
            if uid not in self.running:
                return
        ended = {"exitCode": 137, "reason": "Error", "finishedAt": now()}
        container = _container(pod, ready=False, state={"terminated": ended})
        self._store.status(
            "pods",
            pod,
            phase="Failed",
            conditions=_conditions(ready=False),
            containerStatuses=[container],
        )

    async def _bind_claim(self, pod: Object) -> None:
        """Have the claim of a pod bound, for which it waits; it was made with it, at first."""
        namespace = pod["metadata"]["namespace"]
        for volume in pod["spec"]["volumes"]:
            name = volume.get("persistentVolumeClaim", {}).get("claimName")
            claim = name and self._store.get("persistentvolumeclaims", namespace, name)
            if not claim or claim.get("status", {}).get("phase") == "Bound":
                continue
            self._store.status("persistentvolumeclaims", claim, phase="Pending")
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": UNBOUND,
            }
            self._store.status("pods", pod, conditions=[condition])
            await asyncio.sleep(self.binding_s)
            self._store.status("persistentvolumeclaims", claim, phase="Bound")
            self._store.status("pods", pod, conditions=_conditions(ready=False))

    def _waits(self, pod: Object, reason: str, message: str) -> None:
        waiting = {"reason": reason, "message": message} if message else {"reason": reason}
        container = _container(pod, ready=False, state={"waiting": waiting})
        self._store.status("pods", pod, containerStatuses=[container])

    def _start(self, pod: Object, running: RunningPod) -> None:
        """Lay out what the pod mounts, and run its nginx on free ports of this host."""
        base = running.directory
        base.mkdir()
        self._mount_files(pod, base / "srv")
        namespace = pod["metadata"]["namespace"]
        texts: dict[str, str] = {}
        for volume in pod["spec"]["volumes"]:
            if name := volume.get("configMap", {}).get("name"):
                texts |= self._must(namespace, "configmaps", name)["data"]
            if name := volume.get("secret", {}).get("secretName"):
                secret = self._must(namespace, "secrets", name)["data"]
                texts |= {key: b64decode(value).decode() for key, value in secret.items()}
        for port in re.findall(r"listen (\d+);", texts["nginx.conf"]):
            running.ports[int(port)] = free_port()
        (base / "token.conf").write_text(texts["token.conf"])
        (base / "nginx.conf").write_text(self._local(texts["nginx.conf"], pod, running))
        user = _NOBODY if os.geteuid() == 0 else None
        if user is not None:
            for path in (base, base / "srv", base / "token.conf"):
                os.chown(path, user, user)
        argv = ["nginx", "-e", "stderr", "-p", str(base), "-c", str(base / "nginx.conf")]
        env = state.environment(self._directory)
        running.log.touch()
        running.log.chmod(0o666)
        running.process = running.stop.enter_context(
            process.spawn(argv, log=running.log, env=env, user=user)
        )

    def _mount_files(self, pod: Object, here: Path) -> None:
        """An empty directory, or that of a claim, where other pods have left their files."""
        (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == "files"]
        claim = volume.get("persistentVolumeClaim")
        if claim is None:
            here.mkdir()
            return
        name = claim["claimName"]
        self._must(pod["metadata"]["namespace"], "persistentvolumeclaims", name)
        kept = self._directory / f"claim-{name}"
        kept.mkdir(exist_ok=True)
        here.symlink_to(kept)

    def _local(self, text: str, pod: Object, running: RunningPod) -> str:
        """The pod's configuration with the paths and ports of this host.

        Machines here have no cluster DNS: in scripts, the Service's name is written as the address
        that it would have led them to.
        """
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        # Workers would outlive a main process that is killed; a container's go with it.
        text = text.replace("worker_processes 2;", "master_process off;")
        text = text.replace("/srv/", f"{running.directory}/srv/")
        text = text.replace("/etc/kboot/token/", f"{running.directory}/")
        text = text.replace("/dev/stdout", str(running.log))
        for port, here in running.ports.items():
            text = text.replace(f"listen {port};", f"listen 127.0.0.1:{here};")
        service = f"http://{name}.{namespace}.svc.{self._domain}/"
        http = running.ports[8080]
        return re.sub(
            r"(location /\w+/scripts/ \{)",
            rf"\1 sub_filter {service} http://10.0.2.2:{http}/; sub_filter_once off; "
            "sub_filter_types *;",
            text,
        )

    def _must(self, namespace: str, plural: str, name: str) -> Object:
        found = self._store.get(plural, namespace, name)
        assert found is not None, f"the pod mounts {plural}/{name}, which is not there"
        return found

    async def _wait_until_up(self, running: RunningPod, pod: Object) -> None:
        probe = pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]
        url = f"http://127.0.0.1:{running.ports[8080]}{probe['path']}"
        async with aiohttp.ClientSession() as session:
            while running.process.exit_status() is None:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)
        raise AssertionError(f"nginx ended: {running.log.read_text()}")

    async def follow(self, running: RunningPod, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The pod's log as the query wants it, as it grows, until the pod is gone."""
        sent = 0
        while True:
            lines = running.lines()
            text, sent = b"".join(as_wanted(lines[sent:], query)), len(lines)
            if text:
                yield text
            elif running not in self.running.values():
                return
            else:
                await asyncio.sleep(0.02)


def as_wanted(
    lines: Iterable[tuple[datetime.datetime, bytes]], query: Mapping[str, str]
) -> list[bytes]:
    """The lines of a pod's log that a query selects, as it wants them."""
    since = query.get("sinceTime")
    found = [
        (moment, line)
        for moment, line in lines
        if since is None or moment >= datetime.datetime.fromisoformat(since)
    ]
    if query.get("timestamps") != "true":
        return [line for _, line in found]
    return [f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + line for moment, line in found]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _conditions(*, ready: bool) -> list[dict[str, Any]]:
    word = "True" if ready else "False"
    return [
        {"type": "PodScheduled", "status": "True"},
        {"type": "Initialized", "status": "True"},
        {"type": "Ready", "status": word},
        {"type": "ContainersReady", "status": word},
    ]


def _container(pod: Object, *, ready: bool, state: Object) -> Object:
    spec = pod["spec"]["containers"][0]
    return {
        "name": spec["name"],
        "image": spec["image"],
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }
