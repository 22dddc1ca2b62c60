"""What a field of the configuration says about itself, as the metadata of a dataclass."""

from __future__ import annotations

from typing import Any

from kboot.config import parse


def about(
    help_: str,
    metavar: str,
    parse_: parse.Parse | None = None,
    *,
    name: str = "",
    choices: tuple[str, ...] = (),
    repeated: bool = False,
) -> dict[str, Any]:
    """See `kboot.config.Setting`. Without `parse_` it takes one of the choices."""
    return {
        "help": help_,
        "metavar": metavar,
        "parse": parse_ or parse.choice(choices),
        "name": name,
        "choices": choices,
        "repeated": repeated,
    }
