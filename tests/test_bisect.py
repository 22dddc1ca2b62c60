"""Finding the change that brought a failure, also one that shows now and then."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from kboot import Config
from kboot.bisect.decision import Rate, Tally
from kboot.bisect.history import (
    GitHistory,
    History,
    OrderedHistory,
    Position,
    kernels_in,
    open_git,
)
from kboot.bisect.record import open_record
from kboot.bisect.search import Found, Search, Trial
from kboot.bisect.trials import Boots, Failure
from kboot.cli import main
from kboot.errors import ConfigError, InfraError
from kboot.testing import Answer, FakeBackend, GuestAction, write_kernel
from tests.test_report import CONFTEST, TESTS

# --------------------------------------------------------------------------- when is it decided


def test_the_rarer_a_failure_is_the_more_boots_without_it_make_a_kernel_good() -> None:
    needed = [Rate(5, passes).passes_needed(0.01) for passes in (0, 5, 12, 45, 500)]
    assert needed == sorted(needed)
    assert needed[0] <= 4
    # With a known rate of 0.3, it would be 13; that it is known from 17 boots alone costs some.
    assert 13 < needed[2] < 30


def test_what_is_needed_is_the_least_that_is_enough() -> None:
    rate = Rate(4, 9)
    count = rate.passes_needed(0.001)
    assert rate.chance_of_passes(count) <= 0.001 < rate.chance_of_passes(count - 1)


def test_only_kernels_that_have_shown_the_failure_tell_its_rate() -> None:
    assert Rate.of([Tally(hits=2, passes=3), Tally(passes=100), Tally(hits=1)]) == Rate(3, 3)


# ----------------------------------------------------------------------------------- the search


def failing_from(
    culprit: int, chance: random.Random, *, rate: float, infra: float = 0.0
) -> Callable[[str], Trial]:
    """Boots of revisions whose names end in their numbers."""

    def trial(name: str) -> Trial:
        if chance.random() < infra:
            return Trial.INFRA
        shows = int(name.lstrip("c")) >= culprit and chance.random() < rate
        return Trial.HIT if shows else Trial.PASS

    return trial


def ordered(count: int) -> OrderedHistory:
    names = [f"c{number:02}" for number in range(count)]
    return OrderedHistory(names, names[0], names[-1])


def test_of_200_searches_for_a_failure_with_p_0_3_at_least_198_are_right() -> None:
    right = 0
    for seed in range(200):
        chance = random.Random(seed)
        culprit = chance.randrange(1, 64)
        trial = failing_from(culprit, chance, rate=0.3, infra=0.1)
        right += Search(ordered(64), trial).run().culprit == f"c{culprit:02}"
    assert right >= 198


@pytest.mark.parametrize("culprit", range(1, 9))
def test_a_failure_that_shows_each_time_takes_few_boots(culprit: int) -> None:
    trial = failing_from(culprit, random.Random(1), rate=1.0)
    found = Search(ordered(9), trial).run()
    assert found.culprit == f"c{culprit:02}"
    assert found.parents == (f"c{culprit - 1:02}",)
    assert found.confidence >= 0.99
    assert found.boots <= 25
    # Both ends of the result are verified.
    assert found.tallies[found.culprit].hits >= 2
    assert found.tallies[found.parents[0]].passes >= 3


def test_a_bad_one_that_was_called_good_is_found_out() -> None:
    def trial(name: str) -> Trial:
        # Of the first bad ones, each is lucky a few times.
        if name in {"c05", "c06", "c07"}:
            lucky[name] = lucky.get(name, 0) + 1
            return Trial.PASS if lucky[name] <= 3 else Trial.HIT
        return Trial.HIT if name > "c07" else Trial.PASS

    lucky: dict[str, int] = {}
    found = Search(ordered(16), trial).run()
    assert found.culprit == "c05"
    assert "git bisect bad c05" in found.log


def test_a_good_one_that_failed_once_for_another_reason_is_found_out() -> None:
    inner = failing_from(9, random.Random(3), rate=1.0)
    failed_once: set[str] = set()

    def trial(name: str) -> Trial:
        # As on a host that was too slow for a moment.
        if name in {"c06", "c08"} and name not in failed_once:
            failed_once.add(name)
            return Trial.HIT
        return inner(name)

    found = Search(ordered(16), trial).run()
    assert failed_once
    assert found.culprit == "c09"
    assert found.tallies["c08"].hits == 0


def test_revisions_that_cannot_be_tested_are_gone_around() -> None:
    inner = failing_from(9, random.Random(3), rate=1.0)

    def trial(name: str) -> Trial:
        if name in {"c07", "c11"}:
            return Trial.NO_KERNEL
        return Trial.OTHER if name == "c12" else inner(name)

    found = Search(ordered(16), trial).run()
    assert found.culprit == "c09"
    assert found.tallies.get("c12", Tally()).others in {0, 5}


def test_with_only_such_left_it_says_among_which_the_culprit_is() -> None:
    def trial(name: str) -> Trial:
        if name in {"c01", "c02", "c03"}:
            return Trial.NO_KERNEL
        return Trial.HIT if name == "c04" else Trial.PASS

    found = Search(ordered(5), trial).run()
    assert found.culprit is None
    assert found.candidates == ("c01", "c02", "c03", "c04")


def test_ends_that_are_not_what_they_are_called_are_named() -> None:
    with pytest.raises(ConfigError, match="c04 is called bad, and the failure was seen in 0 of 20"):
        Search(ordered(5), lambda _: Trial.PASS, most_boots=20).run()
    with pytest.raises(ConfigError, match="c00 is called good, and is not"):
        Search(ordered(5), lambda _: Trial.HIT).run()


@pytest.mark.parametrize(
    ("trial", "why"),
    [(Trial.NO_KERNEL, "there is no kernel of it"), (Trial.OTHER, "5 boots went wrong in other")],
)
@pytest.mark.parametrize(("end", "called"), [("c04", "bad"), ("c00", "good")])
def test_an_end_that_cannot_be_tested_is_not_said_to_be_the_other(
    trial: Trial, why: str, end: str, called: str
) -> None:
    def try_it(name: str) -> Trial:
        return trial if name == end else Trial.HIT

    with pytest.raises(ConfigError, match=f"{end} is called {called}, and cannot be tested: {why}"):
        Search(ordered(5), try_it).run()


def test_a_host_that_fails_all_the_time_ends_it() -> None:
    with pytest.raises(InfraError, match="10 boots in a row"):
        Search(ordered(5), lambda _: Trial.INFRA).run()


# -------------------------------------------------------------------------------- what is searched


@pytest.mark.parametrize(
    "names",
    [
        ["linux-6.9.deb", "linux-6.10.deb", "linux-6.11-rc1.deb", "linux-6.11.deb"],
        ["vmlinuz-1", "vmlinuz-2", "vmlinuz-10"],
    ],
)
def test_kernels_in_a_directory_are_in_the_order_of_their_versions(
    names: list[str], tmp_path: Path
) -> None:
    for name in reversed(names):
        (tmp_path / name).touch()
    assert list(kernels_in(tmp_path)) == names


def test_an_order_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="x is not among the kernels: a, b"):
        OrderedHistory(["a", "b"], "a", "x")
    with pytest.raises(ConfigError, match=r"b \(good\) does not come before a \(bad\)"):
        OrderedHistory(["a", "b"], "b", "a")


def git(repository: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=repository, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 commits; 20 to 29 are on a branch beside 30 to 39, and merged by the commit 40."""
    folder = tmp_path_factory.mktemp("repository")
    script = ["reset refs/heads/main"]
    for number in range(64):
        message = f"change {number}"
        script += [
            "commit refs/heads/main",
            f"mark :{number + 1}",
            f"committer x <x@example.org> {1000 + number} +0000",
            f"data {len(message)}\n{message}",
        ]
        parents = {0: [], 30: [20], 40: [40, 30]}.get(number, [number])
        script += [f"{'from' if not n else 'merge'} :{each}" for n, each in enumerate(parents)]
        script += [f"M 644 inline number\ndata {len(str(number))}\n{number}"]
    git(folder, "init", "-q", "-b", "main")
    subprocess.run(
        ["git", "fast-import", "--quiet"],
        cwd=folder,
        input="\n".join(script) + "\n",
        text=True,
        check=True,
    )
    git(folder, "reset", "-q", "--hard")
    return folder


