"""Does this boot script survive what networks do, and never fall silent?

With ``--ipxe-script`` only. The kernel is fetched wrongly, once or always; the boot may come up,
fall back, or end where a person sees what is wrong. It may not ask for ever, nor hang.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kboot.backend import BootServer
from kboot.errors import KbootError
from kboot.kernel import Kernel
from kboot.machine.script_trial import ENDS, TRIALS, Outcome, Trial, end_of
from kboot.session import Session

pytestmark = pytest.mark.kboot_acceptance


@pytest.mark.parametrize(
    "trial", TRIALS, ids=lambda trial: trial.name.replace(",", "").replace(" ", "-")
)
def test_script_under_fault(
    trial: Trial,
    request: pytest.FixtureRequest,
    kboot_session: Session,
    boot_server: BootServer,
    kernel: Kernel,
    record_property: Callable[[str, object], None],
) -> None:
    if reason := boot_server.faults_fault():
        pytest.skip(reason)
    settings = kboot_session.settings(kboot_session.config)
    url = boot_server.put(kernel.image)
    label = f"-trial{TRIALS.index(trial)}"
    error: KbootError | None = None
    start = time.monotonic()
    with boot_server.fault(
        url, trial.kind, times=trial.times, machine=f"*{label}", **dict(trial.how)
    ) as fault:
        try:
            with kboot_session.powered_on(settings, name=request.node.name, label=label) as machine:
                machine.wait_until_ready()
        except KbootError as raised:
            error = raised
        outcome = Outcome(
            trial=trial.name,
            end=end_of(error, lasting=trial.times is None),
            seconds=time.monotonic() - start,
            hits=fault.hits,
            words=str(error or ""),
        )
    record_property("kboot.script", outcome.row())
    if trial.kind == "captive-portal" and outcome.end == "hang":
        pytest.xfail("a BIOS's iPXE runs any file as a PXE program; only imgverify prevents it")
    # What is to be mended is the script: nobody wants to see ours.
    if not outcome.hits:
        pytest.fail(f"the script has not asked for the kernel; {outcome.words}", pytrace=False)
    if not outcome.seen:
        pytest.fail(f"the script {ENDS[outcome.end][0]}: {outcome.words}", pytrace=False)
