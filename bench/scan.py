"""How fast the crash engine reads, and in how much memory: ``python -m bench.scan``."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figure import Figure
from kboot import process
from kboot.crash import Scanner

LOGS = Path(__file__).resolve().parent.parent / "tests" / "data" / "crash"
REAL_LOGS = LOGS.parent / "zoo"
BOOT_LOG = LOGS / "clean" / "debian-6.1-boot.log"
_QUIET_SIZE = 200_000_000
_DENSE_SIZE = 20_000_000
_MEBI = 1 << 20


def quiet_block() -> bytes:
    """About 1 MiB of a real boot's kernel lines, without its first line, which begins a boot."""
    lines = BOOT_LOG.read_bytes().splitlines(keepends=True)
    block = b"".join(x for x in lines if x.startswith(b"[") and b"Linux version" not in x)
    return block * max(1, _MEBI // len(block))


def dense_block() -> bytes:
    """All the crash logs there are, back to back.

    Those of real crashes as they came, and the short composed ones each by its own task, as a
    kernel with caller fields prints.
    """
    out = [path.read_bytes() for path in sorted(REAL_LOGS.glob("*.log"))]
    for number, path in enumerate(sorted(LOGS.glob("*.log"))):
        for at, line in enumerate(path.read_bytes().splitlines()):
            out.append(b"[%5d.%06d][ T%d] %s\r\n" % (9 + number, at, 400 + number, line))
    return b"".join(out)


def pieces(block: bytes, size: int, total: int) -> Iterator[bytes]:
    """`total` bytes: the block over and over, in pieces of `size` bytes."""
    cut = [block[at : at + size] for at in range(0, len(block), size)]
    return itertools.islice(itertools.cycle(cut), total * len(cut) // len(block))


def megabytes_per_second(block: bytes, *, piece: int, total: int) -> float:
    """How fast one core reads `total` bytes fed in pieces."""
    scanner = Scanner()
    fed = 0
    start = time.process_time()
    for data in pieces(block, piece, total):
        fed += len(data)
        scanner.feed(data)
    scanner.close()
    return fed / 1e6 / (time.process_time() - start)


def _peak_mib() -> float:
    """Peak resident memory of a fresh process that streams the dense log."""
    argv = [sys.executable, "-m", "bench.scan", "--memory"]
    done = process.run(argv, timeout_s=300, cwd=Path(__file__).resolve().parent.parent)
    return float(done.stdout)


def run(*, quick: bool) -> dict[str, Figure]:
    """``scan_quiet_4k_mb_s``, ``scan_quiet_64k_mb_s``, ``scan_dense_mb_s``, ``scan_rss_mib``."""
    quiet, dense = quiet_block(), dense_block()
    share = 10 if quick else 1
    plan = {
        "scan_quiet_4k_mb_s": (quiet, 4096, _QUIET_SIZE // share),
        "scan_quiet_64k_mb_s": (quiet, 65536, _QUIET_SIZE // share),
        "scan_dense_mb_s": (dense, 65536, _DENSE_SIZE // share),
    }
    figures = {}
    for name, (block, piece, total) in plan.items():
        runs = [megabytes_per_second(block, piece=piece, total=total) for _ in range(3)]
        figures[name] = Figure(value=statistics.median(runs), unit="MB/s", runs=tuple(runs))
    peaks = [_peak_mib() for _ in range(3)]
    figures["scan_rss_mib"] = Figure(value=max(peaks), unit="MiB", runs=tuple(peaks))
    return figures


def main() -> None:
    """Print the figures, one on a line."""
    if "--memory" in sys.argv:
        megabytes_per_second(dense_block(), piece=65536, total=_DENSE_SIZE)
        # Not ru_maxrss: a program inherits that from the one that has started it (getrusage(2)).
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak_kib = int(status.partition("VmHWM:")[2].split()[0])
        sys.stdout.write(f"{peak_kib / 1024}\n")
        return
    for name, figure in run(quick="--quick" in sys.argv).items():
        runs = " ".join(f"{value:.1f}" for value in figure.runs)
        sys.stdout.write(f"{name} {figure.value:.1f} {figure.unit} ({runs})\n")


if __name__ == "__main__":
    main()