def commit(repository: Path, number: int) -> str:
    return git(repository, "log", "--format=%H", "--all", f"--grep=^change {number}$")


def search_git(
    repository: Path, tmp_path: Path, bad: set[int], rate: float
) -> tuple[Found, History]:
    chance = random.Random(len(bad))
    lines = git(repository, "log", "--format=%H %s", "main").splitlines()
    numbers = dict(line.split(" change ") for line in lines)

    def trial(revision: str) -> Trial:
        if chance.random() < 0.1:
            return Trial.INFRA
        shows = int(numbers[revision]) in bad and chance.random() < rate
        return Trial.HIT if shows else Trial.PASS

    with open_git(repository, tmp_path / "worktree", commit(repository, 0), "main") as history:
        return Search(history, trial).run(), history


@pytest.mark.parametrize(
    ("culprit", "bad"),
    [
        (47, set(range(47, 64))),
        (24, {*range(24, 30), *range(40, 64)}),
        (40, set(range(40, 64))),
    ],
    ids=["after a merge", "on a branch", "a merge"],
)
def test_a_culprit_is_found_in_a_repository_and_git_replays_how(
    repository: Path, tmp_path: Path, culprit: int, bad: set[int]
) -> None:
    before = git(repository, "status", "--porcelain", "--branch")
    found, _ = search_git(repository, tmp_path, bad, 0.3)
    assert found.culprit == commit(repository, culprit)
    # Those of a merge are both verified.
    assert len(found.parents) == (2 if culprit == 40 else 1)
    assert all(found.tallies[parent].passes >= 10 for parent in found.parents)
    # The user's own tree and state are as they were.
    assert git(repository, "status", "--porcelain", "--branch") == before
    assert git(repository, "worktree", "list").count("\n") == 0
    (tmp_path / "log").write_text(found.log)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(repository), str(clone))
    git(clone, "bisect", "replay", str(tmp_path / "log"))
    assert git(clone, "rev-parse", "refs/bisect/bad") == found.culprit


