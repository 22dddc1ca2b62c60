"""A run as a report for KCIDB, KernelCI's database of test results, and its submission.

The form is that of kcidb-io's schema, version 5.3.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from kboot.console.text import printable
from kboot.errors import ConfigError, InfraError
from kboot.evidence import CaseResult, Evidence, Run
from kboot.https import authorities, tls_fault

if TYPE_CHECKING:
    import requests

    from kboot.config import Config

#: The environment variable with the address and the token, as KernelCI's own tools take it.
VARIABLE = "KCIDB_REST"

_VERSION = {"major": 5, "minor": 3}
#: Characters.
_EXCERPT = 16_384
_COMMENT = 1000
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_TIMEOUT_S = 60

#: What each outcome says of the kernel. What the host failed says nothing, and is never a failure.
_STATUS = {
    "passed": "PASS",
    "xpassed": "PASS",
    "failed": "FAIL",
    # It has failed: that it has also passed does not make it good.
    "flaky": "FAIL",
    "skipped": "SKIP",
    # It did what it is known to do, which tells nothing of the code.
    "xfailed": "DONE",
    "not run": "MISS",
    "error": "ERROR",
}
#: The same for a machine.
_BOOT_STATUS = {"failed": "FAIL", "error": "MISS", "interrupted": "MISS", "unfinished": "MISS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the kernel came from."""

    #: Of the CI system, as agreed with KernelCI: ``[a-z0-9_]+``.
    origin: str = "kboot"
    #: The id of a build that KCIDB knows; then neither it nor its checkout are in the report.
    build: str = ""
    repository: str = ""
    commit: str = ""


def source_of(settings: Config) -> Source:
    """As the settings say."""
    return Source(
        origin=settings.kcidb_origin,
        build=settings.kcidb_build,
        repository=settings.kcidb_repository,
        commit=settings.kcidb_commit,
    )


def kcidb_report(run: Run, source: Source) -> dict[str, Any]:
    """The report, as JSON has it."""
    kernels = {each.kernel["sha256"]: each.kernel for each in run.machines if each.kernel}
    builds = {sha256: source.build or f"{source.origin}:kernel-{sha256[:40]}" for sha256 in kernels}
    checkout = f"{source.origin}:{source.commit or next(iter(kernels), 'unknown')[:40]}"
    report: dict[str, Any] = {"version": dict(_VERSION)}
    if kernels and not source.build:
        report["checkouts"] = [_checkout(checkout, source)]
        report["builds"] = [
            _build(builds[sha256], checkout, kernel, source) for sha256, kernel in kernels.items()
        ]
    machines = {each.directory.resolve(): each for each in run.machines}
    # A test without a machine is one of the only kernel there is, or of none.
    only = next(iter(builds.values())) if len(builds) == 1 else source.build
    report["tests"] = [
        *_boots(run, builds, source),
        *_cases(run.cases, machines, builds, only, run, source),
    ]
    return report


def _checkout(identifier: str, source: Source) -> dict[str, Any]:
    return _without_blanks(
        {
            "id": identifier,
            "origin": source.origin,
            "git_repository_url": source.repository,
            "git_commit_hash": source.commit,
            "valid": True,
        }
    )


def _build(
    identifier: str, checkout: str, kernel: Mapping[str, str], source: Source
) -> dict[str, Any]:
    return _without_blanks(
        {
            "id": identifier,
            "checkout_id": checkout,
            "origin": source.origin,
            "architecture": re.sub(r"[^a-z0-9_]", "_", kernel["architecture"]),
            "comment": _line(f"Linux {kernel['release']} {kernel['version']}"),
            # There is a kernel.
            "status": "PASS",
            "misc": {"release": kernel["release"], "sha256": kernel["sha256"]},
        }
    )


def _boots(run: Run, builds: Mapping[str, str], source: Source) -> Iterator[dict[str, Any]]:
    """The boot of each machine that was not restored: the test ``boot``."""
    for machine in run.machines:
        if machine.restored_from is not None or not machine.kernel:
            continue
        ready = bool(machine.boots) and machine.boots[0].ready
        # What happened after it came up is no fault of its boot's.
        status = "PASS" if ready else _BOOT_STATUS.get(machine.verdict, "MISS")
        yield _without_blanks(
            {
                "id": _id(source, "boot", machine.started or run.started, machine.directory.name),
                "build_id": builds[machine.kernel["sha256"]],
                "origin": source.origin,
                "path": "boot",
                "status": status,
                "comment": _line(machine.directory.name),
                "environment": _environment(machine),
                "log_excerpt": "" if ready else _last_words(machine),
                "start_time": machine.started and machine.started.isoformat(),
                "duration": machine.boots[0].duration_s if machine.boots else 0.0,
                "misc": {
                    "phases_s": {
                        phase.phase: phase.duration_s
                        for boot in machine.boots[:1]
                        for phase in boot.phases
                    }
                },
            }
        )


