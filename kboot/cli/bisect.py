"""``kboot bisect``: find the commit or the kernel that brought a failure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kboot.cli.options import config_options, json_option, load_config
from kboot.cli.output import print_json
from kboot.config import OF_TEST_RUNS, SETTINGS, working_directory
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.bisect.history import GitHistory, History
    from kboot.bisect.search import Found, Progress

#: The kernels are what is searched; the others are about tests that share machines.
_OTHERS = {"kernel", "isolation", "snapshot_cache", "evidence", "firmware_start"} | OF_TEST_RUNS
_NAMES = tuple(setting.name for setting in SETTINGS if setting.name not in _OTHERS)
#: Where compilers' names lead to ccache.
_CCACHE = (Path("/usr/lib/ccache"), Path("/usr/lib64/ccache"))


@click.command(
    epilog="""\
\b
Examples:
  kboot bisect v6.11 v6.12 --build 'make -j8 bzImage' --image arch/x86/boot/bzImage
  kboot bisect v6.11 HEAD --build ./build.sh --title 'KASAN: use-after-free in foo' \\
      --run 'modprobe foo'
  kboot bisect 6.11.deb 6.12.deb --kernels mainline --test tests/test_net.py::test_link

A search that was interrupted or killed goes on when it is started again.
Exit codes: 0 found, 1 only commits that cannot be tested are left, 2 bad input, 3 the host failed.
""",
)
@click.argument("good")
@click.argument("bad")
@click.option(
    "--repo",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The git repository.  [default: here]",
)
@click.option("--build", metavar="CMD", help="Builds a commit, in a worktree of it.")
@click.option(
    "--image",
    metavar="PATH",
    default=".",
    help="The kernel in the worktree, after that.  [default: as in a build tree]",
)
@click.option(
    "--kernels",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Search the kernels in a directory instead, in the order of their versions.",
)
@click.option("--title", default="", help="The title of the crash, or a part; no other counts.")
@click.option("--test", default="", metavar="NODE", help="The test of pytest that fails.")
@click.option("--run", "command", default="", metavar="CMD", help="Run this in the guest.")
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a crash after that.",
)
@click.option(
    "--error",
    type=click.FloatRange(min=0.0001, max=20),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="How likely the result may be wrong.",
)
@click.option(
    "--max-boots",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="N",
    help="Boots of one kernel.",
)
@click.option(
    "--log",
    "log_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the log, for git bisect replay.",
)
@click.option("--anew", is_flag=True, help="Forget what an earlier search has seen.")
@config_options(*_NAMES, short=False)
@json_option
@click.pass_context
def bisect(
    context: click.Context,
    /,
    *,
    good: str,
    bad: str,
    repo: Path,
    build: str | None,
    image: str,
    kernels: Path | None,
    title: str,
    test: str,
    command: str,
    settle: float,
    error: float,
    max_boots: int,
    log_file: Path | None,
    anew: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the first bad one of the commits from GOOD to BAD, or of the kernels in a directory.

    Bad is a kernel that does not come up or crashes; with --title, one with that crash; with
    --test, one with which the test fails; with --run, one in whose guest the command fails.

    The failure need not show each time: each kernel is booted until it is decided. The culprit has
    to show the failure again, and its parents are booted until the error is below --error. What the
    host failed does not count.
    """
    from kboot.bisect.record import open_record  # noqa: PLC0415  --help does not need them
    from kboot.bisect.search import Search, Trial  # noqa: PLC0415
    from kboot.bisect.trials import Boots, Failure  # noqa: PLC0415

    if test and command:
        raise ConfigError("--test and --run exclude each other: what runs is the test")
    if kernels is not None and build:
        raise ConfigError("--kernels and --build exclude each other: the kernels are built already")
    if kernels is None and not build:
        raise ConfigError("say how a commit is built: --build CMD; or give --kernels DIR")
    failure = Failure(title=title, test=test, command=command, settle_s=settle)
    # Firmware and DHCP are not what is searched.
    config = load_config({**options, "firmware_start": "saved"})
    about = {
        "good": good,
        "bad": bad,
        "place": str((kernels or repo).absolute()),
        "build": build,
        "image": image,
        "failure": [title, test, command],
        "options": {name: str(value) for name, value in options.items() if value},
    }
    with open_record(about, anew=anew) as record:
        if record.count and not as_json:
            click.echo(f"going on after {record.count} boots; see {record.directory}", err=True)
        with (
            _subject(kernels, repo, build, image, good, bad, record.directory) as subject,
            Boots(
                config,
                failure,
                evidence=record.directory / "evidence",
                pytest_options=_pytest_options(options),
            ) as boots,
        ):

            def trial(revision: str) -> Trial:
                kernel = subject.kernel(revision)
                return Trial.NO_KERNEL if kernel is None else boots.boot(revision, kernel)

            found = Search(
                subject.history,
                record.recorded(trial),
                error=error / 100,
                most_boots=max_boots,
                on_progress=(lambda _: None) if as_json else _Screen(subject.history).see,
            ).run()
            described = {
                name: subject.history.describe(name)
                for name in (found.culprit, *found.parents, *found.candidates)
                if name
            }
        log = log_file or record.directory / "bisect.log"
        _write(log, found.log)
    if as_json:
        print_json(_as_dict(found))
    else:
        _show(found, described, log)
    context.exit(0 if found.culprit else 1)


