"""kboot.state: run directories come and go, and killed runs are swept."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot import state
from kboot.deadline import Deadline
from kboot.errors import InfraError

# A run that starts a process of its own, tells where it lives, and waits to be killed.
RUN = """
import subprocess, sys, time
from kboot import state
with state.run_directory() as directory:
    subprocess.Popen(
        ["sleep", "600"], env={"PATH": "/bin:/usr/bin", **state.environment(directory)}
    )
    print(directory, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of this test are not seen by, and do not see, those of anybody else."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o711)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    return runtime


@pytest.fixture
def killed_run() -> Iterator[tuple[Path, int]]:
    """The directory of a run that was killed, and the process id of the orphan it left."""
    process = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    directory = Path(process.stdout.readline().decode().strip())
    (orphan,) = children_of(process.pid)
    # Popen returns before the kernel has given the new program its environment.
    for _ in Deadline(20).poll(0.01):
        if Path(f"/proc/{orphan}/environ").read_bytes():
            break
    process.kill()
    process.wait()
    process.stdout.close()
    yield directory, orphan
    if alive(orphan):
        os.kill(orphan, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        # The state follows the name, which is in parentheses: proc(5).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_directory_is_gone_after_its_run(own_place: Path) -> None:
    with state.run_directory() as directory:
        (directory / "deep").mkdir()
        (directory / "deep" / "file").write_text("x")
        assert directory.is_relative_to(own_place)
    assert not directory.exists()


def test_a_run_directory_is_gone_after_an_error() -> None:
    with pytest.raises(RuntimeError), state.run_directory() as directory:
        raise RuntimeError
    assert not directory.exists()


def test_others_may_pass_through_a_run_directory_but_not_list_it() -> None:
    old = os.umask(0o077)
    try:
        with state.run_directory() as directory:
            assert directory.stat().st_mode & 0o777 == 0o711
            assert directory.parent.stat().st_mode & 0o777 == 0o711
    finally:
        os.umask(old)


def test_a_live_run_is_never_swept() -> None:
    with state.run_directory() as first, state.run_directory() as second:
        assert state.sweep() == []
        assert first.exists()
        assert second.exists()


def test_a_killed_run_is_seen_with_its_orphans(killed_run: tuple[Path, int]) -> None:
    directory, orphan = killed_run
    (stale,) = state.stale_runs()
    assert stale.directory == directory
    assert stale.pids == (orphan,)
    assert 0 <= stale.age_s < 60
    assert directory.exists()
    assert alive(orphan)


def test_the_next_run_sweeps_a_killed_one(killed_run: tuple[Path, int]) -> None:
    directory, orphan = killed_run
    with state.run_directory():
        assert not directory.exists()
        assert not alive(orphan)


def test_sweeping_says_what_has_gone(killed_run: tuple[Path, int]) -> None:
    directory, orphan = killed_run
    (swept,) = state.sweep()
    assert (swept.directory, swept.pids) == (directory, (orphan,))
    assert state.sweep() == []


def test_sweeping_spares_processes_that_do_not_name_the_run(
    killed_run: tuple[Path, int],
) -> None:
    directory, _ = killed_run
    # The name of the directory and more is the name of another one.
    env = {"PATH": os.environ["PATH"], state.RUN_VARIABLE: f"{directory}2"}
    with subprocess.Popen(["sleep", "600"], env=env) as bystander:
        state.sweep()
        assert bystander.poll() is None
        bystander.kill()


def test_an_empty_directory_of_a_run_killed_at_birth_is_swept(own_place: Path) -> None:
    with state.run_directory():
        pass
    litter = own_place / "kboot" / "run-abc"
    litter.mkdir()
    (swept,) = state.sweep()
    assert swept.directory == litter
    assert not litter.exists()


def test_files_that_are_not_runs_are_left_alone(own_place: Path) -> None:
    with state.run_directory():
        foreign = own_place / "kboot" / "notes"
        foreign.mkdir()
        link = own_place / "kboot" / "run-link"
        link.symlink_to(foreign)
    state.sweep()
    assert foreign.exists()
    assert link.is_symlink()


def _come_and_go(rounds: int) -> None:
    for _ in range(rounds):
        with state.run_directory() as directory:
            marker = directory / "marker"
            marker.write_text("mine")
            time.sleep(0.001)
            assert marker.read_text() == "mine"


def test_runs_that_start_at_once_do_not_sweep_each_other() -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_come_and_go, args=(100,)) for _ in range(4)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0, 0]
    assert state.sweep() == []


