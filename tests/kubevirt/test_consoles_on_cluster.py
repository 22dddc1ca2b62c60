"""The console through a cluster: dropped, fought for, typed into, and never with a hole unseen."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest

from kboot.deadline import Deadline
from kboot.kube import connect, open_websocket
from kboot.kube.resources import VMI_ACTIONS
from kboot.kubevirt import ClusterSettings, KubevirtBackend, open_kubevirt
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
    with open_kubevirt(ClusterSettings(attach="paused")) as backend, powered_on(backend) as machine:
        # The firmware's boot menu is skipped: somebody has pressed a key.
        heard = read_until(machine.stream, b"line 3\r\n")
    assert heard.startswith(b"Press ESC for boot menu.\r\n")
    assert b"line 0\r\n" in heard
    assert b"[kboot:" not in heard


def test_a_fight_for_the_console_is_told_as_such(
    cluster: Cluster, backend: KubevirtBackend
) -> None:
    client = connect()
    stopped = threading.Event()

    def steal(name: str) -> None:
        path = VMI_ACTIONS.path("team", name, "console")
        while not stopped.is_set():
            open_websocket(client, path, Deadline(5)).close()

    with powered_on(backend) as machine:
        thief = threading.Thread(target=steal, args=[cluster.instance().vmi["metadata"]["name"]])
        thief.start()
        try:
            with pytest.raises(ConnectionError, match="another session takes the machine's"):
                read_until(machine.stream, b"never said", seconds=30)
        finally:
            stopped.set()
            thief.join()
    client.close()


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
