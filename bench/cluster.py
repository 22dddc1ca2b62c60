"""What many machines on a cluster cost: one process, and a test cluster with replayed consoles."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from bench.figure import Figure, interleaved, median_ratio
from kboot.config import ClusterConfig
from kboot.console import Console
from kboot.crash import Scanner
from kboot.deadline import Deadline
from kboot.kernel import sha256_of
from kboot.kubevirt import KubevirtBackend, open_kubevirt
from kboot.kubevirt.api import SECRETS, SERVICES
from kboot.kubevirt.manifests import token_of
from kboot.machine_spec import MachineSpec

_MACHINES = 50
#: A boot's console, and the time that it takes on a real cluster.
_BYTES, _SECONDS = 60_000, 15.0

#: More than is read back after it was sent.
_PUSH_BYTES = 200_000_000


def run(*, quick: bool) -> dict[str, Figure]:
    """``cluster_cpu``: cores for 50 machines that boot; ``cluster_memory``: what they add.

    ``cluster_push``: the time for a file, with its checksum, over that of a bare HTTPS request.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    # A process of its own for the cluster: its costs are not kboot's.
    process = multiprocessing.get_context("spawn").Process(target=_cluster, args=(theirs,))
    process.start()
    try:
        with tempfile.TemporaryDirectory(prefix="kboot-bench-") as directory:
            path = Path(directory, "kubeconfig")
            path.write_text(ours.recv(), encoding="utf-8")
            os.environ["KUBECONFIG"] = str(path)
            cpu, memory_mib = _measure(Path(directory), 10 if quick else _MACHINES)
            push = _measure_push(Path(directory), rounds=2 if quick else 6)
    finally:
        ours.send("end")
        process.join(timeout=30)
    return {
        "cluster_cpu": Figure(value=cpu, unit="cores"),
        "cluster_memory": Figure(value=memory_mib, unit="MiB"),
        "cluster_push": push,
    }


def _measure(directory: Path, machines: int) -> tuple[float, float]:
    with open_kubevirt(ClusterConfig()) as backend, ExitStack() as stack:
        # The libraries are loaded by now: what is measured is what the machines add.
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu, start = time.process_time(), time.monotonic()
        specs = [MachineSpec(name=f"m{n}", boot_file="http://none/") for n in range(machines)]
        powers = [backend.power_on(spec, Deadline(120)) for spec in specs]
        for power in powers:
            stack.push(power)
        consoles: list[Console] = []
        # All at once, as a parallel run would.
        with ThreadPoolExecutor(machines) as pool:
            started = list(pool.map(lambda power: power.__enter__(), powers))
        for number, machine in enumerate(started):
            record = directory / f"m{number}"
            record.mkdir()
            consoles.append(
                stack.enter_context(Console(machine.stream, record=record, scanner=Scanner()))
            )
        time.sleep(_SECONDS + 1)
        cores = (time.process_time() - cpu) / (time.monotonic() - start)
        added_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
        heard = min(console.mark() for console in consoles)
    if heard < 0.9 * _BYTES:
        raise AssertionError(f"a console has {heard} bytes only: nothing was measured")
    return cores, added_kib / 1024


def _measure_push(directory: Path, *, rounds: int) -> Figure:
    with open_kubevirt(ClusterConfig()) as backend, backend.serve(Deadline(60)) as server:
        artifact = directory / "artifact"

        def timed(put: Callable[[Path], object]) -> float:
            # On no server yet, so that it is sent; the first bytes tell one from another.
            with artifact.open("wb") as file:
                file.write(os.urandom(64))
                file.truncate(_PUSH_BYTES)
            start = time.monotonic()
            put(artifact)
            return time.monotonic() - start

        bare = _bare_put(backend)
        pairs = interleaved(lambda: timed(server.put), lambda: timed(bare), rounds=rounds)
    return median_ratio(pairs)


def _bare_put(backend: KubevirtBackend) -> Callable[[Path], None]:
    """What a script would do: a checksum for the name, and one request for the file."""
    import requests  # noqa: PLC0415

    client, run = backend.client, backend.run
    token = token_of(client.get(SECRETS, run.name, Deadline(10)))
    headers = {"X-Kboot-Token": token, **client.session.authorisation()}
    proxy = SERVICES.path(run.namespace, f"http:{run.name}:upload", "proxy")
    session = requests.Session()
    session.trust_env = False

    def put(artifact: Path) -> None:
        url = f"{client.host}{proxy}/files/artifacts/{sha256_of(artifact)}"
        with artifact.open("rb") as file:
            answer = session.put(
                url,
                data=file,
                headers=headers,
                verify=client.session.configuration.ssl_ca_cert,
                timeout=600,
            )
        answer.raise_for_status()

    return put


def _cluster(pipe: Connection) -> None:
    """A test cluster whose machines say a boot's worth of lines."""
    from tests.kubevirt.cluster import running_cluster  # noqa: PLC0415
    from tests.kubevirt.cluster.guests import Guest, ReplayGuest  # noqa: PLC0415

    line = b"[    0.123456] ACPI: bus type PCI registered, and some more words\r\n"
    transcript = line * (_BYTES // len(line))

    def replay(_spec: MachineSpec, _directory: Path, _paused: bool) -> Guest:
        return ReplayGuest(transcript, seconds=_SECONDS)

    with tempfile.TemporaryDirectory() as directory, running_cluster(replay) as cluster:
        path = cluster.write_kubeconfig(Path(directory, "kubeconfig"))
        pipe.send(path.read_text(encoding="utf-8"))
        pipe.recv()
