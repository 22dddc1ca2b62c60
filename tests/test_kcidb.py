"""Reports for KCIDB: judged by KernelCI's own schema, and sent to a server that listens."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from kcidb_io.schema import V5_3

from kboot import Config, Run, open_session, read_run
from kboot.cli import main
from kboot.errors import ConfigError, InfraError
from kboot.evidence import CaseResult
from kboot.results.kcidb import Source, address, kcidb_report, path_of, submit
from kboot.testing import FakeBackend, GuestAction, write_kernel
from tests.test_plugin import run
from tests.test_report import CONFTEST, TESTS

SOURCE = Source(
    origin="ours",
    repository="https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git",
    commit="0123456789abcdef0123456789abcdef01234567",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A machine that came up and crashed, without its tests."""
    folder = tmp_path_factory.mktemp("kcidb")
    kernel = write_kernel(folder / "vmlinuz", "6.18.0-ours")
    backend = FakeBackend(commands={"crash": GuestAction.PANIC})
    config = Config(kernel=str(kernel), isolation="none")
    with open_session(config, evidence=folder / "run", backend=backend) as session:
        machine = session.machine(session.settings(config), name="crashes")
        with machine.expect_crash("panic"):
            machine.guest.run("crash")
    return read_run(folder / "run")


def case(outcome: str, name: str = "test_y", **more: Any) -> CaseResult:
    return CaseResult(id=f"tests/test_x.py::{name}", outcome=outcome, **more)


