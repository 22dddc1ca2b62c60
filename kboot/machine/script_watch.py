"""What a boot script of the user's does in one boot, told from requests and lines.

kboot's own script says where it is and why it stops. Of another one, that is told from what it
fetches, from what iPXE prints, and from its text. Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from kboot import boot_messages
from kboot.backend import Fetch
from kboot.errors import ScriptEnded
from kboot.ipxe.errors import IpxeError
from kboot.machine.phases import Expected, Milestone, Phase

#: So often may the same request fail: where the text shows a loop without end, and elsewhere.
_FAILURES_IN_LOOP = 5
_FAILURES = 50
#: So often may a script run in one boot: one that chains back to itself, or to another one. A menu
#: may be come back to more often.
_RUNS = 5
_CHAINED_RUNS = 20

#: More would bury the message that they belong to.
_TOLD = 3


class ScriptWatch:
    """Watches the script in one boot. For kboot's own, it sees nothing."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        #: Scripts that it has chained to, in the order in which they were fetched.
        self.chained: list[Milestone] = []
        #: When it last did something, on the monotonic clock.
        self.active_s = 0.0
        self._failures: Counter[str] = Counter()
        self._runs = 0
        #: How many scripts were chained to before the machine was restarted last.
        self._chained_before = 0
        #: The name of what was asked for last in vain.
        self._last_failed = ""

    def see_fetch(self, fetch: Fetch, time: float) -> None:
        """A request of this boot. `ScriptEnded` if it shows that the script never ends."""
        if not self._expected.user_script:
            return
        self.active_s = max(self.active_s, time)
        name = fetch.path.removeprefix(self._expected.folder)
        if fetch.status >= 400 or not fetch.complete:
            # Of a request that was cut short, the status is 200.
            how = str(fetch.status) if fetch.status >= 400 else "cut short"
            self._fail(self._expected.name_of(fetch.path), how, name.rpartition("/")[2])
        elif fetch.path in self._expected.served_scripts:
            self.chained.append(
                Milestone(phase=Phase.SCRIPT, time=time, witness="server", detail=name)
            )
            self._require_end(name)

    def see_line(self, line: str, time: float) -> None:
        """A line before the kernel's first. `ScriptEnded` if it shows that it never ends."""
        if not self._expected.user_script or not line.strip():
            return
        self.active_s = max(self.active_s, time)
        if boot_messages.begins_boot(line):
            self._runs = 0
            self._chained_before = len(self.chained)
        if boot_messages.script_nonce(line):
            self._runs += 1
            if self._runs > _RUNS:
                raise ScriptEnded(
                    f"{self._name} was started {self._runs} times without a restart of the "
                    f"machine: it chains back to itself{self.advice(looping=True)}",
                    "loop",
                )

    def see_error(self, error: IpxeError, line: str) -> None:
        """One that iPXE has printed. `ScriptEnded` if it shows that the script never ends."""
        if self._expected.user_script:
            # ``http://10.0.2.2/a/menu.ipxe... Connection reset (https://ipxe.org/...)``
            asked = line.split("... ")[0].split("?")[0].rstrip(".") if "... " in line else ""
            self._fail(asked or error.link, error.describe(), asked.rpartition("/")[2])

    def _require_end(self, name: str) -> None:
        """`ScriptEnded` if a chained script is loaded again and again."""
        runs = sum(each.detail == name for each in self.chained[self._chained_before :])
        if runs > _CHAINED_RUNS:
            raise ScriptEnded(
                f"{name} was loaded {runs} times without a restart of the machine: scripts chain "
                f"to each other for ever{self.advice(looping=True)}",
                "loop",
            )

    def stopped_at_prompt(self, error: IpxeError | None) -> ScriptEnded:
        """It has ended in iPXE's shell, where nobody types."""
        last = f"; iPXE's last error: {error.describe()}" if error else ""
        return ScriptEnded(f"{self._name} ended at iPXE's prompt{last}{self.advice()}", "prompt")

    def advice(self, *, looping: bool = False) -> str:
        """What the script's text shows to be wrong, as the end of a message; empty for nothing."""
        if not self._expected.user_script:
            return ""
        told = [
            words
            for kind, words, source in self._findings()
            if self._concerns(kind, source, looping=looping)
        ]
        return "".join(f"; {words}" for words in told[:_TOLD])

    def asks(self) -> Sequence[str]:
        """Where the scripts that have run wait for somebody, the last one's first."""
        ran = ["", *(each.detail for each in self.chained)]
        found = [each for each in self._expected.script_asks if each[1] in ran]
        found.sort(key=lambda each: ran[::-1].index(each[1]))
        return [words for words, _ in found[:_TOLD]]

    def _findings(self) -> list[Sequence[str]]:
        """Those in the scripts that have run, the last one's first."""
        ran = ["", *(each.detail for each in self.chained)]
        found = [each for each in self._expected.findings if each[3] in ran]
        found.sort(key=lambda each: ran[::-1].index(each[3]))
        return [each[:3] for each in found]

    def advice_at_end(self) -> str:
        """As `advice`, where the firmware goes on behind iPXE."""
        advice = self.advice()
        if advice or self._last_failed or not self._runs:
            return advice
        return f"; {self._name} has ended, and has started nothing"

    def _concerns(self, kind: str, source: str, *, looping: bool) -> bool:
        if kind == "unhandled":
            return not looping and self._is_last_failed(source)
        return kind != "loop" or looping

    def _is_last_failed(self, source: str) -> bool:
        """Whether a line asks for what was asked for last in vain, as far as can be told."""
        name = self._last_failed
        if not name:
            return False
        # A BIOS wraps a long name: its end is what stands before the error.
        if self._expected.kernel_path.endswith(name):
            return re.search(r"^kernel\b|kernel_url", source) is not None
        if any(path.endswith(name) for path in self._expected.initrd_paths):
            return re.search(r"^initrd\b|^module\b|initrd", source) is not None
        return name in source

    def _fail(self, what: str, how: str, name: str) -> None:
        if name:
            self._last_failed = name
        self._failures[f"{what} ({how})"] += 1
        worst, count = self._failures.most_common(1)[0]
        loops = any(kind == "loop" for kind, *_ in self._findings())
        if count >= (_FAILURES_IN_LOOP if loops else _FAILURES):
            raise ScriptEnded(
                f"{self._name} asks for ever, {count} times by now: {worst}"
                f"{self.advice(looping=True)}",
                "loop",
            )

    @property
    def _name(self) -> str:
        return self._expected.user_script.rpartition("/")[2]


def rows(chained: Sequence[Milestone], start: float) -> list[dict[str, object]]:
    """The chained scripts for result.json: names, and seconds since the boot's start."""
    return [
        {"script": each.detail, "after_s": round(max(0.0, each.time - start), 3)}
        for each in chained
    ]
