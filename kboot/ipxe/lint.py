"""What an iPXE script will stumble over, told from its text.

iPXE leaves a script at the first command that fails, unless the line goes on behind ``||``; a
label that is jumped back to without counting is a loop for ever; a variable that was never set is
empty. None of it is an error before the network fails, so none of it is seen in a good boot.

Pure. Lines are counted from 1.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
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
    dhcp echo exit fcels fcstat fdt form gdbstub goto help ibstat ifclose ifconf iflinkwait ifopen
    ifstat
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
#: What ends a loop, or has somebody see it. A ``boot`` that fails does not.
_LEAVES = _words("choose config exit login poweroff present prompt read reboot shell")
#: What waits for somebody.
_ASKS = _words("choose config login present prompt read")
#: What goes on behind a command, whatever it has come to; and only when it has failed.
_JOINTS = _words("|| && ;")

#: The settings that iPXE has by itself or from DHCP; those with a scope, ``net0/ip``, apart.
_SETTINGS = _words(
    """
    active-scan asset base board-serial boot-vlan busdev buildarch busid busloc bustype cert chip
    cpumodel cpuvendor crosscert cwduri cwuri dhcp-server dns dns6 dnssl domain errno filename
    gateway gateway6 hostname hwaddr ifname initiator-iqn ip ip6 keep-san key keymap len6 linktype
    mac manufacturer memsize mtu netmask next-server ntp-server password peerhost peerpath platform
    port prefix priority privkey product proxydhcp/next-server reverse-password reverse-username
    root-path san-drive san-filename scriptlet serial skip-san-boot ssid sysmac syslog syslogs trust
    unixtime use-cached user-class username uuid vendor-class vendor version vlan-priority vram
    wpa-psk ymode
"""
)

_VARIABLE = re.compile(r"\$\{([^${}]+)\}")


_TIMEOUT = re.compile(r"(?:--timeout[= ]|-t )\s*(\S+)")
#: Options of ``item`` that have a value.
_ITEM_VALUES = _words("--menu -m --key -k")


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
    #: The commands with their arguments, and what joins them: ``||``, ``&&`` or ``;`` behind each.
    commands: tuple[tuple[str, ...], ...] = ()
    joints: tuple[str, ...] = ()
    #: None for a line without one.
    label: str | None = None

    def handles(self, index: int) -> bool:
        """Whether the script goes on when the command `index` fails."""
        return not {"||", ";"}.isdisjoint(self.joints[index:])


#: Lines with their numbers.
Numbered = Iterable[tuple[int, str]]


def numbered(text: str) -> Numbered:
    """The lines of a text that iPXE runs as it is."""
    return enumerate(text.split("\n"), 1)


def parse(text: Numbered) -> list[Line]:
    """The lines that do something, and the labels, as iPXE reads them.

    A backslash at the end goes on in the next line, a label may stand before a command, and a word
    that begins with ``#`` is a comment with all behind it.
    """
    found = []
    lines = iter(text)
    for number, raw in lines:
        whole = raw.removesuffix("\r")
        while whole.endswith("\\"):
            _, following = next(lines, (0, ""))
            whole = whole[:-1] + following.removesuffix("\r")
        source = whole.strip()
        label, rest = None, source
        if source.startswith(":"):
            label, _, rest = source[1:].replace("\t", " ").partition(" ")
        commands, joints = _split(rest)
        if commands or label is not None:
            found.append(
                Line(number=number, source=source, commands=commands, joints=joints, label=label)
            )
    return found


def _split(text: str) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The commands in a text, and what joins them."""
    words = list(itertools.takewhile(lambda word: not word.startswith("#"), text.split()))
    commands: list[tuple[str, ...]] = []
    joints: list[str] = []
    begin = 0
    for index, word in enumerate(words):
        if word in _JOINTS:
            commands.append(tuple(words[begin:index]))
            joints.append(word)
            begin = index + 1
    if words[begin:]:
        commands.append(tuple(words[begin:]))
    return tuple(commands), tuple(joints)


def findings(text: Numbered, *, known: Collection[str]) -> tuple[Finding, ...]:
    """All that was found in a script, in the order of its lines.

    `known` are the settings that it starts with, and those that scripts beside it set.
    """
    lines = parse(text)
    found = [
        *_loops(lines),
        *_variables(lines, _set_in(lines) | set(known)),
        *_labels(lines),
        *_items(lines),
        *_commands(lines),
        *_unhandled(lines),
    ]
    return tuple(sorted(found, key=lambda each: each.line))


def settings_in(texts: Iterable[str]) -> frozenset[str]:
    """The settings that scripts set."""
    return frozenset(name for text in texts for name in _set_in(parse(numbered(text))))


def longest_wait_s(texts: Sequence[str]) -> float:
    """For how long scripts may wait for a server, for somebody, or for nothing, in seconds."""
    return max((seconds for _, seconds in _waits(texts)), default=0.0)


def longest_pause_s(texts: Sequence[str]) -> float:
    """For how long they may wait and load nothing, in seconds."""
    return max((seconds for name, seconds in _waits(texts) if name not in FETCHES), default=0.0)


def asking(text: str) -> list[tuple[int, str]]:
    """The lines that wait for somebody, for ever or for how long nobody knows, with the reason."""
    found = []
    for line, name, arguments in _commands_of(parse(numbered(text))):
        if name in _ASKS:
            limit = _TIMEOUT.search(" ".join(arguments))
            if limit is None or not limit[1].isdigit() or int(limit[1]) == 0:
                has = f"--timeout {limit[1]}" if limit else "no --timeout"
                found.append((line.number, f"{name} has {has}"))
    return found


