"""The console through a cluster: dropped, fought for, typed into, and never with a hole unseen."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator

import pytest

from kboot.backend import ReattachableMachine, Stream
from kboot.config import ClusterConfig
from kboot.deadline import Deadline
from kboot.errors import ClusterError
from kboot.kubevirt import KubevirtBackend, open_kubevirt
from kboot.kubevirt.api import connect, open_websocket
from kboot.kubevirt.api.client import VMI_ACTIONS
from tests.kubevirt.cluster import Cluster, running_cluster
from tests.kubevirt.powered import powered_on, read_until
from tests.kubevirt.talking import talking


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    with running_cluster(talking) as cluster:
        yield cluster


def test_no_byte_is_lost_over_a_hundred_disconnects(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        heard = read_until(machine.stream, b"line 20\r\n")
        for _ in range(100):
            cluster.drop_consoles()
            # Some more, so that it is dropped at all places of a line and of a frame.
            for _ in range(3):
                heard += machine.stream.recv(4096)
            time.sleep(0.08)
        last = int(re.findall(rb"line (\d+)\r\n", heard)[-1])
        heard += read_until(machine.stream, b"line %d\r\n" % (last + 5))
    numbers = [int(number) for number in re.findall(rb"line (\d+)\r\n", heard)]
    first = numbers[0]
    unknown = heard.count(b"is not known]")
    assert unknown == 0
    missing = set(range(first, numbers[-1])) - set(numbers)
    assert missing == set(), f"{len(missing)} lines are missing without a mark"
    assert heard.count(b"from guest-console-log]") == heard.count(b"[kboot: the console is back]")


def test_what_was_said_before_the_console_was_attached_is_filled_and_marked(
    backend: KubevirtBackend,
) -> None:
    with powered_on(backend) as machine:
        heard = read_until(machine.stream, b"line 30\r\n")
    numbers = [int(number) for number in re.findall(rb"line (\d+)\r\n", heard)]
    assert numbers == list(range(31))


def test_a_machine_that_is_started_paused_is_heard_from_its_first_byte(cluster: Cluster) -> None:
    with (
        open_kubevirt(ClusterConfig(cluster_attach="paused")) as backend,
        powered_on(backend) as machine,
    ):
        # The firmware's boot menu is skipped: somebody has pressed a key.
        heard = read_until(machine.stream, b"line 3\r\n")
    assert heard.startswith(b"Press ESC for boot menu.\r\n")
    assert b"line 0\r\n" in heard
    assert b"[kboot:" not in heard


@contextlib.contextmanager
def stolen(cluster: Cluster) -> Iterator[None]:
    """Somebody opens the console again and again, for the length of the ``with``."""
    client = connect()
    stopped = threading.Event()
    path = VMI_ACTIONS.path("team", cluster.instance().vmi["metadata"]["name"], "console")

    def steal() -> None:
        while not stopped.is_set():
            with contextlib.suppress(ClusterError):
                open_websocket(client, path, Deadline(5)).close()

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        yield
    finally:
        stopped.set()
        thief.join()
        client.close()


def read_until_it_fails(stream: Stream) -> None:
    with pytest.raises(ConnectionError, match="another session takes the machine's console"):
        read_until(stream, b"never said", seconds=120)


def test_a_fight_for_the_console_is_told_as_such(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine, stolen(cluster):
        read_until_it_fails(machine.stream)
        with pytest.raises(ClusterError, match="another session takes the machine's console"):
            machine.check()


def test_who_types_into_a_console_that_is_fought_for_is_told_so_at_once(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    told: list[str] = []
    typed_in_vain: list[bytes] = []
    lost = threading.Event()

    def type_all_the_time(stream: Stream) -> None:
        try:
            while True:
                stream.sendall(b"x")
                if lost.is_set():
                    typed_in_vain.append(b"x")
                time.sleep(0.05)
        except ConnectionError as error:
            told.append(str(error))

    with powered_on(backend) as machine:
        typist = threading.Thread(target=type_all_the_time, args=[machine.stream])
        with stolen(cluster):
            typist.start()
            read_until_it_fails(machine.stream)
            lost.set()
            typist.join(timeout=60)
            (text,) = told
            assert len(typed_in_vain) < 20
            assert "another session takes the machine's console" in text
        # The thief has left; nobody tries to have the line again.
        asked = cluster.calls("/console")
        with pytest.raises(ConnectionError, match="another session takes the machine's console"):
            machine.stream.sendall(b"x")
        assert cluster.calls("/console") == asked


def test_a_console_that_was_fought_for_is_had_again_when_it_is_free(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        assert isinstance(machine, ReattachableMachine)
        heard = read_until(machine.stream, b"line 20\r\n")
        with stolen(cluster):
            read_until_it_fails(machine.stream)
            assert not machine.reattach()
            assert machine.console_fault
        assert machine.reattach()
        assert machine.console_fault == ""
        machine.check()
        # What was said meanwhile is from the cluster's record, and marked.
        heard = read_until(machine.stream, b"is back]\r\n")
        assert b"the next " in heard
        machine.stream.sendall(b"hello\r")
        read_until(machine.stream, b"echo hello\r\n")


def test_who_types_to_a_machine_that_is_gone_is_told_so_at_once(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        cluster.delete("pods", cluster.instance().pod["metadata"]["name"])
        while machine.stream.recv(65536):
            pass
        asked = cluster.calls("/console")
        with pytest.raises(ConnectionError, match="serial line is gone"):
            machine.stream.sendall(b"x")
        assert cluster.calls("/console") == asked


@pytest.mark.parametrize("status", [400, 404])
def test_a_console_that_is_not_there_yet_is_asked_for_again(
    cluster: Cluster, backend: KubevirtBackend, status: int
) -> None:
    cluster.order("GET .*/console", count=2, status=status)
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 5\r\n")


def test_what_is_typed_while_the_console_is_lost_arrives_when_it_is_back(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    with powered_on(backend) as machine:
        read_until(machine.stream, b"line 5\r\n")
        before = cluster.api.faults.hits
        cluster.order("GET .*/console", count=3, status=500)

        def type_while_it_is_lost() -> None:
            for _ in Deadline(5).poll(0.01):
                if cluster.api.faults.hits > before:
                    break
            machine.stream.sendall(b"hello\r")

        typist = threading.Thread(target=type_while_it_is_lost)
        typist.start()
        cluster.drop_consoles()
        read_until(machine.stream, b"echo hello\r\n")
        typist.join()
