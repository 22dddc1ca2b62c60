"""Persistent machines on a cluster and what others do to them: told as such, and got over."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt.api import PODS, Client, connect, open_websocket
from kboot.kubevirt.api.client import VMI_ACTIONS
from tests.kubevirt.cluster import Cluster, cluster_without_firmware
from tests.users import User


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of its own, with machines that are QEMU."""
    with cluster_without_firmware() as cluster:
        path = cluster.write_kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(path))
        monkeypatch.setenv("KBOOT_BACKEND", "kubevirt")
        yield cluster


@contextlib.contextmanager
def stolen(client: Client, vm: str) -> Iterator[None]:
    """Somebody opens the console again and again, for the length of the ``with``."""
    stopped = threading.Event()

    def steal() -> None:
        path = VMI_ACTIONS.path(client.namespace, vm, "console")
        while not stopped.wait(0.1):
            with contextlib.suppress(ClusterError):
                open_websocket(client, path, Deadline(5)).close()

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        yield
    finally:
        stopped.set()
        thief.join()


def wait_for_state(user: User, state: str, *, seconds: float = 180) -> str:
    """What the machine's status shows once it is in this state."""
    for _ in Deadline(seconds).poll(0.5):
        shown = user.try_("status", "--json")
        found = json.loads(shown.stdout)
        if found["state"] == state:
            return f"{shown.returncode}: {found['what']}"
    pytest.fail(f"the machine is not {state}: {shown.stdout}")


def refused(user: User) -> subprocess.CompletedProcess[str]:
    """A command for a guest that cannot be had: it is refused, however long it may take."""
    return user.try_("exec", "--timeout=3600", "--", "true")


def test_a_persistent_machine_says_who_has_taken_what_from_it_and_goes_on(
    cluster: Cluster, tmp_path: Path, quick_kernel: Path
) -> None:
    user, client = User(tmp_path), connect()
    user.type("up", "--kernel", str(quick_kernel))
    try:
        boot_id = user.ask("status")["boot_id"]
        vm = cluster.instance().vmi["metadata"]["name"]
        words = "another session takes the machine's console again and again"
        with stolen(client, vm):
            shown = wait_for_state(user, "failed")
            assert shown.startswith(f"3: machine {vm}: {words}")
            done = refused(user)
            assert done.returncode == 3
            assert words in done.stderr
        # The other session has ended: the console is attached again, to the machine as it was.
        assert wait_for_state(user, "ready") == "0: "
        assert user.type("exec", "--", "cat", "/proc/sys/kernel/random/boot_id").strip() == boot_id
        assert "it is attached again" in user.ask("status")["notices"][-1]
        # Its node is drained.
        pod = cluster.instance().pod["metadata"]["name"]
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = PODS.path(client.namespace, pod, "eviction")
        client.json("POST", path, Deadline(5), body=body)
        shown = wait_for_state(user, "failed")
        assert shown.startswith(f"3: machine {vm} was ended from outside: its launcher pod")
        assert "EvictionByEvictionAPI" in shown
        done = refused(user)
        assert done.returncode == 3
        assert "was evicted, as kubectl drain" in done.stderr
        assert user.ask("restart")["error"] is None
    finally:
        user.type("down")
        client.close()
