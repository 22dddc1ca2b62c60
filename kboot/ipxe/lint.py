"""What an iPXE script will stumble over, told from its text.

iPXE leaves a script at the first command that fails, unless the line goes on behind ``||``; a
label that is jumped back to without counting is a loop for ever; a variable that was never set is
empty. None of it is an error before the network fails, so none of it is seen in a good boot.

Pure. Lines are counted from 1.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kboot.config.parse import near

Kind = Literal["loop", "variable", "label", "command", "unhandled"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: The commands of iPXE from 2019 to 2025, as its documentation lists them.
_COMMANDS = _words(
    """
    autoboot boot certfree certstat certstore chain choose clear colour config console cpair cpuid
    dhcp echo exit fcels fcstat fdt gdbstub goto help ibstat ifclose ifconf iflinkwait ifopen ifstat
    imgargs imgdecrypt imgexec imgextract imgfetch imgfree imgload imgmem imgselect imgsingle
    imgstat imgtrust imgverify inc initrd ipstat iseq isset item iwlist iwstat kernel lldp login
    lotest md5sum menu module nslookup nstat ntp param params pciscan ping poweroff present profstat
    prompt pxebs read reboot route sanboot sanhook sanunhook set sha1sum sha224sum sha256sum
    sha384sum sha512sum shell shim show sleep startpxe stoppxe sync time usbkeys usbscan vcreate
    vdestroy
"""
)
#: Those that need the network.
FETCHES = _words("chain imgexec imgfetch imgload initrd kernel module imgverify")
#: What ends a loop, or has somebody see it.
_LEAVES = _words("boot choose config exit inc login poweroff prompt read reboot sanboot shell")

#: The settings that iPXE has by itself or from DHCP; those with a scope, ``net0/ip``, apart.
_SETTINGS = _words(
    """
    asset base busdev buildarch busid busloc bustype chip cpumodel cpuvendor cwduri cwuri
    dhcp-server dns dnssl domain errno filename gateway gateway6 hostname hwaddr initiator-iqn ip
    ip6 keep-san keymap len6 linktype mac manufacturer mtu netmask next-server password platform
    port priority product proxydhcp/next-server reverse-password reverse-username root-path
    san-drive san-filename scriptlet serial skip-san-boot ssid sysmac syslog syslogs trust
    unixtime use-cached user-class username uuid vendor-class vendor version vlan-priority
    wpa-psk ymode
"""
)

_VARIABLE = re.compile(r"\$\{([^${}]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing in a script, with its line."""

    kind: Kind
    line: int
    text: str
    #: The line as it stands there, without its indentation.
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line that iPXE runs."""

    number: int
    source: str
    #: The commands with their arguments, and what joins them: ``||`` or ``&&`` before each.
    commands: tuple[tuple[str, ...], ...] = ()
    joints: tuple[str, ...] = ()
    label: str = ""

    @property
    def handled(self) -> bool:
        """Whether the script goes on when the first command fails."""
        return "||" in self.joints


#: Lines with their numbers.
Numbered = Iterable[tuple[int, str]]


def numbered(text: str) -> Numbered:
    """The lines of a text that iPXE runs as it is."""
    return enumerate(text.split("\n"), 1)


def parse(text: Numbered) -> list[Line]:
    """The lines that do something, and the labels."""
    found = []
    lines = iter(text)
    for number, raw in lines:
        whole = raw
        while whole.endswith("\\"):
            _, following = next(lines, (0, ""))
            whole = whole[:-1] + following
        line = whole.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith(":"):
            found.append(Line(number=number, source=line, label=line[1:].split()[0]))
        else:
            found.append(_parse_commands(number, line))
    return found


def _parse_commands(number: int, line: str) -> Line:
    commands: list[tuple[str, ...]] = []
    joints: list[str] = []
    words: list[str] = []
    for word in line.split():
        if word in {"||", "&&"}:
            commands.append(tuple(words))
            joints.append(word)
            words = []
        else:
            words.append(word)
    if words:
        commands.append(tuple(words))
    return Line(number=number, source=line, commands=tuple(commands), joints=tuple(joints))


def findings(
    text: Numbered, *, known: Mapping[str, str], others: Mapping[str, str]
) -> tuple[Finding, ...]:
    """All that was found in a script, in the order of its lines.

    `known` are the settings that it starts with, `others` the texts of scripts beside it, which may
    set some as well.
    """
    lines = parse(text)
    elsewhere = [line for other in others.values() for line in parse(numbered(other))]
    found = [
        *_loops(lines),
        *_variables(lines, _set_in([*lines, *elsewhere]) | set(known)),
        *_labels(lines),
        *_commands(lines),
        *_unhandled(lines),
    ]
    return tuple(sorted(found, key=lambda each: each.line))


def longest_wait_s(texts: Sequence[str]) -> float:
    """For how long scripts may wait for a server, for somebody, or for nothing, in seconds."""
    return max((seconds for _, seconds in _waits(texts)), default=0.0)


def longest_pause_s(texts: Sequence[str]) -> float:
    """For how long they may wait and load nothing, in seconds."""
    return max((seconds for name, seconds in _waits(texts) if name not in FETCHES), default=0.0)


def _waits(texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The commands that say for how long they wait, with the seconds."""
    for text in texts:
        for line in parse(numbered(text)):
            for name, *arguments in filter(None, line.commands):
                number = re.search(r"(?:--timeout[= ]|-t )\s*(\d+)", " ".join(arguments))
                if number:
                    yield name, int(number[1]) / 1000
                elif name == "sleep" and arguments and arguments[0].isdigit():
                    yield name, float(arguments[0])