@dataclass(frozen=True)
class _Subject:
    """What is searched, and how to come to a kernel of it: None if there is none."""

    history: History
    kernel: Callable[[str], Path | None]


@contextlib.contextmanager
def _subject(
    kernels: Path | None,
    repo: Path,
    build: str | None,
    image: str,
    good: str,
    bad: str,
    directory: Path,
) -> Iterator[_Subject]:
    from kboot.bisect.history import OrderedHistory, kernels_in, open_git  # noqa: PLC0415

    if kernels is not None:
        paths = kernels_in(kernels)
        yield _Subject(OrderedHistory(list(paths), good, bad), lambda name: paths[name].absolute())
        return
    with open_git(repo, directory / "worktree", good, bad) as history:
        yield _Subject(history, _Builder(history, build or "", image, directory).kernel)


class _Builder:
    """Builds commits, each when it is to be booted."""

    def __init__(self, history: GitHistory, command: str, image: str, directory: Path) -> None:
        self._history = history
        self._command = command
        self._image = image
        self._directory = directory
        self._built: tuple[str, Path | None] = ("", None)

    def kernel(self, revision: str) -> Path | None:
        """The kernel of a commit; None if it cannot be built."""
        if self._built[0] != revision:
            self._built = (revision, self._build(revision))
        return self._built[1]

    def _build(self, revision: str) -> Path | None:
        from kboot.process import spawn  # noqa: PLC0415

        self._history.check_out(revision)
        log = self._directory / "build.log"
        log.unlink(missing_ok=True)
        found = [str(place) for place in _CCACHE if place.is_dir()]
        path = os.pathsep.join([*found, os.environ.get("PATH", "")])
        # In the worktree, whatever the command is.
        argv = [
            "sh",
            "-c",
            f'cd "$1" && {{ {self._command}\n}}',
            "build",
            str(self._history.worktree),
        ]
        with spawn(argv, log=log, env={"PATH": path, "BISECT_COMMIT": revision}) as process:
            while (status := process.wait(3600.0)) is None:
                pass
        kernel = self._history.worktree / self._image
        if status == 0 and kernel.exists():
            return kernel
        why = f"exit status {status}" if status else f"no {self._image}"
        click.echo(f"{revision[:12]} cannot be built ({why}); see {log}", err=True)
        return None


class _Screen:
    """A line for each boot, and for each decision."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._names: dict[str, str] = {}

    def see(self, progress: Progress) -> None:
        """Print it."""
        revision, tally = progress.revision, progress.tally
        name = self._names.setdefault(revision, self._history.describe(revision))
        if progress.verdict:
            colour = {"good": "green", "bad": "red"}.get(progress.verdict, "yellow")
            boots = f"{tally.hits} of {tally.hits + tally.passes} boots showed it"
            left = f"; about {progress.steps} steps left" if progress.steps else ""
            verdict = click.style(progress.verdict, fg=colour, bold=True)
            click.echo(f"{verdict}: {name}: {boots}{left}")
            return
        more = "" if tally.hits else f", {progress.needed} without it make it good"
        click.echo(f"  {name}: boot {tally.boots}: {progress.trial}{more}")


def _show(found: Found, described: dict[str, str], log: Path) -> None:
    if found.culprit is None:
        click.echo("only commits that cannot be tested are left; the first bad one is among")
        click.echo("\n".join(f"  {described[name]}" for name in found.candidates))
    else:
        tally = found.tallies[found.culprit]
        click.echo(f"\nfirst bad: {found.culprit}")
        click.echo(f"  {described[found.culprit]}")
        click.echo(f"  showed the failure in {tally.hits} of {tally.hits + tally.passes} boots")
        for parent in found.parents:
            passes = found.tallies[parent].passes
            click.echo(f"parent, good: {described[parent]}: {passes} boots without it")
        click.echo(f"confidence {100 * found.confidence:.2f} %")
    click.echo(
        f"{found.boots} boots; a bad one shows the failure in {100 * found.rate:.0f} % of them"
    )
    click.echo(f"log: {log}")


def _as_dict(found: Found) -> dict[str, Any]:
    return {
        "version": 1,
        "culprit": found.culprit,
        "parents": list(found.parents),
        "candidates": list(found.candidates),
        "confidence": found.confidence,
        "boots": found.boots,
        "rate": found.rate,
        "revisions": {
            name: {
                "hits": tally.hits,
                "passes": tally.passes,
                "others": tally.others,
                "infra": tally.infra,
            }
            for name, tally in found.tallies.items()
        },
        "log": found.log,
    }


def _pytest_options(options: dict[str, Any]) -> list[str]:
    words = ["--kboot-firmware-start=saved"]
    for setting in SETTINGS:
        given = options.get(setting.name)
        values = given if isinstance(given, tuple) else (given,)
        words += [f"{setting.pytest_option}={value}" for value in values if value is not None]
    return words


def _write(path: Path, text: str) -> None:
    try:
        (working_directory() / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
