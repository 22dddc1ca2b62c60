"""What the setting `impairment` says: ``loss=5%,delay=50ms,mtu=1400,dns=not-found``."""

from __future__ import annotations

import re

from kboot.errors import ConfigError
from kboot.machine_spec import Impairment

_HOW = "say it as in impairment = loss=5%,delay=50ms,mtu=1400,dns=not-found"
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")
_TIME = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
#: Of IPv6, and of Ethernet.
_MTUS = range(576, 1501)


def read_impairment(text: str) -> Impairment | None:
    """The impairment that a setting names; None for an empty one. `ConfigError` if it is none."""
    loss, delay_s, mtu, dns = 0.0, 0.0, 0, ""
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, value = part.partition("=")
        match name:
            case "loss" if (share := _SHARE.fullmatch(value)) and float(share[1]) <= 100:
                loss = float(share[1]) / 100
            case "delay" if time := _TIME.fullmatch(value):
                delay_s = float(time[1]) / (1000 if time[2] == "ms" else 1)
            case "mtu" if value.isdecimal() and int(value) in _MTUS:
                mtu = int(value)
            case "dns" if value == "not-found":
                dns = value
            case _:
                raise ConfigError(f"impairment: {part!r} is none; {_HOW}")
    if not text.strip():
        return None
    return Impairment(
        loss=loss, delay_s=delay_s, mtu=mtu, dns="not-found" if dns == "not-found" else ""
    )
