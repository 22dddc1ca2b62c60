"""What must hold on every cluster: on the test cluster, and with --kboot-backend=kubevirt on yours.

``make test-kubevirt`` runs these against the kubeconfig's cluster. Nothing in here looks behind the
API server.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.backend import ExistingVirtualMachine
from kboot.cli import main
from kboot.config import ClusterConfig, Config, load
from kboot.deadline import Deadline
from kboot.errors import ClusterError, ConfigError
from kboot.kubevirt import (
    KubevirtBackend,
    open_kubevirt,
    open_persistent,
    ownership,
    take_over_persistent,
)
from kboot.kubevirt.api import (
    CONFIG_MAPS,
    PODS,
    VIRTUAL_MACHINES,
    ApiError,
    Client,
    connect,
    open_websocket,
)
from kboot.kubevirt.api.client import SECRETS, SERVICES, VMI_ACTIONS
from kboot.kubevirt.manifests import RUN_LABEL
from kboot.kubevirt.virtual_machine import ClusterVirtualMachine
from kboot.machine_spec import MachineSpec
from kboot.session import open_session
from tests.kubevirt import measure_push
from tests.kubevirt.cluster import Cluster, cluster_without_firmware
from tests.kubevirt.powered import eventually

#: Debian 13's, which ``make`` fetches.
OWN_IPXE = Path(__file__).parents[2] / "build" / "ipxe" / "trixie" / "ipxe.lkrn"

#: As it was before the tests' own fixture hides the user's settings.
ENVIRON = dict(os.environ)

#: A run with a boot server and a machine, that tells its name and goes on for ever.
RUN = """
import time
from kboot.machine_spec import MachineSpec
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.kubevirt import open_kubevirt
from tests.kubevirt.test_any_cluster import settings
with open_kubevirt(settings(real={real})) as backend, backend.serve(Deadline(120)) as server:
    spec = MachineSpec(name="m", boot_file=server.write("m/boot.ipxe", "#!ipxe"))
    with backend.power_on(spec, Deadline(180)):
        print(backend.run.name, flush=True)
        time.sleep(600)
"""


def settings(*, real: bool) -> ClusterConfig:
    """As the user has it for a cluster of his own, else kboot's defaults."""
    return load({}, ENVIRON, Path.cwd()) if real else ClusterConfig()


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> bool:
    """Whether the cluster is the user's."""
    return bool(request.config.getoption("kboot_backend") == "kubevirt")


@pytest.fixture(autouse=True)
def settings_for_a_cluster_of_ones_own(monkeypatch: pytest.MonkeyPatch, *, real: bool) -> None:
    """What is started by a test has them as well; the tests' own fixture has hidden them."""
    for variable, value in ENVIRON.items():
        if real and variable.startswith("KBOOT_"):
            monkeypatch.setenv(variable, value)


@pytest.fixture(scope="module")
def shared_cluster(*, real: bool) -> Iterator[Cluster | None]:
    if real:
        yield None
        return
    with cluster_without_firmware() as cluster:
        yield cluster


@pytest.fixture
def config(
    shared_cluster: Cluster | None,
    quick_kernel: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    real: bool,
) -> Config:
    """kboot's configuration for the cluster, with a kernel to boot."""
    wanted = {"backend": "kubevirt", "kernel": str(quick_kernel)}
    if real:
        return load(wanted, ENVIRON, Path.cwd())
    assert shared_cluster is not None
    shared_cluster.renew_if_broken()
    path = shared_cluster.write_kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(path))
    return load(wanted, {}, tmp_path)


@pytest.fixture
def client(config: Config) -> Iterator[Client]:
    client = connect(config.context, config.namespace)
    yield client
    client.close()


@pytest.fixture
def backend(config: Config) -> Iterator[KubevirtBackend]:
    with open_kubevirt(config) as backend:
        yield backend


def objects_of(client: Client, run: str) -> list[str]:
    """What there is of a run."""
    label = f"{RUN_LABEL}={run}"
    kinds = (CONFIG_MAPS, SECRETS, SERVICES, PODS, VIRTUAL_MACHINES)
    return [
        f"{kind.kind} {each['metadata']['name']}"
        for kind in kinds
        for each in client.find(kind, Deadline(30), labelSelector=label)[0]
    ]


