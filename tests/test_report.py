"""A run as one HTML file, looked at in a real browser."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kboot import Run, read_run
from kboot.cli import main
from kboot.evidence import CaseResult
from kboot.results.report import html_report
from kboot.statistics import Outcome
from kboot.testing import RECORDED_BOOT
from tests.browser import Browser, open_browser
from tests.test_plugin import run

HOSTILE = "</script></pre><img src=x onerror=alert(1)>\\x1b[31mred\\x1b[0m"

CONFTEST = f'''
import pytest
from pathlib import Path
from kboot import Config, open_session
from kboot.testing import FakeBackend, GuestAction, write_kernel

COMMANDS = {{
    "uptime": "up 3 days\\n",
    "hostile": "{HOSTILE}\\n",
    "insmod bad.ko": GuestAction.PANIC,
}}


@pytest.fixture(scope="session")
def kboot_session(request, tmp_path_factory):
    kernel = write_kernel(tmp_path_factory.mktemp("kernel") / "vmlinuz", "6.18.0-ours")
    worker = getattr(request.config, "workerinput", {{}}).get("workerid", "")
    evidence = Path(request.config.getoption("kboot_evidence")).absolute() / worker
    config = Config(kernel=str(kernel), isolation="none")
    with open_session(
        config,
        evidence=evidence,
        prefix=f"{{worker or 'm'}}-",
        backend=FakeBackend(commands=COMMANDS),
    ) as session:
        yield session
'''

TESTS = """
import pytest
from kboot import InfraError


def test_uptime(guest):
    assert guest.succeed("uptime") == "up 3 days\\n"


def test_hostile_output(guest):
    assert guest.succeed("hostile") == "<b onclick=alert(3)>"


def test_comes_back_from_a_panic(machine):
    with machine.expect_crash("panic"):
        machine.guest.run("insmod bad.ko")
    machine.wait_for_reboot()


def test_the_host_fails(machine):
    raise InfraError("nginx is gone")


@pytest.mark.skip(reason="no such device here")
def test_skipped(machine): ...


@pytest.mark.parametrize("name", ["<script>alert(4)</script>", "plain"])
def test_named(name, guest):
    guest.succeed("uptime")


def test_parts(guest, subtests):
    for number in range(3):
        with subtests.test(msg=f"part {number}"):
            assert number != 1
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evidence and the page of a run of those tests."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_demo.py").write_text(TESTS)
    options = ("--kboot-evidence=evidence", "--kboot-report=report.html")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"kboot: written: {folder / 'report.html'}" in done.stdout
    return folder


