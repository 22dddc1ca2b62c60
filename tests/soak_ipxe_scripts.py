"""Boot scripts and builds of iPXE, each with each: the fault table, a long script, and HTTPS.

Called by ``make soak``: python -m tests.soak_ipxe_scripts KERNEL DIRECTORY [BUILD-FIRMWARE ...]

The directory has Debian 13's iPXE, as ``make build/ipxe/trixie/ipxe.efi`` fetches it; the other
build is this host's own. Each row of the fault table has to end as the script means it, in the time
that its own retries take and 2 s more than a boot that meets no fault.
"""

from __future__ import annotations

import gzip
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kboot.certificates import Authority, new_authority
from kboot.config import Config
from kboot.kernel import read_kernel
from kboot.machine.script_trial import ENDS, TRIALS, End, Trial
from kboot.session import open_session

_DOCS = Path(__file__).parent.parent / "docs" / "ipxe.md"
_COMBINATIONS = ("host-bios", "host-uefi", "trixie-bios", "trixie-uefi")
#: Of iPXE's own authority, which a build without TRUST= trusts (src/crypto/rootcert.c).
_IPXES_AUTHORITY = bytes.fromhex("9faf717b7f8ca2f93c256c79f8ac5591895d66d1ff3bee6397a70d29c65eed1a")


#: The documentation's script: what it waits for a server, and between its two attempts.
_TIMEOUT_S, _SLEEP_S = 20.0, 1.0
#: How long a file that a BIOS runs in the kernel's place may be silent.
_SILENCE_S = 8.0
_MORE_S = 2.0
_ROW = re.compile(
    r"^(\w.*?, (?:once|always)) +(?:yes|no|NEVER) +([0-9.]+) s +[0-9]+  (.*)$", re.MULTILINE
)


def right_end(trial: Trial, firmware: str) -> End:
    """How the documentation's script means to end."""
    if trial.kind == "captive-portal" and firmware == "bios":
        # To a BIOS's iPXE, any file is a PXE program.
        return "hang"
    return "booted" if trial.times else "fell back"


def own_wait_s(trial: Trial, end: End, image: Path) -> float:
    """For how long the script, and the fault that it waits out, delay the boot."""
    if end == "hang":
        return _SILENCE_S
    match trial.kind:
        case "slow":
            return image.stat().st_size / float(dict(trial.how)["rate"])
        case "gzip":
            # The server does it while the machine waits.
            start = time.monotonic()
            gzip.compress(image.read_bytes(), 1)
            return _SLEEP_S + time.monotonic() - start
        case "stalled":
            return _SLEEP_S + _TIMEOUT_S * (trial.times or 2)
        case _:
            return _SLEEP_S


def judge(table: str, firmware: str, image: Path) -> int:
    """Hold a fault table against what the script means; the number of rows that differ."""
    rows = {name: (float(after), words) for name, after, words in _ROW.findall(table)}
    waits = {trial.name: own_wait_s(trial, right_end(trial, firmware), image) for trial in TRIALS}
    plain_s = statistics.median(
        after - waits[name] for name, (after, _) in rows.items() if waits[name] == _SLEEP_S
    )
    print(f"a boot without a fault takes {plain_s:.1f} s")
    wrong = 0
    for trial in TRIALS:
        after, words = rows.get(trial.name, (0.0, "missing"))
        right = ENDS[right_end(trial, firmware)][0]
        over_s = after - waits[trial.name] - plain_s
        if words != right:
            print(f"WRONG {trial.name}: {words}, not {right}")
        elif over_s > _MORE_S:
            print(f"LATE {trial.name}: {over_s:.1f} s more than its own retries take")
        wrong += words != right or over_s > _MORE_S
    return wrong


def netboot(kernel: Path, folder: Path) -> Path:
    """The directory of the documentation's example; its boot script."""
    text = re.findall(r"^```ipxe\n(.*?)^```", _DOCS.read_text(), re.MULTILINE | re.DOTALL)[0]
    (folder / "site.ipxe").write_text("#!ipxe\nset site berlin\n")
    (folder / "rescue").mkdir()
    shutil.copyfile(read_kernel(kernel).image, folder / "rescue" / "vmlinuz")
    script = folder / "boot.ipxe"
    script.write_text(text)
    return script


def long_script(systems: int = 30) -> str:
    """A script of more than 200 lines: a menu of many systems, each with retries and a way back."""
    names = [f"linux{number}" for number in range(systems)]
    parts = "".join(
        f":{name}\nimgfree\n"
        "kernel --name kernel --timeout 20000 ${kernel_url} ${command_line} || goto failed\n"
        "initrd --name initrd0 --timeout 20000 ${initrd0_url} || goto failed\n"
        "boot kernel || goto failed\n\n"
        for name in names
    )
    return (
        "#!ipxe\necho kboot: script ${nonce}\n\nset failures:int32 0\n"
        "chain --autofree mac/${net0/mac:hexhyp}.ipxe || echo no file for this machine\n"
        ":start\nmenu Boot ${machine} (${manufacturer} ${product}, ${uuid})\n"
        "item --gap -- Systems\n"
        + "".join(f"item {name} System {name}\n" for name in names)
        + "item --key s shell Shell\n"
        f"choose --timeout 2000 --default {names[-1]} chosen && goto ${{chosen}} || goto shell\n\n"
        + parts
        + ":failed\necho Failed: ${errno}\ninc failures\niseq ${failures} 3 && goto shell ||\n"
        "sleep 1\ngoto start\n:shell\nshell\n"
    )