def test_a_machine_that_is_left_is_met_by_who_comes_next(config: Config, client: Client) -> None:
    chosen = replace(config, cluster_owner="kboot-test")
    spec = MachineSpec(name="stays", boot_file="http://none/boot.ipxe")
    with open_persistent(chosen, "stays") as first, first.serve(Deadline(120)):
        first.keep("a note")
        with first.power_on(spec, Deadline(180)) as vm:
            assert vm.stream.recv(65536)
            first.leave()
    # Its boot server is evicted meanwhile.
    client.delete(PODS, first.run.name, Deadline(30))
    with take_over_persistent(chosen, "stays") as second, second.serve(Deadline(120)) as server:
        assert (second.run, second.note) == (first.run, "a note")
        server.check()
        with second.power_on(spec, Deadline(180)) as vm:
            assert isinstance(vm, ExistingVirtualMachine)
            assert b"[kboot: the console is attached]" in vm.past()
            vm.restart()
            assert vm.stream.recv(65536)
            vm.check()
    for _ in Deadline(60).poll(1):
        if not (left := objects_of(client, first.run.identifier)):
            return
    pytest.fail(f"left: {left}")


def test_a_script_of_the_users_own_and_ipxes_prompt_are_on_a_cluster_as_well(
    config: Config, tmp_path: Path
) -> None:
    tree = tmp_path / "netboot"
    tree.mkdir()
    (tree / "a menu.ipxe").write_text("#!ipxe\r\nset site berlin\r\n")
    script = tmp_path / "boot.ipxe"
    script.write_text(
        "#!ipxe\necho kboot: script ${nonce}\nchain --autofree a%20menu.ipxe || shell\n"
        "kernel --name kernel ${kernel_url} ${command_line} site=${site} || shell\n"
        "initrd --name initrd0 ${initrd0_url} || shell\nboot || shell\n"
    )
    chosen = replace(config, ipxe_script=script, serve=tree)
    with open_session(chosen, evidence=tmp_path / "evidence") as session:
        machine = session.machine(session.settings(chosen), name="script")
        assert [each.detail for each in machine.boot.script.chained] == ["a menu.ipxe"]
        assert "site=berlin" in machine.guest.succeed("cat /proc/cmdline").split()
        # The one that is there loads the user's own, where that can be.
        own = config if config.firmware == "uefi" else replace(config, ipxe=OWN_IPXE)
        with session.ipxe(own, name="prompt") as ipxe:
            if own.ipxe:
                assert (ipxe.get("version") or "").startswith("1.21.1+git2025")
            assert (ipxe.get("net0/ip") or "").startswith("10.")
            error = ipxe.run("imgfetch --name none none.ipxe").errno
            assert error is not None
            assert error.is_not_found
            with pytest.raises(ConfigError, match="does no wrong on purpose"):
                session.server.fault("*", status=503)


def test_a_machine_bears_what_a_cluster_does_to_it(config: Config, tmp_path: Path) -> None:
    with open_session(config, evidence=tmp_path / "evidence") as session:
        machine = session.machine(session.settings(config), name="any")
        vm, backend = machine.vm, session.backend
        assert isinstance(vm, ClusterVirtualMachine)
        assert isinstance(backend, KubevirtBackend)
        name = vm.description.rpartition(" ")[2]

        vm.pause()
        vm.unpause()
        assert machine.guest.succeed("echo awake").strip() == "awake"

        # Another session takes the console, and it is taken back.
        path = VMI_ACTIONS.path(backend.client.namespace, name, "console")
        open_websocket(backend.client, path, Deadline(30)).close()
        assert machine.guest.succeed("echo mine").strip() == "mine"

        before = machine.boot_id
        machine.restart()
        assert machine.boot_id != before
        assert machine.guest.succeed("uname -r").strip() == session.kernel.release

        vm.stop(force=True)
        vm.check()
        vm.start()
        vm.check()
        (pod,) = (
            pod
            for pod in backend.client.find(PODS, Deadline(30))[0]
            if pod["metadata"].get("labels", {}).get("vm.kubevirt.io/name") == name
            and "deletionTimestamp" not in pod["metadata"]
        )
        backend.client.delete(PODS, pod["metadata"]["name"], Deadline(30))
        eventually(ClusterError, "was ended from outside", vm.check, seconds=30)