def _waits(texts: Sequence[str]) -> Iterator[tuple[str, float]]:
    """The commands that say for how long they wait, with the seconds."""
    for text in texts:
        for line in parse(numbered(text)):
            for name, *arguments in filter(None, line.commands):
                limit = _TIMEOUT.search(" ".join(arguments))
                if limit and limit[1].isdigit():
                    yield name, int(limit[1]) / 1000
                elif name == "sleep" and arguments and arguments[0].isdigit():
                    yield name, float(arguments[0])


def _loops(lines: Sequence[Line]) -> Iterator[Finding]:
    """Jumps back, on ways on which nothing counts."""
    ways = _Ways(lines)
    for index, line in enumerate(lines):
        for target in ways.jumps(line):
            if target <= index and ways.leads(target, index):
                label = lines[target].label
                yield Finding(
                    kind="loop",
                    line=line.number,
                    text=f"retries for ever: goes back to :{label} (line "
                    f"{lines[target].number}), and nothing in between counts (inc, iseq) or asks",
                    source=line.source,
                )


class _Ways:
    """From which line a script may come to which, without counting and without asking."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        self._at: dict[str, int] = {}
        for index, line in enumerate(lines):
            if line.label:
                # As iPXE: the first one of two that have the same name.
                self._at.setdefault(line.label, index)
        compared = {
            each.split(":")[0]
            for _, name, arguments in _commands_of(lines)
            if name in {"iseq", "isset"}
            for each in _VARIABLE.findall(" ".join(arguments))
        }
        #: Lines that nobody passes for ever: they ask, or change what the script compares, such as
        #: a counter, or a mark for a second attempt.
        self._ends = {
            index
            for index, line in enumerate(lines)
            for _, name, arguments in _commands_of([line])
            if name in _LEAVES
            or (name in {"inc", "set"} and arguments and arguments[0].split(":")[0] in compared)
        }

    def jumps(self, line: Line) -> list[int]:
        """The lines to which one jumps."""
        labels = [rest[0] for _, name, rest in _commands_of([line]) if name == "goto" and rest]
        return [self._at[label] for label in labels if label in self._at]

    def leads(self, start: int, goal: int) -> bool:
        """Whether there is such a way."""
        seen: set[int] = set()
        ahead = [start]
        while ahead:
            index = ahead.pop()
            if index in seen or index in self._ends or index >= len(self._lines):
                continue
            if index == goal:
                return True
            seen.add(index)
            line = self._lines[index]
            ahead += self.jumps(line)
            if not _always_jumps(line):
                ahead.append(index + 1)
        return False


def _always_jumps(line: Line) -> bool:
    """Whether the script never goes on in the next line: ``goto a``, ``b && goto c || goto d``."""
    names = [command[0] for command in line.commands if command]
    return names[:1] == ["goto"] or (line.joints == ("&&", "||") and names[1:] == ["goto", "goto"])


def _commands_of(lines: Sequence[Line]) -> Iterator[tuple[Line, str, tuple[str, ...]]]:
    """Each command with its line and its arguments."""
    for line in lines:
        for command in filter(None, line.commands):
            yield line, command[0], command[1:]


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
        # Not of its comment.
        for written in _VARIABLE.findall(" ".join(itertools.chain.from_iterable(line.commands))):
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
    for line, name, arguments in _commands_of(lines):
        wanted = arguments[0] if name == "goto" and arguments else ""
        if wanted and "${" not in wanted and wanted not in labels:
            yield Finding(
                kind="label",
                line=line.number,
                text=f"there is no label :{wanted}{near(wanted, labels)}",
                source=line.source,
            )


def _items(lines: Sequence[Line]) -> Iterator[Finding]:
    """Items of menus whose choice is jumped to, and that have no label to jump to."""
    labels = {line.label for line in lines if line.label}
    words = [(line, name, rest) for line, name, rest in _commands_of(lines) if rest]
    jumped = {rest[0] for _, name, rest in words if name == "goto"}
    compared = {word for _, name, rest in words if name == "iseq" for word in rest}
    chosen = {f"${{{rest[-1]}}}" for _, name, rest in words if name == "choose"}
    if not chosen or not chosen <= jumped:
        return
    for line, name, rest in words:
        item = _label_of_item(rest) if name == "item" else ""
        if item and "${" not in item and item not in labels | compared:
            yield Finding(
                kind="label",
                line=line.number,
                text=f"there is no label :{item} for this item{near(item, labels)}",
                source=line.source,
            )


def _label_of_item(arguments: Sequence[str]) -> str:
    """What an item of a menu is chosen by; empty for one that is none."""
    words = iter(arguments)
    for word in words:
        if word in {"--gap", "-g"}:
            return ""
        if word in _ITEM_VALUES:
            next(words, "")
        elif not word.startswith("-"):
            return word
    return ""


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
        for index, command in enumerate(line.commands):
            if len(command) > 1 and command[0] in FETCHES and not line.handles(index):
                yield Finding(
                    kind="unhandled",
                    line=line.number,
                    text=f"{command[0]} has no ||: iPXE leaves the script here when it fails",
                    source=line.source,
                )
