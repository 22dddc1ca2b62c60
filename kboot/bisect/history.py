"""What is searched: the commits of a git repository, or kernels in a directory, in their order."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from kboot import process
from kboot.errors import ConfigError, InfraError, ProcessError

Verdict = Literal["good", "bad", "skip"]
#: What was found of some revisions, in the order in which it was.
Marks = Sequence[tuple[str, Verdict]]

_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a search is."""

    #: The revision to test next; None if there is none left.
    next: str | None
    #: The first bad one, if it is known.
    culprit: str | None
    #: What the culprit is among, if only skipped ones are left.
    candidates: tuple[str, ...] = ()
    #: How many have to be tested still, about.
    steps: int = 0


class History(Protocol):
    """Revisions between one that is good and one that is bad."""

    good: str
    bad: str

    def position(self, marks: Marks) -> Position:
        """What to do after these verdicts."""

    def parents(self, revision: str) -> Sequence[str]:
        """Those before a revision that are not known to be good because `good` came from them."""

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether `newer` came from `older`."""

    def describe(self, revision: str) -> str:
        """One line for people."""

    def log(self, marks: Marks, culprit: str | None) -> str:
        """The verdicts, as ``git bisect log`` writes them."""


# ----------------------------------------------------------------------------------- a directory


class OrderedHistory:
    """Revisions one after the other."""

    def __init__(self, names: Sequence[str], good: str, bad: str) -> None:
        """`ConfigError` if they are not there, or not in this order."""
        for name in (good, bad):
            if name not in names:
                raise ConfigError(f"{name} is not among the kernels: {', '.join(names) or 'none'}")
        self._names = list(names)
        self._places = {name: place for place, name in enumerate(names)}
        if self._places[good] >= self._places[bad]:
            raise ConfigError(f"{good} (good) does not come before {bad} (bad)")
        self.good = good
        self.bad = bad

    def position(self, marks: Marks) -> Position:
        """See `History`."""
        low, high = self._places[self.good], self._places[self.bad]
        skipped = {self._places[name] for name, verdict in marks if verdict == "skip"}
        for name, verdict in marks:
            if verdict == "good":
                low = max(low, self._places[name])
        for name, verdict in marks:
            if verdict == "bad":
                high = min(high, self._places[name])
        between = range(low + 1, high)
        open_ = [place for place in between if place not in skipped]
        if not between:
            return Position(next=None, culprit=self._names[high])
        if not open_:
            return Position(
                next=None, culprit=None, candidates=tuple(self._names[low + 1 : high + 1])
            )
        middle = (low + high) // 2
        chosen = min(open_, key=lambda place: (abs(place - middle), place))
        return Position(next=self._names[chosen], culprit=None, steps=len(between).bit_length())

    def parents(self, revision: str) -> Sequence[str]:
        """See `History`."""
        return [self._names[self._places[revision] - 1]]

    def is_ancestor(self, older: str, newer: str) -> bool:
        """See `History`."""
        return self._places[older] <= self._places[newer]

    def describe(self, revision: str) -> str:
        """See `History`."""
        return revision

    def log(self, marks: Marks, culprit: str | None) -> str:
        """See `History`; for people alone."""
        return _log(self, marks, culprit)


def kernels_in(directory: Path) -> dict[str, Path]:
    """The kernels in a directory, in the order of their versions: ``6.9`` before ``6.10``."""
    try:
        paths = [path for path in directory.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror}") from error
    return {path.name: path for path in sorted(paths, key=lambda path: _natural(path.name))}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which numbers in names are compared as numbers, and -rc1 comes before nothing."""
    words = re.findall(r"\d+|[^\d]+", re.sub(r"-rc", "~rc", name))
    return [
        (1, int(word), "") if word.isdecimal() else (0 if "~" in word else 2, 0, word)
        for word in words
    ]


# ----------------------------------------------------------------------------- a git repository


#: From 2.55 on, git puts the word in quotes.
_CULPRIT = re.compile(r"^(\w{40,64}) is the first '?bad'? commit$", re.MULTILINE)


