"""The command kboot: help that teaches, one line for each error, exit codes that mean things."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from kboot import __version__
from kboot.cli import LazyGroup, cli, main
from kboot.cli.output import say_phase
from kboot.errors import ConfigError, GuestTimeout, InfraError
from kboot.process import find_program

# The command line with one more command, which is where each test wants it.
PROGRAM = """
import contextlib, os, signal, sys, time
import click
import kboot.cli
from kboot.errors import ConfigError

@click.command()
def extra():
    {body}

module = type(sys)("extra")
module.extra = extra
sys.modules["extra"] = module
kboot.cli.LazyGroup.commands_by_name["extra"] = ("extra:extra", "")
sys.exit(kboot.cli.main(["extra", *sys.argv[1:]]))
"""

UNWINDING = """
    @contextlib.contextmanager
    def machine():
        try:
            print("on", flush=True)
            yield
        finally:
            print("off", flush=True)
    with machine():
        time.sleep(60)
"""


def start(body: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    # A shell starts what it puts in the background with Ctrl-C ignored, and so do its descendants.
    hears_signals = ("env", "--default-signal=INT,TERM,HUP")
    return subprocess.Popen(
        [*hears_signals, sys.executable, "-c", PROGRAM.format(body=body.strip()), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[str, str, int]:
    out, err = process.communicate(timeout=30)
    return out, err, process.returncode


@pytest.mark.parametrize(
    ("error", "code"),
    [("InfraError('nginx stopped')", 3), ("ConfigError('no such file')", 2)],
)
def test_an_error_is_one_line_and_an_exit_code(error: str, code: int) -> None:
    body = f"from kboot import errors; raise errors.{error}"
    out, err, status = outcome(start(body))
    assert (out, status) == ("", code)
    assert err == f"kboot: error: {error.split(chr(39))[1]}\n"


def test_exit_codes_name_who_has_to_act() -> None:
    codes = [kind.exit_code for kind in (GuestTimeout, ConfigError, InfraError)]
    assert codes == [1, 2, 3]


def test_a_bug_is_no_fault_of_the_kernel_and_shows_no_traceback() -> None:
    _, err, status = outcome(start("{}['x']"))
    assert status == 3
    assert err.count("\n") == 1
    assert "a bug in kboot: KeyError: 'x'" in err
    assert "KBOOT_DEBUG=1" in err


def test_debugging_shows_where_an_error_comes_from() -> None:
    _, err, status = outcome(start("raise ConfigError('wrong')", KBOOT_DEBUG="1"))
    assert status == 2
    assert "Traceback" in err
    assert err.endswith("kboot: error: wrong\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_unwinds_what_was_switched_on(number: signal.Signals, code: int) -> None:
    process = start(UNWINDING)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    out, err, status = outcome(process)
    assert (out, status) == ("off\n", code)
    assert "Traceback" not in err


def test_an_ignored_hangup_stays_ignored() -> None:
    body = "os.kill(os.getpid(), signal.SIGHUP); print('went on')"
    argv = ["nohup", sys.executable, "-c", PROGRAM.format(body=body)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "went on\n"


def test_signals_are_as_before_when_the_command_has_ended() -> None:
    before = signal.getsignal(signal.SIGTERM)
    main(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("body", ["print('x' * 10**6)", "print('x')"])
def test_output_that_nobody_reads_ends_quietly(body: str) -> None:
    process = start(f"time.sleep(0.2); {body}")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(30) == 141


def test_steps_are_shown_when_asked_for_before_or_after_the_command() -> None:
    body = "from kboot.log import step\n    with step('boot m0'): pass"
    _, quiet, _ = outcome(start(body))
    _, loud, _ = outcome(start(body, "-v"))
    assert quiet == ""
    assert " ms  boot m0\n" in loud
    assert re.search(r" ms  boot m0: done in \d\.\d\d s\n", loud)


def test_help_shows_every_command_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in LazyGroup.commands_by_name:
        assert f"\n  {name} " in out
    assert "pytest --kernel=vmlinuz" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", LazyGroup.commands_by_name)
def test_every_command_is_there_and_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: kboot {name} ")
    assert "--verbose" in out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kboot {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["bot"], "No such command"), (["gc", "--yess"], "--yes"), (["completion", "tcsh"], "tcsh")],
)
def test_a_mistake_on_the_command_line_exits_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_bad_setting_exits_with_2_and_names_its_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--memory", "lots"]) == 2
    assert capsys.readouterr().err.startswith("kboot: error: --memory: 'lots' is not a size")


def test_a_kernel_that_is_named_in_the_other_way_is_told_how(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["boot", "--kernel", "vmlinuz"]) == 2
    assert capsys.readouterr().err.endswith("'--kernel'; the kernel is an argument here\n")
    assert main(["boot"]) == 2
    assert "say which: kboot boot FILE," in capsys.readouterr().err
    assert main(["up", "m1", "vmlinuz"]) == 2
    assert capsys.readouterr().err.endswith("; a kernel is named by --kernel FILE here\n")


def test_pytests_spelling_of_an_option_is_understood_and_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--kboot-memory", "lots"]) == 2
    assert capsys.readouterr().err.startswith("kboot: error: --memory: 'lots' is not a size")
    assert main(["doctor", "--kboot-firmware=bois"]) == 2
    assert "did you mean bios?" in capsys.readouterr().err
    assert main(["doctor", "--kboot-memroy=1G"]) == 2
    assert "'--kboot-memory'" in capsys.readouterr().err
    assert main(["up", "--help"]) == 0
    assert "--kboot-" not in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_for_the_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    assert f"_KBOOT_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_the_shell_is_given_commands_and_options() -> None:
    def complete(words: str) -> list[str]:
        env = {"_KBOOT_COMPLETE": "bash_complete", "COMP_WORDS": words}
        env["COMP_CWORD"] = str(words.count(" "))
        argv = [sys.executable, "-c", "import sys, kboot.cli; sys.exit(kboot.cli.main())"]
        done = subprocess.run(
            argv, env={**os.environ, **env}, capture_output=True, text=True, check=True
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("kboot doc") == ["doctor"]
    assert "--memory" in complete("kboot doctor --mem")
    assert complete("kboot doctor --firmware u") == ["uefi"]


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Examples:" in capsys.readouterr().err


@pytest.fixture
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    runtime = tmp_path / "runtime"
    (runtime / "kboot").mkdir(mode=0o711, parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    runtime.chmod(0o711)
    return runtime / "kboot"


def test_garbage_is_shown_first_and_removed_when_told_to(
    own_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    litter = own_place / "run-killed"
    litter.mkdir()
    assert main(["gc"]) == 0
    assert re.search(rf"^would remove {litter}, \d+ s old$", capsys.readouterr().out, re.MULTILINE)
    assert litter.exists()
    assert main(["gc", "--yes"]) == 0
    assert re.search(rf"^removed {litter}, \d+ s old$", capsys.readouterr().out, re.MULTILINE)
    assert not litter.exists()
    assert main(["gc", "--yes"]) == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_a_boot_that_never_began_leaves_no_evidence(
    own_place: Path,
    debian_kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(own_place / "state"))
    monkeypatch.setenv("KUBECONFIG", str(own_place / "none"))
    assert main(["boot", str(debian_kernel), "--backend", "kubevirt"]) == 2
    output = capsys.readouterr()
    assert "no cluster" in output.err
    assert "evidence" not in output.out
    assert list((own_place / "state/kboot/boots").iterdir()) == []


@pytest.mark.parametrize(
    ("option", "words"),
    [("--disk", "not a disk image"), ("--ipxe", "is no iPXE")],
)
def test_a_machine_that_cannot_be_leaves_no_evidence(
    option: str,
    words: str,
    tmp_path: Path,
    debian_kernel: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "text").write_text("no image\n")
    given = [option, str(tmp_path / "text")]
    assert main(["boot", str(debian_kernel), "--accel", "tcg", *given]) == 2
    output = capsys.readouterr()
    assert words in output.err
    assert "evidence" not in output.out
    assert list((tmp_path / "state/kboot/boots").iterdir()) == []


def test_the_group_knows_no_other_commands() -> None:
    group: Callable[..., object] = cli
    assert isinstance(group, LazyGroup)
    assert group.get_command(click.Context(group), "nothing") is None


def shell(line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a line."""
    command = f'kboot() {{ "{sys.executable}" -m kboot "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", command],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [("list", 0), ("runs", 0), ("console nobody", 2), ("boot /nonexistent", 2), ("logs nobody", 2)],
)
def test_closed_standard_streams_change_no_outcome(
    command: str, status: int, closed: str, tmp_path: Path
) -> None:
    done = shell(f"kboot {command} {closed}", XDG_STATE_HOME=str(tmp_path))
    assert (done.returncode, "a bug" in done.stderr) == (status, False), done.stderr