class _Reader(HTMLParser):
    """What is in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_the_page_needs_nothing_beside_itself(folder: Path) -> None:
    reader = _Reader()
    reader.feed((folder / "report.html").read_text())
    assert reader.tags.count("script") == 2
    assert {"img", "link", "iframe", "b onclick"}.isdisjoint(reader.tags)
    assert [link for link in reader.links if not link.startswith("#")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_any_complaint(
    browser: Browser, folder: Path, scheme: Any, tmp_path: Path
) -> None:
    with browser.open(folder / "report.html", scheme=scheme) as opened:
        assert opened.page.title() == "Linux 6.18.0-ours · kboot report"
        assert len(opened.shown()) == 11
        picture = opened.page.screenshot(path=tmp_path / "page.png")
        assert picture.startswith(b"\x89PNG")
        background = "getComputedStyle(document.body).backgroundColor"
        before = opened.page.evaluate(background)
        assert (before == "rgb(255, 255, 255)") == (scheme == "light")
        opened.page.click("#theme")
        assert opened.page.evaluate(background) != before
    assert opened.faults == []


def test_the_filter_takes_words_outcomes_and_keys(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html") as opened:
        page = opened.page
        page.keyboard.press("/")
        page.keyboard.type("Panic back")
        assert opened.shown() == ["test_demo.py::test_comes_back_from_a_panic"]
        assert page.input_value("#filter") == "Panic back"
        assert page.text_content("#shown") == "1 of 11"
        page.keyboard.press("Escape")
        assert len(opened.shown()) == 11
        for outcome in ("passed", "skipped", "failed"):
            page.click(f".chip[data-outcome={outcome}]")
        assert opened.shown() == ["test_demo.py::test_the_host_fails"]
        page.click(".chip[data-outcome=failed]")
        page.keyboard.press("n")
        focused = "document.activeElement.querySelector('.id').textContent"
        assert page.evaluate(focused) == "test_demo.py::test_hostile_output"
        page.keyboard.press("Enter")
        assert page.is_visible("tr:focus pre")
        page.keyboard.press("/")
        page.keyboard.type("no such test")
        assert page.is_visible("#nothing")
    assert opened.faults == []


def test_a_column_sorts_both_ways(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html") as opened:
        opened.page.click("[data-sort='1']")
        names = opened.shown()
        assert names == sorted(names)
        opened.page.click("[data-sort='1']")
        assert opened.shown() == names[::-1]


def test_a_crash_leads_to_its_place_in_the_console(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html") as opened:
        page = opened.page
        page.click("#cases a:text('panic: sysrq triggered crash')")
        page.wait_for_selector(".l.at")
        assert "Kernel panic - not syncing" in page.text_content(".l.at")
        assert page.is_visible(".l.at")
        assert re.fullmatch(r"\d+\.\d{3}", page.text_content(".l.at time"))
        page.fill(".find input", "linux version")
        assert page.text_content(".find output") == "1 of 2"
        page.press(".find input", "Enter")
        assert page.text_content(".find output") == "2 of 2"
    assert opened.faults == []


def test_what_guests_and_tests_say_stays_text(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html") as opened:
        page = opened.page
        page.on("dialog", lambda dialog: opened.faults.append(f"dialog {dialog.message}"))
        page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true })")
        page.wait_for_selector(".l")
        text = page.inner_text("body")
        assert "<img src=x onerror=alert(1)>" in text
        assert "test_named[<script>alert(4)</script>]" in text
        assert "\x1b" not in text
        assert page.locator("img").count() == 0
    assert opened.faults == []


def test_without_scripts_all_but_the_console_is_there(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html", script=False) as opened:
        assert opened.page.locator("#cases tbody tr").count() == 11
        opened.page.click("#m1 .console > summary")
        assert opened.page.is_visible("#m1 .console .plain >> nth=0")
        assert "/ #" in opened.page.inner_text("#m1 .console pre")


def test_everything_that_is_operated_has_a_name(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html") as opened:
        unnamed = opened.page.evaluate(
            """() => [...document.querySelectorAll('button, input, svg[role=img], a[href]')]
            .filter(each => !(each.getAttribute('aria-label') || each.textContent.trim()
                              || each.labels?.length))
            .map(each => each.outerHTML)"""
        )
        assert unnamed == []
        assert opened.page.locator("table:not(:has(caption))").count() == 0


#: Texts whose contrast to what is behind them is below that of WCAG 2 (AA).
CONTRAST = """() => {
    // "rgb(1, 2, 3)", and of color-mix(): "color(srgb 0.1 0.2 0.3)".
    const channels = text => text.match(/[\\d.]+/g).map(Number)
        .map((value, at) => text.startsWith("color(") && at < 3 ? 255 * value : value)
    const over = (front, back) => {
        const alpha = front[3] ?? 1
        return [0, 1, 2].map(at => front[at] * alpha + back[at] * (1 - alpha))
    }
    const behind = element => {
        const all = []
        for (let each = element; each; each = each.parentElement)
            all.push(channels(getComputedStyle(each).backgroundColor))
        return all.reverse().reduce((back, front) => over(front, back), [255, 255, 255])
    }
    const luminance = color => color.slice(0, 3)
        .map(value => value / 255)
        .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0)
    const faults = new Set()
    for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].filter(each => each.nodeType === Node.TEXT_NODE)
        if (!texts.some(each => each.textContent.trim()) || !element.checkVisibility()) continue
        const style = getComputedStyle(element)
        const back = behind(element)
        const svg = element instanceof SVGElement
        const front = over(channels(svg ? style.fill : style.color), back)
        const [low, high] = [luminance(front), luminance(back)].sort((a, b) => a - b)
        const ratio = (high + 0.05) / (low + 0.05)
        const size = parseFloat(style.fontSize)
        const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700)
        if (ratio < (large ? 3 : 4.5))
            faults.add(`${element.parentElement.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`)
    }
    return [...faults]
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_what_is_behind_it(
    browser: Browser, folder: Path, scheme: Any
) -> None:
    with browser.open(folder / "report.html", scheme=scheme) as opened:
        page = opened.page
        page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true })")
        page.wait_for_selector(".l")
        assert page.evaluate(CONTRAST) == []


def test_it_can_be_printed(browser: Browser, folder: Path) -> None:
    with browser.open(folder / "report.html") as opened:
        assert opened.page.pdf().startswith(b"%PDF")