@pytest.mark.parametrize("word", ["bad", "'bad'"])
def test_git_names_the_culprit_with_and_without_quotes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    last = commit(repository, 41)
    with open_git(repository, tmp_path / "worktree", commit(repository, 40), "main") as history:
        monkeypatch.setattr(history, "_said", f"{last} is the first {word} commit\ncommit {last}\n")
        assert history.position([]) == Position(next=None, culprit=last)


def test_a_git_that_does_not_go_on_is_told(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_git(repository, tmp_path / "worktree", commit(repository, 10), "main") as history:
        following = history.position([]).next
        assert following
        # As if it had been told, and had answered in words that are not known.
        monkeypatch.setattr(history, "_applied", [(following, "bad")])
        with pytest.raises(InfraError, match="git bisect does not go on"):
            history.position([(following, "bad")])


def test_the_search_goes_around_commits_that_cannot_be_built(
    repository: Path, tmp_path: Path
) -> None:
    with open_git(repository, tmp_path / "worktree", commit(repository, 40), "main") as history:
        position = history.position([])
        assert position.next
        skipped = history.position([(position.next, "skip")])
        assert skipped.next not in {position.next, None}
        # Going back: the verdicts are others than before.
        assert history.position([]) == position
        last = commit(repository, 41)
        assert history.position([(last, "bad")]) == Position(next=None, culprit=last)


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("nothing", "main", "there is no commit nothing"),
        ("main", "main~3", "is not an ancestor of"),
        ("main", "main", "is not an ancestor of"),
    ],
)
def test_commits_that_cannot_be_meant_are_named(
    repository: Path, tmp_path: Path, good: str, bad: str, words: str
) -> None:
    with (
        pytest.raises(ConfigError, match=words),
        open_git(repository, tmp_path / "worktree", good, bad),
    ):
        pass