def test_a_log_from_a_closed_standard_input_is_a_mistake_of_the_users() -> None:
    done = shell("kboot crash - <&-")
    assert done.returncode == 2
    assert re.fullmatch("kboot: error: standard input is closed; give a file, .*\n", done.stderr)


@pytest.mark.parametrize("command", ["--help", "list", "manifests"])
def test_output_on_a_full_disk_is_the_hosts_fault(command: str, tmp_path: Path) -> None:
    done = shell(f"kboot {command} >/dev/full", XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 3
    words = "the output cannot be written: No space left on device; make room there"
    assert done.stderr == f"kboot: error: {words}\n"


@pytest.mark.parametrize("command", ["boot /x", "list", "doctor", "up --kernel /x", "test /x"])
def test_a_working_directory_that_was_removed_is_told(command: str, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(
        f"cd {tmp_path}/gone; rmdir ../gone; kboot {command}", XDG_STATE_HOME=str(tmp_path)
    )
    assert done.returncode == 2
    words = "the working directory was removed; cd to another one"
    assert done.stderr == f"kboot: error: {words}\n"


def test_a_log_that_is_not_there_is_told_also_without_a_place_for_machines() -> None:
    done = shell("kboot crash /nonexistent/log", XDG_STATE_HOME="/dev/null")
    assert done.returncode == 2
    assert "/nonexistent/log: there is no such file" in done.stderr


def test_a_program_that_is_not_executable_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "addr2line").write_text("")
    with pytest.raises(InfraError, match="is not an executable file; chmod"):
        find_program(str(tmp_path / "addr2line"))


def test_push_takes_no_url() -> None:
    done = shell("kboot push https://host/vmlinuz")
    assert done.returncode == 2
    assert "kboot push takes files; download it, and push the file" in done.stderr


@pytest.mark.parametrize(
    "command", ["status", "console", "logs", "exec -- true", "down", "pushes", "push --cmdline x"]
)
def test_without_any_machine_that_is_what_is_told(command: str, tmp_path: Path) -> None:
    done = shell(f"kboot {command}", XDG_STATE_HOME=str(tmp_path), KUBECONFIG="/nonexistent")
    words = "there is no machine; start one: kboot up --kernel FILE"
    assert (done.returncode, done.stderr) == (2, f"kboot: error: {words}\n")


def test_a_word_to_push_is_a_machine_or_a_file(tmp_path: Path) -> None:
    def push(words: str) -> str:
        return shell(f"cd {tmp_path}; kboot push {words}", XDG_STATE_HOME=str(tmp_path)).stderr

    (tmp_path / "vmlinuz").touch()
    assert "there is no machine; start one" in push("vmlinuz --cmdline debug")
    assert "there is no machine called lab" in push("lab vmlinuz")
    assert "there is no machine called lab" in push("lab --cmdline debug")
    assert "nothing to push" in push("")


def test_the_namespace_has_kubectls_letter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manifests", "-n", "mine"]) == 0
    assert "namespace: mine" in capsys.readouterr().out
    # pytest-xdist has another use for it.
    assert main(["test", "--help"]) == 0
    assert " -n," not in capsys.readouterr().out


def test_no_phase_is_shown_at_a_negative_time() -> None:
    assert say_phase("dhcp", -0.04, "console") == "  dhcp          0.0 s   seen by the console"
