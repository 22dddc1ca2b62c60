"""The search for the first bad revision, with trials that may say nothing, or the wrong thing.

A revision is bad when one of its boots has shown the failure, and good after as many boots without
it as a bad one would hardly take. Few are enough for that, as the end is made sure: the culprit has
to show the failure again, and its parents are booted until they are good with all the confidence
that was asked for. A parent that shows the failure sends the search back, and a culprit that does
not show it again sends it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from kboot.bisect.decision import Rate, Tally
from kboot.bisect.history import History, Verdict
from kboot.errors import ConfigError, InfraError

#: The error of a step. What it sends wrong is found out at the end.
_STEP_ERROR = 0.05
#: Boots of BAD that show the failure, from which its rate is learnt; fewer if all do.
_HITS = 5
_HITS_IF_ALL = 3
#: Each step may bring a bad revision to where the culprit's parent is looked for, and the rate that
#: is learnt from a few hits may be too high: the parent's share of the error is so much smaller.
_MARGIN = 20
#: Boots of the culprit that show it.
_CULPRIT_HITS = 2
#: Boots that went wrong in other ways, with none that told anything, before a revision is skipped.
_OTHERS = 5
#: Boots in a row that the host failed.
_INFRA = 10


class Trial(StrEnum):
    """How a boot went."""

    #: It showed the failure.
    HIT = "hit"
    PASS = "pass"  # noqa: S105  not a password
    #: It went wrong in another way.
    OTHER = "other"
    #: The host failed.
    INFRA = "infra"
    #: There is no kernel to boot.
    NO_KERNEL = "no kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search has come to."""

    #: None if only skipped ones are left.
    culprit: str | None
    #: That were verified to be good.
    parents: tuple[str, ...]
    candidates: tuple[str, ...]
    #: That the parents are good.
    confidence: float
    boots: int
    #: How often a bad one shows the failure.
    rate: float
    tallies: dict[str, Tally]
    #: As ``git bisect log``.
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A trial has ended, or a revision was decided."""

    revision: str
    #: Why it is tested: ``bad``, ``good``, ``step``, ``parent``, ``culprit``.
    purpose: str
    tally: Tally
    #: Boots without the failure after which it is good.
    needed: int
    trial: Trial | None = None
    verdict: Verdict | None = None
    steps: int = 0


@dataclass(slots=True)
class Search:
    """One search. `trial` boots a revision once."""

    history: History
    trial: Callable[[str], Trial]
    error: float = 0.01
    #: Of one revision.
    most_boots: int = 500
    on_progress: Callable[[Progress], None] = lambda _progress: None
    tallies: dict[str, Tally] = field(default_factory=dict)
    _marks: list[tuple[str, Verdict]] = field(default_factory=list)
    _steps: int = 0
    _most_steps: int = 0

    def run(self) -> Found:
        """Search. `ConfigError` if GOOD or BAD is not what it is called; `InfraError`."""
        self._check_ends()
        while True:
            position = self.history.position(self._marks)
            self._steps = position.steps
            self._most_steps = max(self._most_steps, position.steps)
            if position.culprit and self._is_sure(position.culprit):
                return self._found(position.culprit, ())
            if not position.culprit:
                if position.next is None:
                    return self._found(None, position.candidates)
                self._marks.append((position.next, self._decide(position.next)))

    # ------------------------------------------------------------------------- the decisions

    def _check_ends(self) -> None:
        history = self.history
        bad = self._tally(history.bad)
        while bad.hits < (_HITS if bad.passes else _HITS_IF_ALL):
            enough = bad.boots - bad.infra >= self.most_boots
            if enough and bad.hits:
                break
            if enough:
                raise ConfigError(
                    f"{history.describe(history.bad)} is called bad, and the failure was seen in "
                    f"{bad.hits} of {bad.boots - bad.infra} boots"
                )
            if not self._boot(history.bad, "bad"):
                raise self._untestable(history.bad, "bad")
        match self._decide(history.good, purpose="good"):
            case "bad":
                raise ConfigError(f"{history.describe(history.good)} is called good, and is not")
            case "skip":
                raise self._untestable(history.good, "good")

    def _untestable(self, revision: str, called: str) -> ConfigError:
        others = self._tally(revision).others
        why = f"{others} boots went wrong in other ways" if others else "there is no kernel of it"
        return ConfigError(
            f"{self.history.describe(revision)} is called {called}, and cannot be tested: {why}; "
            "once that is mended, give --anew"
        )

    def _decide(self, revision: str, purpose: str = "step", error: float = _STEP_ERROR) -> Verdict:
        """Boot a revision until it is decided."""
        tally = self._tally(revision)
        while True:
            if tally.hits:
                verdict: Verdict = "bad"
            elif tally.passes >= self._rate.passes_needed(error):
                verdict = "good"
            elif tally.boots - tally.infra >= self.most_boots:
                verdict = "skip"
            elif self._boot(revision, purpose, error):
                continue
            else:
                verdict = "skip"
            self._tell(revision, purpose, error, verdict=verdict)
            return verdict

    def _is_sure(self, culprit: str) -> bool:
        """Verify the culprit and its parents; False if the search has to go back."""
        for parent in self.history.parents(culprit):
            verdict = self._decide(parent, "parent", self._last_error)
            if verdict == "bad":
                if parent == self.history.good:
                    raise ConfigError(
                        f"{self.history.describe(parent)} is called good, and shows the failure in "
                        f"{self._tally(parent).hits} of {self._tally(parent).boots} boots"
                    )
                self._go_back(parent)
                return False
        return self._shows_it_again(culprit)

    def _shows_it_again(self, culprit: str) -> bool:
        """One boot may have failed for a reason of its own, such as a host that was too slow."""
        tally = self._tally(culprit)
        while tally.hits < _CULPRIT_HITS and tally.boots - tally.infra < self.most_boots:
            if tally.passes >= self._rate_without(culprit).passes_needed(self._last_error):
                tally.hits = 0
                tally.others += 1
                self._go_on(culprit)
                return False
            if not self._boot(culprit, "culprit", self._last_error):
                break
        return True

    def _go_on(self, good: str) -> None:
        """A revision was called bad by one boot, and is good: what came after it is searched."""
        kept = [(revision, verdict) for revision, verdict in self._marks if revision != good]
        kept.sort(key=lambda mark: mark[1] == "bad")
        self._marks = [(good, "good"), *kept]

    def _go_back(self, bad: str) -> None:
        """A revision was called good, and is bad: what came before it is searched."""
        before = [
            (revision, verdict)
            for revision, verdict in self._marks
            if verdict != "bad"
            and revision != bad
            and (verdict == "skip" or self.history.is_ancestor(revision, bad))
        ]
        self._marks = [*before, (bad, "bad")]

    # ---------------------------------------------------------------------------- the boots

    def _boot(self, revision: str, purpose: str, error: float = _STEP_ERROR) -> bool:
        """Boot it until that tells something or goes wrong; False if it cannot be tested."""
        tally = self._tally(revision)
        failed = 0
        while True:
            trial = self.trial(revision)
            match trial:
                case Trial.HIT:
                    tally.hits += 1
                case Trial.PASS:
                    tally.passes += 1
                case Trial.OTHER:
                    tally.others += 1
                case Trial.NO_KERNEL:
                    return False
                case Trial.INFRA:
                    tally.infra += 1
                    failed += 1
            self._tell(revision, purpose, error, trial=trial)
            if trial is not Trial.INFRA:
                return bool(tally.hits or tally.passes or tally.others < _OTHERS)
            if failed >= _INFRA:
                raise InfraError(f"the host has failed {failed} boots in a row")

    @property
    def _last_error(self) -> float:
        """The error that the verdict about a parent may have."""
        return self.error / (_MARGIN * max(1, self._most_steps))

    @property
    def _rate(self) -> Rate:
        return Rate.of(self.tallies.values())

    def _rate_without(self, revision: str) -> Rate:
        """As far as the others tell: its own passes would make the failure a rare one."""
        return Rate.of(tally for name, tally in self.tallies.items() if name != revision)

    def _tally(self, revision: str) -> Tally:
        return self.tallies.setdefault(revision, Tally())

    def _tell(
        self,
        revision: str,
        purpose: str,
        error: float,
        *,
        trial: Trial | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        self.on_progress(
            Progress(
                revision=revision,
                purpose=purpose,
                tally=self._tally(revision),
                needed=self._rate.passes_needed(error),
                trial=trial,
                verdict=verdict,
                steps=self._steps,
            )
        )

    def _found(self, culprit: str | None, candidates: tuple[str, ...]) -> Found:
        parents = tuple(self.history.parents(culprit)) if culprit else ()
        rate = self._rate
        doubts = [
            min(1.0, self._most_steps * rate.chance_of_passes(self._tally(parent).passes))
            for parent in parents
        ]
        return Found(
            culprit=culprit,
            parents=parents,
            candidates=candidates,
            confidence=1 - max(doubts, default=0.0),
            boots=sum(tally.boots for tally in self.tallies.values()),
            rate=rate.middle,
            tallies=self.tallies,
            log=self.history.log(self._marks, culprit),
        )