def test_a_boot_server_whose_pod_is_deleted_is_named(backend: KubevirtBackend) -> None:
    with backend.serve(Deadline(120)) as server:
        server.check()
        backend.client.delete(PODS, backend.run.name, Deadline(30))
        eventually(ClusterError, "the boot server's pod .* is gone", server.check, seconds=30)


def test_a_machine_that_fits_no_node_is_told_at_once(backend: KubevirtBackend) -> None:
    spec = MachineSpec(name="huge", boot_file="http://none/", memory_mib=64 << 20)
    deadline = Deadline(120)
    with (
        pytest.raises(ClusterError, match=r"finds no node|quota"),
        backend.power_on(spec, deadline),
    ):
        pass
    assert not deadline.expired


def test_an_image_that_is_nowhere_is_told_soon(config: Config, *, real: bool) -> None:
    wanted = replace(settings(real=real), cluster_nginx_image="localhost/none:1")
    with (
        open_kubevirt(wanted) as backend,
        pytest.raises(ClusterError, match="image localhost/none:1 cannot be pulled"),
        backend.serve(Deadline(120)),
    ):
        pass


def test_a_run_that_was_killed_is_removed_and_its_neighbour_is_not(
    client: Client, config: Config, *, real: bool
) -> None:
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "kboot-test-foreign",
            "namespace": client.namespace,
            # Alike, and not a run of kboot's.
            "labels": {"app.kubernetes.io/managed-by": "kboot"},
        },
    }
    client.create(foreign, Deadline(30))
    try:
        command = [sys.executable, "-c", RUN.format(real=real)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout
            name = run.stdout.readline().strip()
            assert name, "the run did not come up"
            run.send_signal(signal.SIGKILL)
        identifier = name.removeprefix("kboot-")
        assert len(objects_of(client, identifier)) >= 6
        later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
        (dead,) = [each for each in ownership.find_runs(client, now=later) if each.name == name]
        assert dead.dead
        assert [state for _, state in dead.machines] != []
        ownership.remove(client, dead)
        for _ in Deadline(120).poll(0.5):
            if not (left := objects_of(client, identifier)):
                break
        assert left == []
        assert client.get(CONFIG_MAPS, "kboot-test-foreign", Deadline(30))
    finally:
        client.delete(CONFIG_MAPS, "kboot-test-foreign", Deadline(30))
    with pytest.raises(ApiError, match="not found"):
        client.get(CONFIG_MAPS, "kboot-test-foreign", Deadline(30))


def test_doctor_is_content(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        word
        for name, value in (("--context", config.context), ("--namespace", config.namespace))
        if value
        for word in (name, value)
    ]
    assert main(["doctor", "--backend", "kubevirt", *options]) == 0, capsys.readouterr().out


def test_settings_in_the_environment_hold_for_all_that_the_tests_start(
    shared_cluster: Cluster | None, tmp_path: Path, *, real: bool
) -> None:
    """``make test-kubevirt`` where the namespace is chosen by a variable."""
    if real:
        pytest.skip("it is how this is run")
    assert shared_cluster is not None
    path = shared_cluster.write_kubeconfig(tmp_path / "kubeconfig", namespace="nowhere")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={tmp_path}/t"),
            *("--kboot-backend=kubevirt", __file__, "-k", "killed or doctor"),
        ],
        env={**os.environ, "KUBECONFIG": str(path), "KBOOT_NAMESPACE": "team"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout


def test_a_ratio_is_told_with_its_interval() -> None:
    twice = [float(n) for n in (3, 3.5, 4, 4, 4, 4.5, 5, 5, 9)]
    text = measure_push.verdict([1.0] * 9, twice)
    assert text.startswith("kboot is 4.0 times as fast (3.5 to 5.0 in 96 of 100 such runs): as")
    assert "LESS" in measure_push.verdict([2.0] * 9, twice)
    assert "cannot be told" in measure_push.verdict([1.2] * 9, twice)


def test_the_speed_of_a_push_is_measured(config: Config, *, real: bool) -> None:
    if real:
        pytest.skip("make test-kubevirt measures it beside, with a large file")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kubevirt.measure_push", "2"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "kboot: 2 MB in " in done.stdout
    assert len(re.findall(r"\d\.\d\d(?:, | s\))", done.stdout)) == 9
    # The test cluster knows no exec, which kubectl needs.
    assert "kubectl cp: NOT MEASURED: " in done.stdout
