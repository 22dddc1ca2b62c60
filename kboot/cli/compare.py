"""``kboot compare``: what is worse in the second of two runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kboot.cli.options import json_option
from kboot.cli.output import print_json, print_table
from kboot.errors import ConfigError

if TYPE_CHECKING:
    from kboot.evidence import Run
    from kboot.results.compare import CaseChange, Comparison, PhaseChange

#: Rows of each table.
_ROWS = 50


@click.command(
    epilog="""\
\b
Examples:
  kboot compare yesterday today
  kboot compare evidence --kernels 6.12.1 6.12.2
  kboot compare main branch --slower 2 --json

Exit codes: 0 nothing is worse, 1 something is, 2 bad input, 3 nothing is worse as far as is
known, but the host failed tests that had a result before.
""",
)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path), required=False)
@click.option(
    "--kernels",
    nargs=2,
    metavar="OLD NEW",
    help="Their releases, or how their sha256 begins; else those of a run with two.",
)
@click.option(
    "--slower",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="By how much a phase's median must have grown.",
)
@json_option
@click.pass_context
def compare(
    context: click.Context,
    /,
    *,
    before: Path,
    after: Path | None,
    kernels: tuple[str, str] | None,
    slower: float,
    as_json: bool,
) -> None:
    """Compare the run AFTER with BEFORE, or two kernels in one run.

    Each is a directory of --evidence: what is in it counts together. Told are tests that fail now
    and did not, new titles of crashes, and phases of the boot that became slower: the difference of
    their medians, with the interval that holds the true one (95 % for all phases together).
    """
    # --help does not need it.
    from kboot.results.compare import compare as compare_runs  # noqa: PLC0415

    (old, new), names = _sides(before, after, kernels)
    found = compare_runs(old, new, names=names, slower=slower / 100)
    if as_json:
        print_json({"version": 1, "worse": found.worse, **dataclasses.asdict(found)})
    else:
        _show(found)
    context.exit(1 if found.worse else 3 if found.unknown else 0)


def _sides(
    before: Path, after: Path | None, kernels: tuple[str, str] | None
) -> tuple[tuple[Run, Run], tuple[str, str]]:
    from kboot.evidence import read_run  # noqa: PLC0415
    from kboot.results.compare import kernels_of, with_kernel  # noqa: PLC0415

    old = read_run(before)
    new = old if after is None else read_run(after)
    if kernels is not None:
        return (with_kernel(old, kernels[0]), with_kernel(new, kernels[1])), kernels
    if after is not None:
        return (old, new), (str(before), str(after))
    known = kernels_of(old)
    if len(known) != 2:
        listed = ", ".join(f"{name} ({sha256[:12]})" for sha256, name in known.items())
        raise ConfigError(
            f"{before} has {len(known)} kernels, and not two: {listed or 'none'}; "
            "choose with --kernels OLD NEW, or name another run"
        )
    first, second = known
    return (with_kernel(old, first), with_kernel(old, second)), (known[first], known[second])


def _show(found: Comparison) -> None:
    click.echo(f"{found.before} -> {found.after}")
    _show_cases("new failures", found.new_failures)
    _show_titles("new crashes", found.new_crashes)
    _show_cases("without a result now", found.unknown)
    _show_cases("fixed", found.fixed)
    _show_titles("crashes that are gone", found.gone_crashes)
    from kboot.results.compare import FEWEST_BOOTS  # noqa: PLC0415  --help does not need it

    compared = [each for each in found.phases if each.change is not None]
    if compared:
        click.echo("")
        rows = [
            ["MACHINE", "PHASE", "BEFORE", "BOOTS", "AFTER", "BOOTS", "DIFFERENCE", "INTERVAL", ""]
        ]
        print_table([*rows, *map(_row, compared)])
    few = {each.way: each for each in found.phases if each.change is None}
    for way, each in few.items():
        click.echo(
            f"\ntoo few boots to compare ({way}): {each.before_count} and {each.after_count}, and "
            f"{FEWEST_BOOTS} are needed"
        )
    click.echo("")
    colour = "red" if found.worse else "green"
    click.secho("worse" if found.worse else "not worse", fg=colour, bold=True)


def _show_cases(title: str, changes: tuple[CaseChange, ...]) -> None:
    if changes:
        click.echo(f"\n{title}: {len(changes)}")
        rows = [["TEST", "BEFORE", "AFTER", "WHY"]]
        rows += [
            [each.id, each.before or "-", each.after or "-", each.message[:100]]
            for each in changes[:_ROWS]
        ]
        print_table(rows)
    if len(changes) > _ROWS:
        click.echo(f"and {len(changes) - _ROWS} more; --json has them all")


def _show_titles(title: str, titles: tuple[str, ...]) -> None:
    if titles:
        click.echo(f"\n{title}: {len(titles)}")
        click.echo("\n".join(f"  {each}" for each in titles))


def _row(each: PhaseChange) -> list[str]:
    change = each.change
    if change is None:
        raise TypeError(f"{each.phase}: nothing was compared")
    share = f" ({100 * change.difference_s / change.before_s:+.0f} %)" if change.before_s else ""
    return [
        each.way,
        each.phase,
        f"{change.before_s:.2f} s",
        str(each.before_count),
        f"{change.after_s:.2f} s",
        str(each.after_count),
        f"{change.difference_s:+.2f} s{share}",
        f"{change.low_s:+.2f} to {change.high_s:+.2f} s",
        "" if each.verdict == "same" else each.verdict,
    ]