def test_the_page_of_a_directory_is_that_of_the_run(folder: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.html"
    assert main(["report", str(folder / "evidence"), "-o", str(later)]) == 0
    first, second = ((path.read_text()) for path in (folder / "report.html", later))
    rows = re.compile(r'<tr id="t\d+" .*?</tr>', re.DOTALL)
    assert rows.findall(first) == rows.findall(second)
    assert len(rows.findall(first)) == 11


def test_a_restart_loop_has_its_rate_and_its_plots(
    browser: Browser, folder: Path, tmp_path: Path
) -> None:
    boots = [
        {
            "error": {"message": "no init in 90 s", "exit_code": 1} if number == 7 else None,
            "title": None,
            "phase": "init",
            "duration_s": 10 + number / 10,
            "phases_s": {"firmware": 1.0, "linux": 5 + number / 10},
        }
        for number in range(20)
    ]
    (tmp_path / "boots.json").write_text(json.dumps({"summary": {}, "boots": boots}))
    page = tmp_path / "page.html"
    arguments = [folder / "evidence", tmp_path / "boots.json", "-o", page]
    assert main(["report", *map(str, arguments)]) == 0
    with browser.open(page) as opened:
        text = opened.page.inner_text("#times")
        assert "20 boots, 1 failed: 5.0 %, with 95 % confidence between 0.9 and 23.6 %" in text
        assert "in init: no init in N s" in text
        assert opened.page.locator("#times .pt-failed").count() == 1
    assert opened.faults == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such directory"),
        (["."], "no evidence of kboot's in it"),
        (["notes.json"], "neither a directory with evidence, nor written by kboot restart"),
        (["evidence", "-o", "gone/x.html"], "its directory is not there"),
        (["evidence", "-o", "."], "is a directory"),
    ],
)
def test_what_it_cannot_read_or_write_is_named(
    arguments: Sequence[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text('{"boots": [{}]}')
    assert main(["report", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_report_that_cannot_be_written_ends_the_run_before_it_begins(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_x(): ...")
    result = run(pytester, "--kernel=nothing", "--kboot-report=gone/x.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*gone/x.html: its directory is not there*"])


def test_with_workers_it_has_the_tests_and_machines_of_all(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_demo=TESTS)
    run(pytester, "-n2", "--kboot-evidence=evidence", "--kboot-report=report.html")
    found = read_run(pytester.path / "evidence")
    assert len(found.cases) == 11
    assert {case.worker for case in found.cases} == {"gw0", "gw1"}
    assert len(found.machines) >= 2
    assert len({each.name for each in found.machines}) == len(found.machines)
    page = (pytester.path / "report.html").read_text()
    assert page.count("<tr id=") == 11


def test_a_boot_that_fails_in_the_set_up_is_in_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        CONFTEST.replace("backend=FakeBackend(", "backend=FakeBackend(Path('hangs'), ")
    )
    recording = pytester.path / "hangs"
    recording.mkdir()
    for name in ("boot.ipxe", "access.jsonl"):
        (recording / name).write_bytes((RECORDED_BOOT / name).read_bytes())
    console = (RECORDED_BOOT / "serial.log").read_bytes()
    dies = console.index(b"Kernel panic - not syncing")
    banner = console.index(b"Run /init")
    begin = console.rindex(b"\n", 0, dies) + 1
    (recording / "serial.log").write_bytes(
        console[: console.rindex(b"\n", 0, banner) + 1] + console[begin : begin + 4000]
    )
    pytester.makepyfile("def test_x(machine): ...")
    run(pytester, "--kboot-evidence=evidence", "--kboot-timeout=20")
    (case,) = read_run(pytester.path / "evidence").cases
    assert case.outcome == "failed"
    assert case.evidence == pytester.path / "evidence" / "001-test_x"
    assert case.crashes == ("panic: sysrq triggered crash",)


KTAP = """KTAP version 1
1..4
ok 1 first
# EXPECTATION FAILED at lib/second.c:7
not ok 2 second
ok 3 third # SKIP no such device
"""

SUITES = """
def test_kunit(machine):
    machine.ktap("kunit")


def test_now_and_then(machine, tmp_path_factory):
    place = tmp_path_factory.getbasetemp() / "was-here"
    failed = place.exists()
    place.touch()
    assert failed


def test_parts_of_one_name(machine, subtests):
    for number in range(3):
        with subtests.test(msg="part"):
            assert number != 1
"""


def test_cases_of_suites_and_flaky_tests_are_told_for_what_they_are(
    pytester: pytest.Pytester,
) -> None:
    commands = f"commands=lambda text: {KTAP!r} if 'sh -c kunit' in text else None"
    pytester.makeconftest(CONFTEST.replace("commands=COMMANDS", commands))
    pytester.makepyfile(test_suites=SUITES)
    run(pytester, "--kboot-evidence=evidence", "--kboot-retry=2", "--kboot-report=report.html")
    found = read_run(pytester.path / "evidence")
    told = {case.id.partition("::")[2]: case for case in found.cases}
    assert {name: case.outcome for name, case in told.items()} == {
        "test_kunit": "failed",
        "test_kunit [first]": "passed",
        "test_kunit [second]": "failed",
        "test_kunit [third]": "skipped",
        "test_kunit [case 4]": "not run",
        "test_now_and_then": "flaky",
        "test_parts_of_one_name": "failed",
        "test_parts_of_one_name [part]": "passed",
        "test_parts_of_one_name [part] #2": "failed",
        "test_parts_of_one_name [part] #3": "passed",
    }
    assert told["test_now_and_then"].message.startswith("failed 1/2: ")
    assert "EXPECTATION FAILED at lib/second.c:7" in told["test_kunit [second]"].detail
    assert told["test_kunit [first]"].evidence == told["test_kunit"].evidence
    assert "4 failed" in re.sub(r"<.*?>", "", (pytester.path / "report.html").read_text())


def test_a_run_whose_tests_cannot_be_collected_has_a_page_that_says_so(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("import nothing_of_that_name")
    run(pytester, "--kboot-report=report.html", "--kboot-summary=summary.md")
    for name in ("report.html", "summary.md"):
        text = (pytester.path / name).read_text().replace("\\", "").replace("&#39;", "'")
        assert "could not be collected: E   ModuleNotFoundError: No module named" in text


def test_a_machine_whose_run_was_killed_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "serial.log").write_bytes(b"[    0.000000] Linux version 6.1 (x@y) #1\n")
    page = html_report(read_run(tmp_path))
    assert "unfinished" in page
    assert "Linux version 6.1" in page


# ------------------------------------------------------------------------------- large runs


def test_the_page_of_200_tests_on_200_machines_is_below_5_mb(folder: Path, tmp_path: Path) -> None:
    found = read_run(folder / "evidence")
    chance = random.Random(1)
    for number in range(200):
        copy = shutil.copytree(found.machines[0].directory, tmp_path / f"{number:03}-test")
        log = copy / "serial.log"
        # No two boots print the same times.
        log.write_bytes(
            re.sub(rb"\.\d{6}\]", lambda _: b".%06d]" % chance.randrange(10**6), log.read_bytes())
        )
    cases = tuple(
        replace(
            found.cases[number % len(found.cases)],
            id=f"test_demo.py::test_number_{number}",
            evidence=tmp_path / f"{number:03}-test",
        )
        for number in range(200)
    )
    page = html_report(replace(read_run(tmp_path), cases=cases))
    assert page.count('<details class="machine"') == 200
    assert page.count("<tr id=") == 200
    assert len(page.encode()) < 5_000_000


def test_50_000_cases_are_all_in_it_and_can_be_filtered(browser: Browser, tmp_path: Path) -> None:
    cases = tuple(
        CaseResult(
            id=f"test_kunit.py::test_suite [suite.case_{number}]",
            outcome="passed" if number % 50 else "failed",
            message="" if number % 50 else "# EXPECTATION FAILED at lib/test.c:1",
            part_of="test_kunit.py::test_suite",
        )
        for number in range(50_000)
    )
    page = tmp_path / "page.html"
    page.write_text(html_report(Run(cases=cases, machines=())))
    with browser.open(page) as opened:
        assert opened.page.text_content("#shown") == "50000 of 50000, the first 1000 are listed"
        assert len(opened.shown()) == 1000
        opened.page.fill("#filter", "expectation case_49950]")
        assert opened.shown() == ["test_kunit.py::test_suite [suite.case_49950]"]
    assert opened.faults == []


def test_the_phases_of_outcomes_without_any_boot_need_no_plot() -> None:
    loop = [
        Outcome(number=1, failure="no node", crashed=False, infra=True, duration_s=0.0, phases_s={})
    ]
    page = html_report(Run(cases=(), machines=()), loops={"empty": loop})
    assert "0 boots, 0 failed" in page
