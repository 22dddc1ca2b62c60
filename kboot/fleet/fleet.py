"""A fleet that is up: its machines by name and by role, and what may happen to their network."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, overload

from kboot.backend import VirtualMachine
from kboot.config.parse import near
from kboot.deadline import Deadline
from kboot.errors import ConfigError, GuestTimeout, InfraError, KbootError, KernelCrash
from kboot.fleet.layout import Role, select
from kboot.guest import CommandResult
from kboot.log import logger
from kboot.machine import Machine
from kboot.machine_network import MachineNetwork, PathCondition, naming, together
from kboot.statistics import Median, median

_T = TypeVar("_T")

#: Between two looks of `Fleet.wait_until`.
_POLL_S = 0.05
#: Frames that are late lie in the switch's memory until then.
_LONGEST_DELAY_S = 600.0

#: Names of roles or machines, or one of them.
Names = str | Collection[str]


class Group:
    """Some machines of a fleet; what one can do, they do at the same time."""

    def __init__(self, machines: Mapping[str, Machine]) -> None:
        self._machines = dict(machines)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its machines."""
        return tuple(self._machines)

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Its machines."""
        return tuple(self._machines.values())

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines)

    def __len__(self) -> int:
        return len(self._machines)

    def each(self, function: Callable[[Machine], _T]) -> dict[str, _T]:
        """Call `function` with each machine, all at the same time; what it returned, by name.

        If it raises, the first error is raised when all are done, with its machine's name.
        """
        return together(self.names, lambda name: function(self._machines[name]))

    def run(
        self, command: str, *, timeout: float | None = None, check: bool = False
    ) -> dict[str, CommandResult]:
        """Run a command in each guest, see `Guest.run`; the results by name."""
        return self.each(lambda machine: machine.guest.run(command, timeout=timeout, check=check))

    def succeed(self, command: str, *, timeout: float | None = None) -> dict[str, str]:
        """Run a command that has to exit with 0; what it printed, by name."""
        return self.each(lambda machine: machine.guest.succeed(command, timeout=timeout))

    def panic(self) -> None:
        """Have their kernels panic, which is expected of them; then `wait_for_reboot`."""
        self.each(_panic)

    def wait_for_reboot(self, timeout: float | None = None) -> None:
        """Wait until all are back, see `Machine.wait_for_reboot`."""
        self.each(lambda machine: machine.wait_for_reboot(timeout))

    def reboot(self, timeout: float | None = None) -> None:
        """Have the guests reboot themselves, and wait until all are back."""
        self.each(lambda machine: machine.reboot(timeout))

    def reset(self, timeout: float | None = None) -> None:
        """Push their reset buttons, and wait until all are back."""
        self.each(lambda machine: machine.reset(timeout))

    def restart(self, timeout: float | None = None) -> None:
        """Cut the power, power on again, and wait until all are back."""
        self.each(lambda machine: machine.restart(timeout))

    def check(self) -> None:
        """Return if all is well now; raise what is wrong, with the machine's name."""
        self.each(lambda machine: machine.check())


def _panic(machine: Machine) -> None:
    with machine.expect_crash("panic"):
        machine.panic()


@dataclass(slots=True)
class Cut:
    """Cables that were pulled at one instant."""

    machines: tuple[str, ...]
    #: When each was pulled, in monotonic seconds.
    pulled: Mapping[str, float]
    #: When each was plugged in again; empty until then.
    plugged: Mapping[str, float] = field(default_factory=dict)

    @property
    def skew_s(self) -> float:
        """Seconds between the first and the last cable that was pulled."""
        return max(self.pulled.values()) - min(self.pulled.values())

    @property
    def healing_skew_s(self) -> float:
        """The same for plugging them in; 0 until then."""
        times = self.plugged.values()
        return max(times) - min(times) if times else 0.0