def test_what_is_no_repository_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="not a git repository"),
        open_git(tmp_path, tmp_path / "worktree", "a", "b"),
    ):
        pass


def test_a_worktree_that_a_killed_run_left_is_in_nobodys_way(
    repository: Path, tmp_path: Path
) -> None:
    place = tmp_path / "worktree"
    git(repository, "worktree", "add", "-q", "--detach", str(place), "main")
    with open_git(repository, place, commit(repository, 0), "main") as history:
        assert isinstance(history, GitHistory)
        history.check_out(commit(repository, 7))
        assert (place / "number").read_text() == "7"
    assert not place.exists()


# ------------------------------------------------------------------------------------- the boots


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return write_kernel(tmp_path / "vmlinuz", "6.18.0-ours")


COMMANDS: dict[str, Answer] = {
    "good": "fine\n",
    "bad": (1, "no"),
    "crash": GuestAction.PANIC,
}


@pytest.mark.parametrize(
    ("failure", "trial"),
    [
        (Failure(settle_s=0.1), Trial.PASS),
        (Failure(command="good", settle_s=0.1), Trial.PASS),
        (Failure(command="bad", settle_s=0.1), Trial.HIT),
        (Failure(command="crash"), Trial.HIT),
        (Failure(command="crash", title="sysrq triggered"), Trial.HIT),
        (Failure(command="crash", title="use-after-free"), Trial.OTHER),
        (Failure(command="bad", title="use-after-free", settle_s=0.1), Trial.OTHER),
        (Failure(command="good", title="use-after-free", settle_s=0.1), Trial.PASS),
    ],
    ids=str,
)
def test_a_boot_counts_for_what_was_asked_for(
    kernel: Path, tmp_path: Path, failure: Failure, trial: Trial
) -> None:
    backend = FakeBackend(commands=COMMANDS)
    with Boots(Config(), failure, evidence=tmp_path / "evidence", backend=backend) as boots:
        assert boots.boot("c1", kernel) is trial
    # What went well leaves nothing, and all else its evidence.
    assert bool(list((tmp_path / "evidence").glob("*/result.json"))) == (trial is not Trial.PASS)


def test_what_is_no_kernel_cannot_be_tested(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no kernel")
    with Boots(Config(), Failure(), evidence=tmp_path, backend=FakeBackend()) as boots:
        assert boots.boot("c1", tmp_path / "text") is Trial.NO_KERNEL


def test_what_the_host_fails_in_a_test_of_pytest_does_not_count(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_demo.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    failure = Failure(test="test_demo.py::test_the_host_fails")
    with Boots(Config(), failure, evidence=tmp_path / "evidence") as boots:
        assert boots.boot("c1", kernel) is Trial.INFRA


# ------------------------------------------------------------------------------- killed, and again


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


CHILD = """
import os, signal, sys
from pathlib import Path
from kboot import Config
from kboot.bisect.record import open_record
from kboot.bisect.history import OrderedHistory
from kboot.bisect.search import Search
from kboot.bisect.trials import Boots, Failure
from kboot.testing import FakeBackend, GuestAction

folder, until = Path(sys.argv[1]), int(sys.argv[2])
names = [f"c{number}" for number in range(8)]
current, count = [""], [0]


def answer(command):
    if command == "probe":
        return GuestAction.PANIC if current[0] >= "c5" else "fine"


backend = FakeBackend(commands=answer)

with open_record({"search": 1}, anew=False) as record, Boots(
    Config(), Failure(command="probe", settle_s=0.2), evidence=folder / "evidence", backend=backend
) as boots:
    def trial(name):
        current[0] = name
        count[0] += 1
        if count[0] == until:
            os.kill(os.getpid(), signal.SIGKILL)
        return boots.boot(name, folder / "vmlinuz")

    found = Search(OrderedHistory(names, "c0", "c7"), record.recorded(trial)).run()
    print(found.culprit, found.boots, count[0])
"""


def test_a_search_that_was_killed_goes_on_where_it_was(
    kernel: Path, tmp_path: Path, state: Path
) -> None:
    def child(until: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CHILD), str(kernel.parent), str(until)],
            capture_output=True,
            text=True,
            check=False,
        )

    assert child(until=6).returncode == -signal.SIGKILL
    # And in the midst of a line.
    (record,) = state.glob("kboot/bisect/*/trials.jsonl")
    with record.open("a") as file:
        file.write('{"revision": "c')
    done = child(until=0)
    culprit, boots, booted_now = done.stdout.split()
    assert culprit == "c5", done.stderr
    assert int(boots) == int(booted_now) + 5