def test_sweeping_is_cheap_when_there_is_nothing_to_sweep() -> None:
    deadline = Deadline(1.0)
    for _ in range(100):
        state.sweep()
    assert not deadline.expired


def test_without_a_runtime_directory_runs_live_among_the_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nothing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert state.runs_directory() == tmp_path / f"kboot-{os.geteuid()}"


@pytest.mark.parametrize("trap", ["file", "link"])
def test_a_place_that_somebody_else_prepared_is_refused(own_place: Path, trap: str) -> None:
    if trap == "file":
        (own_place / "kboot").write_text("")
    else:
        (own_place / "kboot").symlink_to(own_place)
    with pytest.raises(InfraError, match=r"kboot.*TMPDIR"), state.run_directory():
        pass


def test_cache_and_state_follow_the_xdg_directories(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    assert state.cache_directory("kvm") == tmp_path / "c" / "kboot" / "kvm"
    assert state.state_directory() == tmp_path / "s" / "kboot"
    assert state.state_directory().is_dir()


def test_a_relative_xdg_directory_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state.cache_directory("x") == tmp_path / ".cache" / "kboot" / "x"


def test_a_home_that_cannot_be_written_to_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InfraError, match="set XDG_CACHE_HOME"):
        state.cache_directory("x")


def test_a_full_disk_is_named_with_the_place_that_was_written_to(tmp_path: Path) -> None:
    with (
        pytest.raises(InfraError, match=f"^{tmp_path}: No space left on device; make room there$"),
        state.disk_faults_named(tmp_path),
    ):
        Path("/dev/full").write_text("x")


def test_other_errors_than_the_disks_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), state.disk_faults_named(tmp_path):
        (tmp_path / "missing").read_text()


def test_no_place_for_temporary_files_is_told_with_its_remedy(tmp_path: Path) -> None:
    program = (
        "import resource\n"
        "from kboot import state\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))\n"
        "try: state.runs_directory()\n"
        "except state.InfraError as error: print(error)\n"
    )
    environ = {key: value for key, value in os.environ.items() if key != "XDG_RUNTIME_DIR"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    assert "or set TMPDIR to another" in done.stdout


def test_a_running_process_keeps_its_evidence_however_many_boots_come_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    boots = tmp_path / "kboot" / "boots"
    ended = boots / "20200101-000000-ended"
    ended.mkdir(parents=True)
    keeper = (
        "import sys; from kboot.state import evidence_directory as e; print(e('m'), flush=True)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", f"{keeper}; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with running:
        assert running.stdout is not None
        theirs = Path(running.stdout.readline().strip())
        for number in range(60):
            (boots / f"99990101-{number:06}-later").mkdir()
        ours = state.evidence_directory("next")
        assert theirs.is_dir()
        assert not ended.exists()
        running.communicate("")
    state.evidence_directory("last")
    assert not theirs.exists()
    assert ours.is_dir()


# The same, with a directory that is not in the run's own.
OPEN = """
import time
from kboot import state
with state.run_directory() as directory, state.open_directory(directory) as folder:
    (folder / "made").mkdir()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_run_has_elsewhere_goes_with_it(tmp_path: Path) -> None:
    with state.run_directory() as run, state.open_directory(run) as folder:
        assert not folder.is_relative_to(run)
        assert folder.stat().st_mode & 0o7777 == 0o1777
        (folder / "file").write_text("x")
    assert not folder.exists()
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    argv = [sys.executable, "-c", OPEN]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environ) as killed:
        assert killed.stdout
        folder = Path(killed.stdout.readline().decode().strip())
        killed.kill()
    assert (folder / "made").is_dir()
    assert len(state.sweep()) == 1
    assert not folder.exists()