def _loops(lines: Sequence[Line]) -> Iterator[Finding]:
    """Jumps back that nothing counts."""
    at = {line.label: index for index, line in enumerate(lines) if line.label}
    for index, line in enumerate(lines):
        for name, *arguments in filter(None, line.commands):
            target = at.get(arguments[0]) if name == "goto" and arguments else None
            if target is None or target > index:
                continue
            inside = [
                command[0]
                for each in lines[target : index + 1]
                for command in each.commands
                if command
            ]
            if not _LEAVES.intersection(inside):
                yield Finding(
                    kind="loop",
                    line=line.number,
                    text=f"retries for ever: goes back to :{arguments[0]} (line "
                    f"{lines[target].number}), and nothing in between counts (inc, iseq) or asks",
                    source=line.source,
                )


def _set_in(lines: Sequence[Line]) -> set[str]:
    """The names of the settings that lines set, or ask for before they use them."""
    names: set[str] = set()
    for line in lines:
        for name, *arguments in filter(None, line.commands):
            plain = [each for each in arguments if not each.startswith("-")]
            if name in {"set", "inc", "read", "clear", "choose", "param", "cpuid", "imgextract"}:
                names.update(each.split(":")[0] for each in plain)
            elif name == "isset":
                names.update(each.split(":")[0] for each in _VARIABLE.findall(" ".join(plain)))
            elif name in {"nslookup", "show"}:
                names.update(plain[:1])
            for option, value in itertools.pairwise(arguments):
                if option in {"--set", "--name"}:
                    names.add(value)
    return names


def _variables(lines: Sequence[Line], known: set[str]) -> Iterator[Finding]:
    told: set[str] = set()
    for line in lines:
        for written in _VARIABLE.findall(line.source):
            name = written.split(":")[0]
            if "/" in name or name[:1].isdigit() or name in known | _SETTINGS | told:
                continue
            told.add(name)
            yield Finding(
                kind="variable",
                line=line.number,
                text=f"${{{written}}} is set nowhere{near(name, known | _SETTINGS)}",
                source=line.source,
            )


def _labels(lines: Sequence[Line]) -> Iterator[Finding]:
    labels = {line.label for line in lines if line.label}
    for line in lines:
        for name, *arguments in filter(None, line.commands):
            if name != "goto" or not arguments or "${" in arguments[0]:
                continue
            if arguments[0] not in labels:
                yield Finding(
                    kind="label",
                    line=line.number,
                    text=f"there is no label :{arguments[0]}{near(arguments[0], labels)}",
                    source=line.source,
                )


def _commands(lines: Sequence[Line]) -> Iterator[Finding]:
    for line in lines:
        for command in filter(None, line.commands):
            name = command[0]
            if "${" not in name and name not in _COMMANDS:
                yield Finding(
                    kind="command",
                    line=line.number,
                    text=f"iPXE has no command {name}{near(name, _COMMANDS)}",
                    source=line.source,
                )


def _unhandled(lines: Sequence[Line]) -> Iterator[Finding]:
    for line in lines:
        for command in filter(None, line.commands):
            if command[0] in FETCHES and len(command) > 1 and not line.handled:
                yield Finding(
                    kind="unhandled",
                    line=line.number,
                    text=f"{command[0]} has no ||: iPXE leaves the script here when it fails",
                    source=line.source,
                )