def test_the_same_search_does_not_run_twice_and_can_begin_anew(state: Path) -> None:
    with open_record({"search": 1}, anew=False) as record:
        record.recorded(lambda _: Trial.HIT)("c1")
        with (
            pytest.raises(ConfigError, match="runs already"),
            open_record({"search": 1}, anew=False),
        ):
            pass
        with open_record({"search": 2}, anew=False) as other:
            assert other.count == 0
    with open_record({"search": 1}, anew=False) as record:
        assert record.count == 1
    with open_record({"search": 1}, anew=True) as record:
        assert record.count == 0


# ---------------------------------------------------------------------------------- the command


def test_the_command_builds_commits_and_tests_them(
    repository: Path,
    tmp_path: Path,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # The build picks a kernel by the commit; the test fails with one of them.
    write_kernel(tmp_path / "old", "6.1.0-old")
    write_kernel(tmp_path / "new", "6.2.0-new")
    (tmp_path / "conftest.py").write_text(
        CONFTEST.replace(
            'write_kernel(tmp_path_factory.mktemp("kernel") / "vmlinuz", "6.18.0-ours")',
            'request.config.getoption("kboot_kernel")[-1]',
        )
    )
    (tmp_path / "test_release.py").write_text(
        "def test_release(guest):\n    assert 'new' not in guest.succeed('uname -r')\n"
    )
    monkeypatch.chdir(tmp_path)
    build = f"test $(cat number) -ge 62 && cp {tmp_path}/new image || cp {tmp_path}/old image"
    arguments = [
        *("bisect", commit(repository, 61), commit(repository, 62), "--repo", str(repository)),
        *("--build", build, "--image", "image", "--error", "20"),
        *("--test", "test_release.py", "--log", "bisect.log", "--json"),
    ]
    assert main(arguments) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["culprit"] == commit(repository, 62)
    assert found["parents"] == [commit(repository, 61)]
    assert f"first bad commit: [{found['culprit']}]" in (tmp_path / "bisect.log").read_text()
    # Again: all is known, and nothing is built or booted.
    (tmp_path / "test_release.py").unlink()
    assert main(arguments) == 0
    assert json.loads(capfd.readouterr().out) == found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "b"], "say how a commit is built: --build CMD"),
        (["a", "b", "--kernels", "gone"], "gone: cannot be read"),
        (["a", "b", "--kernels", "."], "a is not among the kernels"),
        (["a", "b", "--kernels", ".", "--build", "make"], "the kernels are built already"),
        (["a", "b", "--build", "make", "--test", "t", "--run", "x"], "exclude each other"),
        (["a", "b", "--build", "make"], "not a git repository"),
    ],
)
def test_what_cannot_be_searched_is_named(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bisect", *arguments]) == 2
    assert words in capsys.readouterr().err
