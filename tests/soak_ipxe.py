"""Commands at iPXE's prompt, a thousand: each with the output that it must have, none garbled.

Before, iPXE gets its address from a DHCP that answers late.

Called by ``make soak``: python -m tests.soak_ipxe [COMMANDS]
"""

from __future__ import annotations

import random
import string
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from kboot.config import Config
from kboot.machine.ipxe_machine import IpxeMachine
from kboot.machine_spec import Firmware
from kboot.session import open_session

#: What a command line may have in it, but for what iPXE takes for itself.
_LETTERS = string.ascii_letters + string.digits + "-_.,:;/=+@%!?()[]<>\"'*~^"


def _line(chance: random.Random) -> str:
    """Words of any length around the firmware's 80 columns."""
    length = chance.choice((1, 20, 60, 79, 80, 81, 120, 160, 161))
    text = "".join(chance.choice(_LETTERS + " ") for _ in range(length))
    # iPXE puts one space between words, and one that is a semicolon ends a command.
    return " ".join(word for word in f"x{text}".split() if word != ";")


def _try(machine: IpxeMachine, chance: random.Random) -> str:
    """One command; what is wrong with it, or nothing."""
    kind, text = chance.choice(("echo", "setting", "error", "interface")), _line(chance)
    match kind:
        case "echo":
            said = machine.succeed(f"echo {text}")
            return "" if said == f"{text}\n" else f"echo {text!r} said {said!r}"
        case "setting":
            machine.set("soak", text)
            value = machine.get("soak")
            return "" if value == text else f"set to {text!r}, and got {value!r}"
        case "error":
            result = machine.run("imgstat none")
            return "" if result.errno and "no such image" in result.text else f"said {result!r}"
        case _:
            value = machine.get("net0/ip")
            return "" if value == "10.0.2.15" else f"net0/ip is {value!r}"


def main(count: int) -> int:
    """Run `count` commands, half of them under each firmware; the number of wrong ones."""
    chance = random.Random(count)
    wrong = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        open_session(Config(accel="tcg"), evidence=Path(folder)) as session,
    ):
        firmwares: tuple[Firmware, ...] = ("bios", "uefi")
        for firmware in firmwares:
            config = replace(session.config, firmware=firmware)
            with session.ipxe(replace(config, dhcp="late"), name=f"{firmware}-late") as machine:
                print(f"a late answer by DHCP, {firmware}: {machine.get('net0/ip')}")
            with session.ipxe(config, name=firmware) as machine:
                start = time.monotonic()
                for number in range(count // 2):
                    if fault := _try(machine, chance):
                        wrong += 1
                        print(f"{firmware} {number}: {fault}", flush=True)
                each_s = (time.monotonic() - start) / max(1, count // 2)
            print(f"iPXE's prompt, {firmware}: {count // 2} commands, {each_s:.2f} s each")
    print(f"{wrong} of {count} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000) else 0)
