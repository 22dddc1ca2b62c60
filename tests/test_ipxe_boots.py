"""Real boots by scripts of the user's own: the documentation's, and broken ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.backend import Backend, BootServer
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import GuestError, ScriptEnded
from kboot.kernel import Kernel, read_kernel
from kboot.machine import Machine, Phase, open_backend, power_on, settings_for
from kboot.machine.script_trial import end_of
from kboot.machine_spec import Dhcp

_DOCS = Path(__file__).parent.parent / "docs" / "ipxe.md"
HEAD = "#!ipxe\necho kboot: script ${nonce}\n"
REST = "initrd --name initrd0 ${initrd0_url} || shell\nboot || shell\n"


class Bench:
    """A server, and machines that boot from it with firmware and DHCP done."""

    def __init__(self, backend: Backend, server: BootServer, kernel: Kernel, folder: Path) -> None:
        self.server = server
        self.kernel = kernel
        self.kernel_url = server.put(kernel.image)
        self._backend = backend
        self._folder = folder
        self._count = 0

    def boot(
        self, script: Path | None = None, serve: Path | None = None, dhcp: Dhcp = "normal"
    ) -> Machine:
        """The machine once it is ready, or at its end; it is off already."""
        self._count += 1
        config = Config(
            accel="tcg",
            firmware_start="saved",
            ipxe_script=script,
            serve=serve,
            timeout_s=120,
            dhcp=dhcp,
        )
        settings = replace(settings_for(self.kernel, config), user="root").named(f"b{self._count}")
        self.evidence = self._folder / f"b{self._count}"
        with power_on(
            self._backend, self.server, self.kernel, settings, evidence_directory=self.evidence
        ) as machine:
            machine.wait_until_ready()
        return machine


@pytest.fixture(scope="module")
def bench(quick_kernel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with (
        open_backend(Config(accel="tcg")) as backend,
        backend.serve(Deadline(60)) as server,
    ):
        kernel = read_kernel(quick_kernel)
        yield Bench(backend, server, kernel, tmp_path_factory.mktemp("evidence"))


@pytest.fixture
def netboot(bench: Bench, tmp_path: Path) -> Path:
    """The directory of the documentation's example, with its boot script."""
    text = re.findall(r"^```ipxe\n(.*?)^```", _DOCS.read_text(), re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "boot.ipxe").write_text(text)
    (tmp_path / "site.ipxe").write_text("#!ipxe\nset site berlin\n")
    (tmp_path / "rescue").mkdir()
    shutil.copyfile(bench.kernel.image, tmp_path / "rescue" / "vmlinuz")
    return tmp_path


def test_the_documentations_example_boots_through_its_menu(bench: Bench, netboot: Path) -> None:
    machine = bench.boot(netboot / "boot.ipxe", netboot)
    witnesses = {phase: each.witness for phase, each in machine.boot.reached.items()}
    assert witnesses[Phase.SCRIPT] == witnesses[Phase.KERNEL] == witnesses[Phase.INITRD] == "server"
    assert [each.detail for each in machine.boot.script.chained] == ["site.ipxe"]
    result = json.loads((bench.evidence / "result.json").read_text())
    assert [row["script"] for row in result["scripts"][0]] == ["site.ipxe"]
    served = json.loads((bench.evidence / "served.json").read_text())
    assert [each["name"] for each in served] == ["site.ipxe", "rescue/vmlinuz"]


def test_the_documentations_example_falls_back_to_its_rescue_kernel(
    bench: Bench, netboot: Path
) -> None:
    with (
        bench.server.fault(bench.kernel_url, status=503) as fault,
        pytest.raises(GuestError, match="this machine never fetched kernel") as told,
    ):
        bench.boot(netboot / "boot.ipxe", netboot)
    assert end_of(told.value) == "fell back"
    assert fault.hits == 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            ":again\nkernel --name kernel ${kernel_url} ${command_line} || goto again\n",
            r"asks for ever, 5 times by now: kernel \(503\); boot.ipxe:4: retries for ever",
        ),
        (
            "kernel --name kernel ${kernel_uri} ${command_line} || shell\n",
            # An empty URL is that of the script itself.
            r"chains back to itself; boot.ipxe:3: \$\{kernel_uri\} is set nowhere; did you mean k",
        ),
        (
            "kernel --name kernel ${kernel_url} ${command_line}\n",
            r"found nothing to boot: .*boot.ipxe:3: kernel has no \|\|: iPXE leaves",
        ),
    ],
    ids=["an endless retry", "a wrong variable", "a missing way on"],
)
def test_a_broken_script_is_told_with_its_line(
    bench: Bench, tmp_path: Path, lines: str, words: str
) -> None:
    script = tmp_path / "boot.ipxe"
    script.write_text(HEAD + lines + REST)
    with (
        bench.server.fault(bench.kernel_url, status=503),
        pytest.raises(ScriptEnded, match=words),
    ):
        bench.boot(script)


def test_a_dhcp_that_names_no_boot_file_is_told_in_ipxes_words(bench: Bench) -> None:
    with pytest.raises(ScriptEnded, match=r"iPXE's last error: nothing to boot \(ENOENT\)") as told:
        bench.boot(dhcp="no-file")
    assert told.value.state == "firmware"
