"""Somebody who types commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class User:
    """Types commands, in a home of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {
            **os.environ,
            "XDG_STATE_HOME": str(home / "state"),
            # A boot costs 3 s less without the firmware's part of it.
            "KBOOT_FIRMWARE_START": "saved",
        }

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "kboot", *words]

    def try_(self, *words: str, limit_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            cwd=self.home,
            env=self.environ,
            check=False,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )

    def type(self, *words: str) -> str:
        done = self.try_(*words)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def report(self, name: str) -> Any:
        return json.loads((self.home / name).read_text())

    def ask(self, *words: str) -> Any:
        return json.loads(self.type(*words, "--json"))