def _cases(
    cases: tuple[CaseResult, ...],
    machines: Mapping[Any, Evidence],
    builds: Mapping[str, str],
    only: str,
    run: Run,
    source: Source,
) -> Iterator[dict[str, Any]]:
    for case in cases:
        machine = machines.get(case.evidence.resolve()) if case.evidence else None
        build = builds.get(machine.kernel.get("sha256", ""), only) if machine else only
        if not build:
            # It has nothing to do with a kernel.
            continue
        told = "\n".join([*(f"kernel: {title}" for title in case.crashes), case.detail])
        yield _without_blanks(
            {
                "id": _id(source, "test", case.started or run.started, case.id),
                "build_id": build,
                "origin": source.origin,
                "path": path_of(case.id),
                "status": _status(case),
                "comment": _line(" ".join(filter(None, (case.id, case.message)))),
                "environment": _environment(machine) if machine else {},
                "log_excerpt": _excerpt(told),
                "start_time": case.started and case.started.isoformat(),
                "duration": case.duration_s,
                "misc": {"outcome": case.outcome, "crashes": list(case.crashes)},
            }
        )


def _status(case: CaseResult) -> str:
    if case.fault == "host":
        # Also where another plugin counts it otherwise.
        return "MISS"
    return _STATUS.get(case.outcome, "ERROR")


def path_of(identifier: str) -> str:
    """A test's place in KCIDB's tree: ``kboot.test_x.test_y``; names have no other letters."""
    words = re.sub(r"\.py\b", "", identifier)
    parts = re.split(r"::|/| \[", words)
    cleaned = [re.sub(r"[^A-Za-z0-9_-]+", "_", part).strip("_") for part in parts]
    return ".".join(["kboot", *filter(None, cleaned)])


def _id(source: Source, kind: str, started: datetime | None, name: str) -> str:
    """The same each time that a report has it, be it that of its run or of several.

    So what is submitted twice is there once.
    """
    text = "\0".join([started.isoformat() if started else "", kind, name])
    return f"{source.origin}:{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def _environment(machine: Evidence) -> dict[str, Any]:
    wanted = ("memory_mib", "cpus", "firmware", "architecture")
    misc = {name: machine.settings[name] for name in wanted if name in machine.settings}
    return {
        "comment": _line(machine.machine),
        "misc": misc | {"command_line": machine.command_line},
    }


def _line(text: str) -> str:
    return printable(text).replace("\n", " ")[:_COMMENT]


def _excerpt(text: str) -> str:
    """Its end: what was said last is what it died of."""
    return printable(text)[-_EXCERPT:].strip("\n")


def _last_words(machine: Evidence) -> str:
    """What the kernel reported, and the end of the console."""
    reports = _excerpt("\n\n".join(each.text for each in machine.crashes[:3]))[: _EXCERPT // 2]
    console = _excerpt(machine.console.decode(errors="replace"))
    return "\n\n".join(filter(None, (reports, console[-(_EXCERPT // 2 - 2) :])))


def _without_blanks(value: Mapping[str, Any]) -> dict[str, Any]:
    """No property may be null, and a blank one says nothing."""
    return {name: each for name, each in value.items() if each not in (None, "", {}, [])}


# ------------------------------------------------------------------------------------ submission


def submit(report: Mapping[str, Any], rest: str) -> str:
    """Send a report to ``https://TOKEN@HOST[/submit]``; the id of the submission.

    `ConfigError` if that is no such address or the token is refused, `InfraError` if nobody
    answers.
    """
    import requests  # noqa: PLC0415  most runs submit nothing

    url, token = address(rest)
    try:
        answer = requests.post(
            url,
            json=report,
            # An object, or a .netrc file would replace the token.
            auth=_Bearer(token),
            timeout=_TIMEOUT_S,
            verify=authorities(url),
            # The token is for this host.
            allow_redirects=False,
        )
    except requests.exceptions.SSLError as error:
        raise InfraError(f"KCIDB at {url}: {tls_fault(error)}") from error
    except requests.RequestException as error:
        raise InfraError(f"KCIDB at {url} cannot be reached: {type(error).__name__}") from error
    if answer.status_code in {401, 403}:
        raise ConfigError(f"KCIDB at {url} refuses the token in {VARIABLE}: {_said(answer)}")
    if answer.status_code != 200:
        raise InfraError(f"KCIDB at {url} answers {answer.status_code}: {_said(answer)}")
    try:
        return str(answer.json().get("id", ""))
    except (ValueError, AttributeError):
        return ""


class _Bearer:
    """Puts a token into a request."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """What `requests` asks of an authentication."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def address(rest: str) -> tuple[str, str]:
    """The URL to send to, and the token, of ``https://TOKEN@HOST[/submit]``. `ConfigError`."""
    form = f"{VARIABLE} must be https://TOKEN@HOST"
    try:
        parts = urlsplit(rest)
        token, host, port = parts.username, parts.hostname, parts.port
    except ValueError:
        raise ConfigError(form) from None
    if not token or not host:
        raise ConfigError(form)
    if parts.scheme != "https" and host not in _LOOPBACK:
        raise ConfigError(f"{form}: without https, everybody on the way reads the token")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/submit") else f"{path}/submit"
    place = f"[{host}]" if ":" in host else host
    netloc = place if port is None else f"{place}:{port}"
    return urlunsplit((parts.scheme, netloc, path, "", "")), token


def _said(answer: requests.Response) -> str:
    return printable(answer.text)[:200].strip() or answer.reason
