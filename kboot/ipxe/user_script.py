"""The user's own boot script: read, checked, and given what kboot has to say to it.

It is a Jinja template, or plain iPXE: the variables are there in both ways, as ``{{ kernel_url }}``
when it is rendered, and as the setting ``${kernel_url}`` when it runs, also in the scripts that it
chains to.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kboot import templates
from kboot.config.parse import near
from kboot.errors import ConfigError
from kboot.ipxe import lint
from kboot.ipxe.lint import Finding
from kboot.log import logger

_MAGIC = "#!ipxe"
#: As iPXE knows a script: by its first bytes, with the name of its forerunner as well.
_IS_SCRIPT = re.compile(rb"#!(?:ipxe|gpxe)(?=\s)")

#: A script is text; nobody writes a longer one.
_LIMIT_BYTES = 1 << 20

#: What every script gets, with what it is for.
VARIABLES: Mapping[str, str] = {
    "kernel_url": "the kernel's URL",
    "initrd_urls": "the URLs of the initramfs images, in the kernel's order",
    "command_line": "the kernel's command line, with the nonce in it",
    "base_url": "the URL of the served directory (--serve), and of the script",
    "nonce": "what tells this boot from all others",
    "query": "m=MACHINE&b=NONCE: a request with it is known to be of this boot",
    "machine": "the machine's name",
}

#: The line that every script must have, as it is written in a template.
NONCE_LINE = "echo kboot: script {{ nonce }}"

#: Before a line's number, see `_marked`: nobody writes it.
_MARK = "\x01"
_CLOSINGS = {"{{": "}}", "{%": "%}", "{#": "#}"}

#: A script that was not meant as a template.
_TEMPLATE_ADVICE = (
    "; a boot script is a Jinja template, to which {{, {% and {# mean something: what is to stay "
    "as it is stands between {% raw %} and {% endraw %}"
)

_MARK_OF_ORDER = codecs.BOM_UTF8.decode()
_SAMPLE_NONCE = "0123456789abcdef"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptValues:
    """The values of the `VARIABLES` in one boot."""

    kernel_url: str
    initrd_urls: tuple[str, ...]
    command_line: str
    base_url: str
    nonce: str
    query: str
    machine: str

    def settings(self) -> dict[str, str]:
        """The same as iPXE's settings, which have no lists."""
        numbered = {f"initrd{number}_url": url for number, url in enumerate(self.initrd_urls)}
        return {
            "kernel_url": self.kernel_url,
            "initrd_urls": " ".join(self.initrd_urls),
            **numbered,
            "command_line": self.command_line,
            "base_url": self.base_url,
            "nonce": self.nonce,
            "query": self.query,
            "machine": self.machine,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UserScript:
    """A boot script of the user's, as it was read."""

    path: Path
    text: str

    def render(self, values: ScriptValues) -> str:
        """The lines as iPXE runs them, one for each of the script's own if it is plain iPXE.

        `ConfigError` names the line in which a template fails.
        """
        wanted = {name: getattr(values, name) for name in VARIABLES}
        try:
            return templates.render_text(self.text, **wanted)
        except templates.TemplateError as error:
            raise self._wrong(str(error), error.line) from error

    def _wrong(self, what: str, line: int = 0) -> ConfigError:
        return ConfigError(f"{self.path}:{line}: {what}" if line else f"{self.path}: {what}")

    def check(self, others: Mapping[str, str]) -> tuple[Finding, ...]:
        """What iPXE will stumble over; `others` are the served scripts, by their names.

        `ConfigError` if it is no script, or lacks what tells its boot from others.
        """
        try:
            wanted = templates.variables_of(self.text)
        except templates.TemplateError as error:
            raise self._wrong(f"{error}{_TEMPLATE_ADVICE}", error.line) from error
        for name, line in wanted:
            if name not in VARIABLES:
                hint = near(name, VARIABLES)
                there = "" if hint else f"; there are: {', '.join(VARIABLES)}"
                raise self._wrong(f"there is no variable {name}{hint}{there}", line)
        text = self.render(_sample())
        rest = text.split("\n")[1:]
        if not is_script(text.encode()):
            raise self._wrong(
                f"the first line of a boot script is {_MAGIC}, with nothing before", 1
            )
        if not any(map(_tells_nonce, rest)):
            raise self._wrong(
                f"no line tells which boot it is; put this one near the top: {NONCE_LINE}"
            )
        if not any(map(_gives_nonce, [*rest, *"\n".join(others.values()).split("\n")])):
            raise self._wrong(
                "no line gives the kernel the nonce; end the kernel's line with {{ command_line }}"
                ", or write kboot.nonce={{ nonce }} into its parameters"
            )
        known = {*_sample().settings(), *lint.settings_in(others.values())}
        return lint.findings(self._lines(), known=known)

    def _lines(self) -> list[tuple[int, str]]:
        """What iPXE runs, each line with its number in the file."""
        marked = UserScript(path=self.path, text=_marked(self.text)).render(_sample())
        found = []
        for line in marked.split("\n"):
            text, _, number = line.rpartition(_MARK)
            if number.isdigit():
                found.append((int(number), text))
        return found

    def findings(self, others: Mapping[str, str]) -> dict[str, tuple[Finding, ...]]:
        """As `check`, which has passed once, and without any error: for messages.

        Those of the script itself stand at the empty name, those of the `others` at theirs.
        """
        try:
            found = {"": self.check(others)}
            here = lint.settings_in([self.render(_sample())])
        except ConfigError:
            return {}
        known = frozenset(_sample().settings()) | here | lint.settings_in(others.values())
        return found | {name: _findings_in(text, known) for name, text in others.items()}


def read_script(path: Path) -> UserScript:
    """The script in a file. `ConfigError` if it is none that can be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"ipxe_script: cannot read {path}: {error.strerror}") from error
    if begins_with_mark(data):
        raise ConfigError(f"{path}:1: {MARK_WORDS}")
    if len(data) > _LIMIT_BYTES or b"\0" in data:
        raise ConfigError(f"ipxe_script: {path} is no text, but a boot script is")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8") from error
    return UserScript(path=path, text=text.replace("\r\n", "\n"))


@functools.lru_cache(maxsize=1000)
def _findings_in(text: str, known: frozenset[str]) -> tuple[Finding, ...]:
    """Of a script that is served as it is, at each boot."""
    found = lint.findings(lint.numbered(text.removeprefix(_MARK_OF_ORDER)), known=known)
    if not text.startswith(_MARK_OF_ORDER):
        return found
    return (Finding(kind="command", line=1, text=MARK_WORDS, source=_MAGIC), *found)


@functools.lru_cache(maxsize=64)
def warn_once(path: Path, finding: Finding) -> None:
    """Tell of a finding, once for each file in a process."""
    logger.warning("%s:%d: %s", path, finding.line, finding.text)


def with_values(text: str, values: ScriptValues, beacon_url: str) -> str:
    """A rendered script, with the values as settings, and a request that tells that it runs."""
    first, _, rest = text.partition("\n")
    settings = [f"set {name} {value}" for name, value in values.settings().items() if value]
    beacon = f"imgfetch --name beacon {beacon_url}/script?{values.query} && imgfree beacon ||"
    return "\n".join([first, *settings, beacon, rest])


def is_script(data: bytes) -> bool:
    """Whether a file is an iPXE script, by how it begins."""
    return _IS_SCRIPT.match(data) is not None


def begins_with_mark(data: bytes) -> bool:
    """Whether it would be a script, but for the byte order mark (BOM) of an editor."""
    return data.startswith(codecs.BOM_UTF8) and is_script(data.removeprefix(codecs.BOM_UTF8))


#: What is to be said of that.
MARK_WORDS = (
    f"begins with a byte order mark, not with {_MAGIC}: iPXE takes it for no script; save it as "
    "UTF-8 without BOM"
)


def _sample() -> ScriptValues:
    query = f"m=sample&b={_SAMPLE_NONCE}"
    return ScriptValues(
        kernel_url=f"http://192.0.2.1/kernel?{query}",
        initrd_urls=(f"http://192.0.2.1/initrd?{query}",),
        command_line=f"kboot.nonce={_SAMPLE_NONCE}",
        base_url="http://192.0.2.1/sample",
        nonce=_SAMPLE_NONCE,
        query=query,
        machine="sample",
    )


def _tells_nonce(line: str) -> bool:
    words = line.split("||")[0].split()
    nonces = {_SAMPLE_NONCE, "${nonce}"}
    return words[:3] == ["echo", "kboot:", "script"] and words[3:4] != [] and words[3] in nonces


def _gives_nonce(line: str) -> bool:
    if line.lstrip().startswith("#"):
        return False
    parameter = rf"kboot\.nonce=(?:{_SAMPLE_NONCE}|\$\{{nonce\}})|\$\{{command_line\}}"
    return re.search(rf"(?:^|\s|=)(?:{parameter})(?=\s|$)", line) is not None


def _marked(text: str) -> str:
    """A template with each line's number at its end, where that is no part of a tag."""
    lines, inside = [], ""
    for number, line in enumerate(text.split("\n"), 1):
        for opening, closing in re.findall(r"(\{[{%#])|([}%#]\})", line):
            if opening and not inside:
                inside = _CLOSINGS[opening]
            elif closing == inside:
                inside = ""
        lines.append(line if inside else f"{line}{_MARK}{number}")
    return "\n".join(lines)