class GitHistory:
    """Commits of a repository; made by `open_git`.

    git itself chooses the next one, in a worktree of ours: the user's is left as it is.
    """

    def __init__(self, worktree: Path, good: str, bad: str) -> None:
        self.worktree = worktree
        self.good = good
        self.bad = bad
        self._applied: list[tuple[str, Verdict]] = []
        self._said = self._bisect("start", "--no-checkout", bad, good)

    def position(self, marks: Marks) -> Position:
        """See `History`."""
        marks = list(marks)
        if marks[: len(self._applied)] != self._applied:
            self._bisect("reset")
            self._applied = []
            self._said = self._bisect("start", "--no-checkout", self.bad, self.good)
        for revision, verdict in marks[len(self._applied) :]:
            self._said = self._bisect(verdict, revision)
            self._applied.append((revision, verdict))
        if found := _CULPRIT.search(self._said):
            return Position(next=None, culprit=found[1])
        if "only 'skip'ped commits left" in self._said:
            listed = tuple(re.findall(r"^(\w{40,64})$", self._said, re.MULTILINE))
            return Position(next=None, culprit=None, candidates=listed)
        steps = re.search(r"\(roughly (\d+) steps?\)", self._said)
        following = self._git("rev-parse", "--verify", "BISECT_HEAD")
        if any(following == revision for revision, _ in marks):
            # Whatever it says, it is nothing that we know.
            raise InfraError(f"git bisect does not go on from {following}: {self._said.strip()}")
        return Position(
            next=following,
            culprit=None,
            steps=int(steps[1]) + 1 if steps else 1,
        )

    def parents(self, revision: str) -> Sequence[str]:
        """See `History`."""
        _, *parents = self._git("rev-list", "--parents", "-n", "1", revision).split()
        # What GOOD itself came from was not among the suspects.
        return [
            each for each in parents if each == self.good or not self.is_ancestor(each, self.good)
        ]

    def is_ancestor(self, older: str, newer: str) -> bool:
        """See `History`."""
        done = self._run("merge-base", "--is-ancestor", older, newer)
        return done.exit_status == 0

    def describe(self, revision: str) -> str:
        """See `History`."""
        return self._git("log", "-1", "--format=%h %s", revision)

    def log(self, marks: Marks, culprit: str | None) -> str:
        """See `History`; ``git bisect replay`` takes it."""
        return _log(self, marks, culprit)

    def check_out(self, revision: str) -> None:
        """Have the worktree be that of a commit; what a build has left there stays."""
        self._git("checkout", "--quiet", "--force", "--detach", revision)

    def _bisect(self, *arguments: str) -> str:
        done = self._run("bisect", *arguments)
        # 2: only skipped ones are left; 10 and 11 are of git itself, on the way.
        if done.exit_status not in {0, 2}:
            words = done.stderr.decode(errors="replace").strip()
            raise ConfigError(f"git bisect {' '.join(arguments)}: {words}")
        return done.stdout.decode(errors="replace")

    def _git(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.exit_status:
            words = done.stderr.decode(errors="replace").strip()
            raise ConfigError(f"git {' '.join(arguments)}: {words}")
        return done.stdout.decode(errors="replace").strip()

    def _run(self, *arguments: str) -> process.Completed:
        return _git(self.worktree, *arguments)


@contextlib.contextmanager
def open_git(repository: Path, worktree: Path, good: str, bad: str) -> Iterator[GitHistory]:
    """The commits between two, with a worktree for the length of the ``with``.

    `ConfigError` if it is no repository, or the commits are not there, or not in this order.
    """
    if not repository.is_dir() or _git(repository, "rev-parse", "--git-dir").exit_status:
        raise ConfigError(f"{repository}: not a git repository; name one with --repo")
    commits = []
    for name in (good, bad):
        done = _git(repository, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if done.exit_status:
            raise ConfigError(f"{repository}: there is no commit {name}")
        commits.append(done.stdout.decode().strip())
    if (
        commits[0] == commits[1]
        or _git(repository, "merge-base", "--is-ancestor", *commits).exit_status
    ):
        raise ConfigError(f"{good} (good) is not an ancestor of {bad} (bad)")
    _remove_worktree(repository, worktree)
    done = _git(repository, "worktree", "add", "--quiet", "--detach", str(worktree), commits[1])
    if done.exit_status:
        raise ConfigError(
            f"{worktree}: cannot be made a worktree: {done.stderr.decode(errors='replace').strip()}"
        )
    try:
        yield GitHistory(worktree, *commits)
    finally:
        _remove_worktree(repository, worktree)


def _remove_worktree(repository: Path, worktree: Path) -> None:
    """Also what a killed run has left."""
    if worktree.exists():
        _git(repository, "worktree", "remove", "--force", "--force", str(worktree))
    _git(repository, "worktree", "prune")


def _git(directory: Path, *arguments: str) -> process.Completed:
    try:
        return process.run(
            ["git", "-C", str(directory), *arguments],
            timeout_s=_TIMEOUT_S,
            # What a hook or a caller has set is about another repository.
            env={"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"},
            check=False,
        )
    except ProcessError as error:
        raise ConfigError(f"git cannot be run: {error}") from error


def _log(history: History, marks: Marks, culprit: str | None) -> str:
    def about(verdict: str, revision: str) -> str:
        return f"# {verdict}: [{revision}] {history.describe(revision)}"

    lines = [
        about("bad", history.bad),
        about("good", history.good),
        f"git bisect start '{history.bad}' '{history.good}'",
    ]
    for revision, verdict in marks:
        lines += [about(verdict, revision), f"git bisect {verdict} {revision}"]
    if culprit:
        lines.append(about("first bad commit", culprit))
    return "\n".join(lines) + "\n"