class Fleet:
    """Machines on one network. Made by `open_fleet`, and by the fixture ``fleet``."""

    def __init__(
        self, roles: tuple[Role, ...], machines: Mapping[str, Machine], network: MachineNetwork
    ) -> None:
        self._roles = roles
        self._machines = dict(machines)
        self._network = network
        self._conditions: dict[int, Mapping[tuple[str, str], PathCondition]] = {}
        self._numbers = itertools.count()
        #: How often each cable is pulled at the moment.
        self._pulled: dict[str, int] = dict.fromkeys(machines, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all machines, role by role."""
        return tuple(self._machines)

    @property
    def roles(self) -> Mapping[str, tuple[str, ...]]:
        """The names of each role's machines."""
        return {role.name: role.members for role in self._roles}

    @property
    def addresses(self) -> Mapping[str, str]:
        """Each machine's address on their network, which the guests know by its name."""
        return self._network.addresses()

    def __getitem__(self, name: str) -> Machine:
        if name not in self._machines:
            role = f"; {name} is a role: fleet.role({name!r})" if name in self.roles else ""
            raise ConfigError(
                f"no machine {name} in this fleet{role}{near(name, self.names)}; "
                f"it has: {', '.join(self.names)}"
            )
        return self._machines[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self._machines.values())

    def __len__(self) -> int:
        return len(self._machines)

    def role(self, *names: str) -> Group:
        """The machines of these roles, or of these names. `ConfigError` for an unknown one."""
        chosen = select(self._roles, names)
        return Group({name: self._machines[name] for name in chosen})

    @property
    def all(self) -> Group:
        """All of them."""
        return Group(self._machines)

    # ------------------------------------------------------------------------------- their network

    @contextlib.contextmanager
    def cut(self, *names: str) -> Iterator[Cut]:
        """Within the ``with``, these machines' cables are pulled: all of them at one instant.

        `names` are of roles or machines. However the block ends, they are plugged in then. Who is
        off has no network anyway, and stays cut off when it is powered on meanwhile, unless it
        boots by that network.
        """
        chosen = self._chosen(names)
        machines = {name: self._machines[name].vm for name in chosen}
        cut = Cut(machines=chosen, pulled={})
        for name in chosen:
            self._pulled[name] += 1
        try:
            cut.pulled = self._network.set_links(machines, up=False)
            logger.info("cut %s, %.1f ms apart", ", ".join(chosen), 1000 * cut.skew_s)
            yield cut
        except BaseException as error:
            # What has ended the block says more than a machine that cannot be plugged in.
            try:
                self._plug_in(cut, machines)
            except KbootError as also:
                error.add_note(f"and {also}")
            raise
        else:
            self._plug_in(cut, machines)

    def _plug_in(self, cut: Cut, machines: Mapping[str, VirtualMachine]) -> None:
        for name in machines:
            self._pulled[name] -= 1
        free = {name: vm for name, vm in machines.items() if not self._pulled[name]}
        cut.plugged = self._network.set_links(free, up=True)

    @contextlib.contextmanager
    def partition(self, *groups: Names) -> Iterator[float]:
        """Within the ``with``, machines that have no group in common do not reach each other.

        Groups are names of roles or machines. Who is in several is the bridge between them, and who
        is in none reaches all. All paths are cut at the moment that is given, in monotonic seconds.
        `ConfigError` where the backend cannot do it, or if all machines reach each other.
        """
        sides = [self._chosen(_as_tuple(group)) for group in groups]
        joined = {pair for side in sides for pair in itertools.permutations(side, 2)}
        placed = dict.fromkeys(itertools.chain(*sides))
        lost = PathCondition(loss=1.0)
        paths = {pair: lost for pair in itertools.permutations(placed, 2) if pair not in joined}
        if not paths:
            raise ConfigError(
                "these groups part no machines: name two or more, as partition({'a-1'}, {'b'}); "
                "to part some from all others: impair('a-1', loss=1)"
            )
        with self._under(paths) as at:
            yield at

    @contextlib.contextmanager
    def impair(
        self,
        *names: str,
        toward: Names | None = None,
        loss: float = 0.0,
        delay: float = 0.0,
    ) -> Iterator[float]:
        """Within the ``with``, frames between these machines and the others are lost or late.

        `loss` is the share that is lost, 1 for all; `delay` is in seconds. With `toward`, it is
        only what these machines send to those, and not what comes back. `ConfigError` where the
        backend cannot do it.
        """
        if not 0 <= loss <= 1 or not 0 <= delay <= _LONGEST_DELAY_S:
            raise ConfigError(
                f"loss={loss:g}, delay={delay:g}: a share of 0 to 1, and seconds, "
                f"{_LONGEST_DELAY_S:g} at most"
            )
        chosen = self._chosen(names)
        others = self.names if toward is None else self._chosen(_as_tuple(toward))
        condition = PathCondition(loss=loss, delay_s=delay)
        paths = {(a, b): condition for a in chosen for b in others if a != b}
        if toward is None:
            paths |= {(b, a): condition for a, b in paths}
        with self._under(paths) as at:
            yield at

    def reachable(self, *, timeout: float = 2.0) -> set[tuple[str, str]]:
        """The pairs of machines of which the first one's ping reaches the second one by name.

        Each has `timeout` seconds, in whole ones.
        """
        limit = max(1, round(timeout))

        def asked(machine: Machine, name: str) -> set[tuple[str, str]]:
            others = " ".join(other for other in self.names if other != name)
            answer = machine.guest.succeed(
                f"for each in {others}; do "
                # With busybox's, -W is for the last answer, 10 s unless given.
                f"{{ ping -c 1 -w {limit} -W {limit} $each >/dev/null 2>&1 && echo $each; }} & "
                "done; wait",
                timeout=limit + 60,
            )
            return {(name, other) for other in answer.split()}

        found = together(self.names, lambda name: asked(self[name], name))
        return set().union(*found.values())

    # ------------------------------------------------------------------------------------ recovery

    def wait_until(self, predicate: Callable[[], object], *, timeout: float) -> float:
        """Wait until `predicate` returns something true; the seconds that took.

        An error of a guest in it and a failed assertion count as "not yet". `GuestTimeout` after
        `timeout` seconds, with what that was; it is called at least once, and none of its calls is
        cut short. `KernelCrash` as soon as a kernel has crashed that nobody expected to.
        """
        start, last, deadline = time.monotonic(), "", Deadline(timeout)
        while True:
            try:
                if predicate():
                    return time.monotonic() - start
                last = ""
            except (ConfigError, InfraError, KernelCrash):
                raise
            except (KbootError, AssertionError) as error:
                last = f"; the last time: {error}"
            self._raise_crash()
            if deadline.expired:
                break
            time.sleep(min(_POLL_S, deadline.remaining))
        raise GuestTimeout(f"{_described(predicate)} did not hold within {timeout:g} s{last}")

    def _raise_crash(self) -> None:
        for name, machine in self._machines.items():
            if machine.console.fatal:
                with naming(name):
                    machine.check()

    @overload
    def measure(self, round_: Callable[[], float], *, rounds: int) -> Median: ...

    @overload
    def measure(
        self, round_: Callable[[], Mapping[str, float]], *, rounds: int
    ) -> Mapping[str, Median]: ...

    def measure(
        self, round_: Callable[[], float | Mapping[str, float]], *, rounds: int
    ) -> Median | Mapping[str, Median]:
        """Call `round_`, which returns seconds, so many times: their median and its interval.

        Or several seconds by name, and then it is these by name.
        """
        if rounds < 1:
            raise ConfigError(f"rounds={rounds}: it has to be 1 or more")
        found = [round_() for _ in range(rounds)]
        for each in found:
            if not isinstance(each, int | float | Mapping):
                raise ConfigError(
                    f"{_described(round_)} returned {each!r}: it has to return seconds, or "
                    "several by name"
                )
        several = [each for each in found if isinstance(each, Mapping)]
        if several:
            return {name: median([each[name] for each in several]) for name in several[0]}
        return median([each for each in found if not isinstance(each, Mapping)])

    def check_reports(self) -> None:
        """As `Machine.check_reports`, of all machines; an error has the machine's name."""
        self.all.each(lambda machine: machine.check_reports())

    def _chosen(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ConfigError("say whose network: names of roles or machines")
        return select(self._roles, names)

    @contextlib.contextmanager
    def _under(self, paths: Mapping[tuple[str, str], PathCondition]) -> Iterator[float]:
        """Under these conditions, and those that hold already."""
        if fault := self._network.path_fault():
            raise ConfigError(fault)
        key = next(self._numbers)
        self._conditions[key] = paths
        try:
            yield self._network.set_paths(combined(self._conditions.values()))
        finally:
            del self._conditions[key]
            self._network.set_paths(combined(self._conditions.values()))


def combined(
    conditions: Iterable[Mapping[tuple[str, str], PathCondition]],
) -> dict[tuple[str, str], PathCondition]:
    """What becomes of a frame under several conditions at once."""
    found: dict[tuple[str, str], PathCondition] = {}
    for paths in conditions:
        for path, each in paths.items():
            before = found.get(path, PathCondition())
            found[path] = PathCondition(
                loss=1 - (1 - before.loss) * (1 - each.loss),
                delay_s=before.delay_s + each.delay_s,
            )
    return found


def _as_tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _described(function: Callable[[], object]) -> str:
    """What a function is called in messages; a lambda has no name."""
    code = getattr(function, "__code__", None)
    if code and code.co_name == "<lambda>":
        return f"the lambda in {Path(code.co_filename).name}:{code.co_firstlineno}"
    return str(getattr(function, "__name__", function))
