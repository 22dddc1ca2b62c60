"""The kernel engineer's loop on both backends: the same commands, typed in the same order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.deadline import Deadline
from kboot.rootfs import overlay_initramfs, tiny_initramfs
from kboot.service import Service
from kboot.supervisor.registry import KIND
from tests.kubevirt.cluster import Cluster, cluster_without_firmware
from tests.users import User

KINDS = ("configmaps", "pods", "secrets", "services", "virtualmachines", "networkpolicies")


class MachineSession:
    """A user, and what there is of his machine."""

    def __init__(self, user: User, cluster: Cluster | None) -> None:
        self.user = user
        self.cluster = cluster

    def kernel(self) -> str:
        return self.user.type("exec", "--", "uname", "-r").strip()

    def lose_supervisor(self, how: int = signal.SIGKILL) -> None:
        """It is killed; and another host from now on: nothing of this one's notes is there."""
        status = self.user.ask("status")
        os.kill(status["pid"], how)
        home = self.user.home / f"state-{status['pid']}"
        self.user.environ["XDG_STATE_HOME"] = str(home)
        self.user.environ["KBOOT_BACKEND"] = "kubevirt"

    def place(self) -> Service:
        """Where the supervisor of this host is."""
        state = Path(self.user.environ["XDG_STATE_HOME"])
        return Service(kind=KIND, name="default", path=state / "kboot" / "machines" / "default")

    def left(self) -> list[str]:
        """What is there still of any machine."""
        assert self.user.ask("list") == []
        if self.cluster is None:
            return []
        return [
            f"{kind}/{thing['metadata']['name']}"
            for kind in KINDS
            for thing in self.cluster.objects(kind)
        ]


def wait_until_ended(supervisor: Service) -> None:
    for _ in Deadline(30).poll(0.1):
        if not supervisor.is_alive:
            return
    pytest.fail(f"{supervisor.path} is held still")


@pytest.fixture(params=["qemu", "kubevirt"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MachineSession]:
    user = User(tmp_path)
    user.environ["KBOOT_BACKEND"] = request.param
    with contextlib.ExitStack() as stack:
        cluster = None
        if request.param == "kubevirt":
            cluster = stack.enter_context(cluster_without_firmware())
            kubeconfig = cluster.write_kubeconfig(tmp_path / "kubeconfig")
            user.environ["KUBECONFIG"] = str(kubeconfig)
        yield MachineSession(user, cluster)
        user.try_("down", "--all")


def test_the_whole_loop_is_the_same_everywhere(
    session: MachineSession, debian_kernel: Path, second_kernel: Path
) -> None:
    user = session.user
    user.type("up", "--kernel", str(debian_kernel))
    first = session.kernel()
    assert f"Linux version {first}" in user.type("console", "--log", "--since", "start")
    pushed = user.ask("push", str(second_kernel))
    assert pushed["release"] != first
    assert session.kernel() == first
    if session.cluster:
        session.lose_supervisor()
    outcome = user.ask("restart")
    assert outcome["error"] is None
    assert outcome["release"] == pushed["release"] == session.kernel()
    assert f"Linux version {pushed['release']}" in user.type("console", "--log")
    crashed = user.ask("panic")
    assert "sysrq" in crashed["crash"].lower()
    if session.cluster:
        session.lose_supervisor()
        found = user.ask("status")
        assert (found["state"], found["what"]) == ("ready", "")
        assert found["boot_id"] == crashed["boot_id"]
        assert "sysrq triggered crash" in user.type("logs")
    died = user.try_("crash")
    assert (died.returncode, "sysrq" in died.stdout.lower()) == (1, True)
    back = user.ask("pushes", "rollback")
    assert back["release"] == first
    assert user.ask("restart")["release"] == first == session.kernel()
    # What was asked for is no crash.
    assert user.try_("crash").stdout == died.stdout
    user.type("down")
    assert session.left() == []


def test_on_a_cluster_what_is_lost_is_mended_or_told(tmp_path: Path, quick_kernel: Path) -> None:
    user = User(tmp_path)
    large = tmp_path / "large.cpio"
    extra = overlay_initramfs({"/root/large": os.urandom(24 << 20)})
    large.write_bytes(tiny_initramfs().read_bytes() + extra.read_bytes())
    with cluster_without_firmware() as cluster:
        user.environ["KUBECONFIG"] = str(cluster.write_kubeconfig(tmp_path / "kubeconfig"))
        user.environ["KBOOT_BACKEND"] = "kubevirt"
        session = MachineSession(user, cluster)
        user.type("up", "--kernel", str(quick_kernel))
        before = user.ask("status")
        # A push whose client, and then whose supervisor, is killed in the middle.
        cluster.order("PUT .*/artifacts/", delay_s=1.5, count=2)
        for victim in ("client", "supervisor"):
            with subprocess.Popen(
                user.command("push", str(large)),
                env=user.environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as push:
                time.sleep(1.2)
                if victim == "supervisor":
                    session.lose_supervisor()
                push.kill()
        (only,) = user.ask("pushes")
        assert only["current"]
        # The boot server is evicted, and with it all that was on it is lost.
        cluster.delete("pods", f"kboot-{before['identifier']}")
        outcome = user.ask("restart")
        assert outcome["error"] is None
        assert outcome["boot_id"] != before["boot_id"]
        status = user.ask("status")
        assert (status["state"], status["boots"]) == ("ready", 2)
        assert "is gone" in status["notices"][0]
        # From another host it can be taken; who had it before ends.
        first = session.place()
        user.environ["XDG_STATE_HOME"] = str(tmp_path / "elsewhere")
        refused = user.try_("exec", "--", "true")
        assert refused.returncode == 2
        assert "kboot take default" in refused.stderr
        assert first.is_alive
        user.type("take")
        assert session.kernel() == status["release"]
        wait_until_ended(first)
        # Somebody stops the machine while it has no supervisor.
        second = session.place()
        session.lose_supervisor(signal.SIGTERM)
        wait_until_ended(second)
        cluster.stop_machine()
        done = user.try_("status")
        assert done.returncode == 3
        assert "was stopped from outside" in done.stdout
        user.type("down")
        assert session.left() == []
