"""What iPXE does when nothing moves any more: a download that stands still, or a file it has run.

Told from the line that iPXE has not ended, from the requests, and from how long the machine has
received nothing. Pure.
"""

from __future__ import annotations

import re

from kboot.backend import Fetch
from kboot.errors import ScriptEnded
from kboot.machine.phases import IN_SCRIPT, Expected, Phase

#: So long may nothing come of a download, by connections that are counted; and where only iPXE's
#: own per cent are to be seen, which go up rarely for a large file on a slow network.
_SILENT_S = 10.0
_UNCHANGED_S = 45.0
#: So long may a machine print nothing, and ask for nothing, that has loaded another file.
_RUNS_S = 8.0
#: After what the script itself waits for.
_GRACE_S = 2.0

#: A line of iPXE's about a download that goes on: ``vmlinuz... 37%``. Where it does not know how
#: much will come, there is one more dot each second.
_UNDER_WAY = re.compile(r"(?P<what>.*?)\.\.\.+\s*(?P<percent>\d{1,3}%)?\s*$")


class DownloadWatch:
    """Watches the downloads of one boot."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        #: What iPXE's last line said, and whether it was a download's; and since when.
        self._line: tuple[str, bool] | None = None
        self._since = 0.0
        #: Whether that was no download's, and has no end: a menu's, or a prompt's.
        self.is_asking = False
        #: The size of what came in the kernel's place; None if the kernel did.
        self._other_bytes: int | None = None

    def is_expected(self, fetch: Fetch) -> bool:
        """Take a request of this boot that was answered to its end.

        False for one that has brought something else than the kernel in its place.
        """
        expected = self._expected
        if fetch.path != expected.kernel_path or not expected.kernel_bytes:
            if fetch.path not in expected.initrd_paths and not fetch.path.startswith("beacon/"):
                # The script has gone on to something else.
                self._other_bytes = None
            return True
        other = fetch.size != self._expected.kernel_bytes
        self._other_bytes = fetch.size if other else None
        return not other

    def look(
        self,
        phase: Phase,
        unfinished: str,
        now: float,
        *,
        idle_s: float,
        starved_s: float,
        silence_s: float | None,
    ) -> None:
        """Look at a boot in `phase`, which did something last before `idle_s`.

        `ScriptEnded` if it hangs. `unfinished` is the last line on the console; `silence_s` is for
        how long the machine has received nothing, None if that is not known; `starved_s` for how
        long it could not go on.
        """
        if phase not in IN_SCRIPT and phase is not Phase.LINUX:
            return
        under_way = _UNDER_WAY.match(unfinished)
        percent = under_way["percent"] or "" if under_way else ""
        self.is_asking = bool(unfinished.strip()) and under_way is None
        # Dots alone, of a line of which the rest is not there yet, say as little as no line.
        line = (under_way["what"] + percent if under_way else unfinished, under_way is not None)
        if line != self._line:
            self._line, self._since = line, now
        if under_way:
            unchanged_s = now - self._since
            still_s = unchanged_s if silence_s is None else min(unchanged_s, silence_s)
            self._require_progress(percent, still_s - starved_s, counted=silence_s is not None)
        elif self._other_bytes is not None and idle_s - starved_s > self._patience_s(
            _RUNS_S, self._expected.script_pauses_s
        ):
            raise ScriptEnded(
                f"iPXE hangs: it was given {self._other_bytes:,} bytes in the kernel's place (the "
                f"kernel has {self._expected.kernel_bytes:,}), has started them, and says nothing "
                "more; under a BIOS, iPXE takes any file for a PXE program: what is not the "
                "server's has to be told by imgverify, or by HTTPS",
                "hang",
            )

    def _require_progress(self, percent: str, still_s: float, *, counted: bool) -> None:
        waits = self._expected.script_waits_s
        if still_s <= self._patience_s(_SILENT_S if counted else _UNCHANGED_S, waits):
            return
        own = f", and its own time limit ({waits:g} s) has not ended it" if waits else ""
        what = "no byte has come" if counted else "iPXE's line has not changed"
        raise ScriptEnded(
            f"a download of iPXE's stands still{f' at {percent}' if percent else ''}: {what} for "
            f"{still_s:.0f} s{own}; without --timeout, iPXE waits for ever",
            "hang",
        )

    def _patience_s(self, least_s: float, waits_s: float) -> float:
        return max(least_s, waits_s + _GRACE_S) if waits_s else least_s
