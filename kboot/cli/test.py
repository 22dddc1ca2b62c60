"""``kboot test``: the acceptance suite on a kernel."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from kboot.cli.options import config_options, load_config
from kboot.config import SETTINGS
from kboot.errors import ConfigError, GuestError, InfraError


class _Verdict:
    """A pytest plugin that tells failures of the kernel, which pytest's exit code does not."""

    def __init__(self) -> None:
        self.failed = 0
        self._config: Any = None

    def pytest_configure(self, config: Any) -> None:
        """Keep the way to the other plugins."""
        self._config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count failures as the terminal does: kboot's plugin tells them from errors."""
        if report.failed:
            hook = self._config.hook.pytest_report_teststatus
            category, _, _ = hook(report=report, config=self._config)
            self.failed += category == "failed"


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\
\b
Examples:
  kboot test vmlinuz
  kboot test linux-image.deb --memory 2G --cpus 4
  kboot test vmlinuz -- -k panic -x --junitxml=result.xml
  git bisect run kboot test --git-bisect arch/x86/boot/bzImage

Exit codes: 0 all passed, 1 the kernel failed, 2 bad input, 3 the host failed.
""",
)
@click.argument("kernel", type=click.Path(path_type=str))
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
@config_options(  # pytest's own -n is the number of workers
    *(setting.name for setting in SETTINGS if setting.name not in {"kernel", "boot"}), short=False
)
@click.option("--git-bisect", is_flag=True, help="Exit with 125 (skip) where it would be 2 or 3.")
@click.pass_context
def test(
    context: click.Context,
    /,
    *,
    kernel: str,
    pytest_arguments: tuple[str, ...],
    git_bisect: bool,
    **options: Any,
) -> None:
    """Run the acceptance tests on KERNEL: an image, a .deb, or a build tree.

    Arguments after -- are passed to pytest.
    """
    code = _run({**options, "kernel": kernel}, pytest_arguments)
    context.exit(125 if git_bisect and code in {2, 3} else code)


def _run(options: dict[str, Any], pytest_arguments: tuple[str, ...]) -> int:
    import pytest  # noqa: PLC0415  it is slow to load, and --help does not need it

    load_config(options)  # its errors are clearer than pytest's
    suite = Path(__file__).parent.parent / "acceptance"
    verdict = _Verdict()
    arguments = [
        str(suite),
        # Not the caller's: the suite does not depend on the directory it is run from.
        f"--config-file={suite / 'pytest.ini'}",
        f"--rootdir={suite}",
        *("-p", "no:cacheprovider"),
        # kboot is loaded already: it is what runs.
        *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
        "-v",
        *_as_pytest_options(options),
        *pytest_arguments,
    ]
    with _signals_for_the_plugin():
        status = pytest.main(arguments, plugins=[verdict])
    match status:
        case pytest.ExitCode.OK:
            return 0
        case pytest.ExitCode.USAGE_ERROR:
            return ConfigError.exit_code
        case pytest.ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        case int() if status > 128:
            # A signal has ended it, and pytest has said so.
            return int(status)
        case pytest.ExitCode.TESTS_FAILED if verdict.failed:
            return GuestError.exit_code
    return InfraError.exit_code


@contextlib.contextmanager
def _signals_for_the_plugin() -> Iterator[None]:
    """What the command line raises for a signal, pytest would take for a test's failure."""
    ours = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in ours.items():
        if callable(handler):
            signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def _as_pytest_options(options: dict[str, Any]) -> list[str]:
    words = []
    for setting in SETTINGS:
        given = options.get(setting.name)
        values = given if isinstance(given, tuple) else (given,)
        words += [f"{setting.pytest_option}={value}" for value in values if value is not None]
    return words
