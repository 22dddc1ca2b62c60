"""A restart loop's boots, as ``kboot restart`` tells of them, for statistics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kboot.errors import ConfigError
from kboot.statistics import Outcome


def read_loop(path: Path) -> tuple[Outcome, ...]:
    """The boots in a file that ``kboot restart --count N --json FILE`` has written. `ConfigError`.

    It has no version: its form is that of the command's output.
    """
    try:
        boots = json.loads(path.read_text(encoding="utf-8"))["boots"]
        return tuple(outcome_of(raw, number) for number, raw in enumerate(boots, 1))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: neither a directory with evidence, nor written by kboot restart --json"
        ) from error


def outcome_of(raw: Mapping[str, Any], number: int) -> Outcome:
    """A supervisor's answer to a restart as a value for statistics."""
    error, title = raw["error"], raw["title"]
    hung = error and title is None
    return Outcome(
        number=number,
        failure=f"in {raw['phase']}: {_timeless(error['message'])}" if hung else title,
        crashed=title is not None,
        infra=bool(error) and error["exit_code"] == 3,
        duration_s=raw["duration_s"],
        phases_s=raw["phases_s"],
    )


def _timeless(message: str) -> str:
    """A message without the times, in which boots that fail in the same way differ."""
    return re.sub(r"\b\d+(?:\.\d+)? s\b", "N s", message)