def trusting(ipxe: Path, authority: Authority, target: Path) -> Path:
    """The UEFI program `ipxe` as a build with ``TRUST=`` has it: with another fingerprint in it."""
    program = ipxe.read_bytes()
    if program.count(_IPXES_AUTHORITY) != 1:
        raise SystemExit(f"{ipxe} does not have the fingerprint of iPXE's authority once")
    own = authority.certificate.fingerprint(hashes.SHA256())
    target.write_bytes(program.replace(_IPXES_AUTHORITY, own))
    return target


def try_faults(kernel: Path, script: Path, ipxe: Path | None, firmware: str) -> int:
    """``kboot test`` with the script under each fault; the number of rows that are not right."""
    options = [
        *(str(kernel), "--accel", "tcg", "--firmware-start", "saved"),
        *("--ipxe-script", str(script), "--serve", str(script.parent)),
        *("--firmware", firmware, *(("--ipxe", str(ipxe)) if ipxe else ())),
    ]
    kboot = [sys.executable, "-m", "kboot"]
    # The state that all of them start from is made by the first.
    subprocess.run([*kboot, "boot", *options], check=True, capture_output=True)
    done = subprocess.run(
        [*kboot, "test", *options, "-k", "script_under_fault", "-q"],
        check=False,
        text=True,
        capture_output=True,
    )
    table = done.stdout[done.stdout.rfind("fault of the kernel") :]
    print(table, flush=True)
    if done.returncode not in {0, 1} or "passed" not in done.stdout:
        print(done.stdout[-3000:], done.stderr[-3000:])
        return 1
    return judge(table, firmware, read_kernel(kernel).image)


def try_long_script(kernel: Path, folder: Path) -> int:
    """Boot by a script of more than 200 lines; 0 if that works."""
    script = folder / "long.ipxe"
    script.write_text(long_script())
    config = Config(accel="tcg", kernel=str(kernel), ipxe_script=script)
    with open_session(config, evidence=folder / "long") as session:
        machine = session.machine(session.settings(config), name="long")
        lines = len(script.read_text().splitlines())
        print(f"a script of {lines} lines: {', '.join(machine.boot.reached)}", flush=True)
    return 0


def try_https(kernel: Path, ipxe: Path, folder: Path) -> int:
    """Boot by HTTPS, with whom UEFI trusts and with whom a build trusts; the number of faults."""
    config = Config(
        accel="tcg", kernel=str(kernel), firmware="uefi", ipxe=ipxe, tls="on", timeout_s=300
    )
    with open_session(config, evidence=folder / "https") as session:
        machine = session.machine(session.settings(config), name="https")
        print(f"by HTTPS: {machine.ipxe}, {', '.join(machine.boot.reached)}", flush=True)
    authority = new_authority()
    key = authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ca.pem").write_text(authority.pem + key.decode())
    own = replace(
        config,
        kernel=None,
        tls="off",
        tls_ca=folder / "ca.pem",
        ipxe=trusting(ipxe, authority, folder / "trusting.efi"),
    )
    wrong = 0
    for chosen, name in ((own, "with TRUST="), (replace(own, ipxe=ipxe), "without")):
        with (
            open_session(chosen, evidence=folder / name) as session,
            session.ipxe(chosen, name="trust") as machine_at_prompt,
        ):
            url = machine_at_prompt.server.https("beacon/x")
            error = machine_at_prompt.run(f"imgfetch --name x {url}").errno
        print(f"{name}: {error.describe() if error else 'ok'}", flush=True)
        wrong += (error is None) != (chosen is own)
    return wrong


def main(kernel: Path, trixie: Path, wanted: list[str]) -> int:
    """All of it, or what is wanted; the number of what went wrong."""
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "netboot").mkdir()
        script = netboot(kernel, folder / "netboot")
        programs = {
            "host-bios": None,
            "host-uefi": None,
            "trixie-bios": trixie / "pxe-e1000e.rom",
            "trixie-uefi": trixie / "ipxe.efi",
        }
        for name in [each for each in _COMBINATIONS if each in wanted or not wanted]:
            print(f"== {name}", flush=True)
            wrong += try_faults(kernel, script, programs[name], name.rpartition("-")[2])
        if not wanted or "long" in wanted:
            wrong += try_long_script(kernel, folder)
        if not wanted or "https" in wanted:
            wrong += try_https(kernel, trixie / "ipxe.efi", folder)
    print(f"{wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]) else 0)
