"""Where the logs are that the zoo's crashes left on the console."""

from __future__ import annotations

from pathlib import Path

LOGS = Path(__file__).parent.parent / "data" / "zoo"

#: For each log, by its name without suffix: the reports in it, in their order.
EXPECTED = LOGS / "expected.json"