def cases_in(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert V5_3.is_valid(report), V5_3.validate(report)
    return {each["path"]: each for each in report["tests"]}


def test_it_is_valid_and_tells_what_was_tested(found: Run) -> None:
    evidence = found.machines[0]
    run_ = replace(
        found,
        cases=(
            case("passed", evidence=evidence.directory, started=evidence.started, duration_s=2),
        ),
    )
    report = kcidb_report(run_, SOURCE)
    tests = cases_in(report)
    (checkout,), (build,) = report["checkouts"], report["builds"]
    assert checkout["git_commit_hash"] == SOURCE.commit
    assert build["checkout_id"] == checkout["id"] == f"ours:{SOURCE.commit}"
    assert build["architecture"] == "x86_64"
    assert {each["build_id"] for each in tests.values()} == {build["id"]}
    assert tests["boot"]["status"] == "PASS"
    assert set(tests["boot"]["misc"]["phases_s"]) >= {"script", "linux", "ready"}
    assert tests["kboot.tests.test_x.test_y"]["duration"] == 2
    assert tests["kboot.tests.test_x.test_y"]["environment"]["misc"]["memory_mib"] == 512


@pytest.mark.parametrize(
    ("outcome", "fault", "status"),
    [
        ("passed", "", "PASS"),
        ("xpassed", "", "PASS"),
        ("failed", "", "FAIL"),
        ("failed", "kernel", "FAIL"),
        ("flaky", "kernel", "FAIL"),
        ("skipped", "", "SKIP"),
        ("xfailed", "", "DONE"),
        ("not run", "", "MISS"),
        ("error", "", "ERROR"),
        ("error", "user", "ERROR"),
        ("error", "host", "MISS"),
        ("failed", "host", "MISS"),
        ("what another plugin says", "", "ERROR"),
    ],
)
def test_each_outcome_has_its_status_and_the_hosts_faults_are_no_failures(
    found: Run, outcome: str, fault: str, status: str
) -> None:
    run_ = replace(found, cases=(case(outcome, fault=fault),))
    assert cases_in(kcidb_report(run_, SOURCE))["kboot.tests.test_x.test_y"]["status"] == status


@pytest.mark.parametrize(
    ("verdict", "status"),
    [("failed", "FAIL"), ("error", "MISS"), ("interrupted", "MISS"), ("test failed", "MISS")],
)
def test_a_boot_that_did_not_come_up_fails_if_the_kernel_is_at_fault(
    found: Run, verdict: str, status: str
) -> None:
    machine = replace(found.machines[0], verdict=verdict, boots=())
    boot = cases_in(kcidb_report(replace(found, machines=(machine,)), SOURCE))["boot"]
    assert boot["status"] == status
    assert "Kernel panic" in boot["log_excerpt"]


def test_of_a_build_that_kcidb_knows_there_are_tests_alone(found: Run) -> None:
    report = kcidb_report(found, Source(origin="ours", build="theirs:build-7"))
    cases_in(report)
    assert "builds" not in report
    assert "checkouts" not in report
    assert {each["build_id"] for each in report["tests"]} == {"theirs:build-7"}


def test_it_is_valid_of_a_run_that_found_nothing_and_of_hostile_names(found: Run) -> None:
    assert kcidb_report(Run(cases=(), machines=()), Source())["tests"] == []
    hostile = "a\0b\x1b[31m/../<é>[x y]" * 100
    run_ = replace(
        found, cases=(case("failed", name=hostile, message=hostile, detail=hostile * 1000),)
    )
    assert len(cases_in(kcidb_report(run_, SOURCE))) == 2


def test_made_twice_it_has_the_same_ids(found: Run) -> None:
    run_ = replace(found, cases=(case("passed"), case("passed", name="test_z")))
    first, second = kcidb_report(run_, SOURCE), kcidb_report(run_, SOURCE)
    assert first == second
    assert len({each["id"] for each in first["tests"]}) == 3


def test_in_the_report_of_several_runs_each_test_keeps_its_id(found: Run) -> None:
    evidence = found.machines[0]
    assert evidence.started
    days = [evidence.started + timedelta(days=number) for number in range(2)]
    runs = [replace(found, cases=(case("passed", started=day),), started=day) for day in days]
    both = replace(runs[0], cases=(*runs[0].cases, *runs[1].cases))
    ids = {each["id"] for each in kcidb_report(both, SOURCE)["tests"]}
    assert len(ids) == 3
    assert ids == {each["id"] for run_ in runs for each in kcidb_report(run_, SOURCE)["tests"]}


@pytest.mark.parametrize(
    ("identifier", "path"),
    [
        (
            "tests/net/test_link.py::TestSpeed::test_up",
            "kboot.tests.net.test_link.TestSpeed.test_up",
        ),
        ("test_a.py::test_b[tiny-4 cpus]", "kboot.test_a.test_b_tiny-4_cpus"),
        ("test_a.py::test_b [suite.case]", "kboot.test_a.test_b.suite_case"),
    ],
)
def test_a_node_id_becomes_a_path(identifier: str, path: str) -> None:
    assert path_of(identifier) == path


# ------------------------------------------------------------------------------------ submission


@contextmanager
def listening(status: int = 200, answer: bytes = b'{"id": "abc"}') -> Iterator[Any]:
    """A server; what it was sent is in its list `sent`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent.append((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    sent: list[tuple[str, str, Any]] = []
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://secret@127.0.0.1:{server.server_port}", sent
        server.shutdown()
        thread.join()


def test_it_is_sent_with_the_token_also_where_a_netrc_names_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with listening() as (rest, sent):
        assert submit({"version": {}}, rest) == "abc"
    assert sent == [("/submit", "Bearer secret", {"version": {}})]


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, ConfigError, "refuses the token"),
        (500, InfraError, "answers 500: broken"),
        (302, InfraError, "302"),
    ],
)
def test_an_answer_that_is_none_is_an_error_without_the_token(
    status: int, error: type[Exception], words: str
) -> None:
    with listening(status, b"broken") as (rest, _), pytest.raises(error, match=words) as raised:
        submit({}, rest)
    assert "secret" not in str(raised.value)


def test_nobody_who_listens_is_the_hosts_fault() -> None:
    with pytest.raises(InfraError, match="cannot be reached"):
        submit({}, "http://secret@127.0.0.1:1")


@pytest.mark.parametrize(
    ("rest", "url"),
    [
        ("https://t@db.example.org", "https://db.example.org/submit"),
        ("https://t@db.example.org/submit", "https://db.example.org/submit"),
        ("https://t@db.example.org:8443/kcidb/", "https://db.example.org:8443/kcidb/submit"),
    ],
)
def test_the_address_is_that_which_kernelcis_tools_take(rest: str, url: str) -> None:
    assert address(rest) == (url, "t")


@pytest.mark.parametrize("rest", ["", "https://db.example.org", "token", "http://t@db.example.org"])
def test_an_address_that_cannot_be_meant_is_refused(rest: str) -> None:
    with pytest.raises(ConfigError, match="KCIDB_REST must be https://TOKEN@HOST"):
        address(rest)


def test_a_run_writes_it_and_sends_it_if_asked_to(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_demo=TESTS)
    arguments = ["--kboot-evidence=evidence", "--kboot-kcidb=kcidb.json", "--kboot-kcidb-origin=us"]
    with listening() as (rest, sent):
        monkeypatch.setenv("KCIDB_REST", rest)
        assert Config().kcidb_submit == "no"
        result = run(pytester, *arguments, "--kboot-kcidb-submit=yes", "-k", "host_fails")
    result.stdout.fnmatch_lines(["kboot: submitted to KCIDB: abc"])
    ((_, _, report),) = sent
    assert report == json.loads((pytester.path / "kcidb.json").read_text())
    assert cases_in(report)["kboot.test_demo.test_the_host_fails"]["status"] == "MISS"


def test_later_it_is_the_same_and_is_sent_only_if_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_demo.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    arguments = ("--kboot-kcidb=first.json", "--kboot-kcidb-origin=us", "-k", "uptime or panic")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*command, "--kboot-evidence=evidence", *arguments], check=True)
    first = json.loads((tmp_path / "first.json").read_text())
    assert len(cases_in(first)) == 3
    monkeypatch.setenv("KBOOT_KCIDB_SUBMIT", "yes")
    with listening() as (rest, sent):
        monkeypatch.setenv("KCIDB_REST", rest)
        assert main(["kcidb", "evidence", "--kcidb-origin=us"]) == 0
        assert (json.loads(capsys.readouterr().out), sent) == (first, [])
        words = ["kcidb", "evidence", "--kcidb-origin=us", "--submit", "-o", "later.json"]
        assert main(words) == 0
    ((path, token, report),) = sent
    assert (path, token) == ("/submit", "Bearer secret")
    assert report == first == json.loads((tmp_path / "later.json").read_text())
    assert capsys.readouterr() == ("", "submitted to KCIDB: abc\n")


@pytest.mark.parametrize(
    ("arguments", "rest", "code", "words"),
    [
        (["nowhere"], "", 2, "no such directory"),
        (["."], "", 2, "no evidence of kboot's in it"),
        (["nowhere", "-o", "gone/x.json"], "", 2, "its directory is not there"),
        # Before anything is read.
        (["nowhere", "--submit"], "", 2, "KCIDB_REST must be https://TOKEN@HOST"),
        (["{run}", "--submit"], "http://secret@127.0.0.1:1", 3, "cannot be reached"),
    ],
)
def test_later_what_cannot_be_read_written_or_sent_is_named(
    arguments: list[str],
    rest: str,
    code: int,
    words: str,
    found: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KCIDB_REST", rest)
    place = str(found.machines[0].directory)
    assert main(["kcidb", *(word.format(run=place) for word in arguments)]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "secret" not in error


def test_a_run_that_could_not_send_it_says_so_and_does_not_pass(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KCIDB_REST", "http://secret@127.0.0.1:1")
    pytester.makepyfile("def test_x(): ...")
    result = run(pytester, "--kboot-kcidb=kcidb.json", "--kboot-kcidb-submit=yes")
    result.stdout.fnmatch_lines(["kboot: error: KCIDB at http://127.0.0.1:1/submit cannot be*"])
    assert result.ret == 3
