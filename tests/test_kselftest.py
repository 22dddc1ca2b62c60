"""An installed kselftest tree as tests of pytest; the runner here is ours, and prints the same."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest

from kboot.errors import ConfigError
from kboot.kselftest import read_patterns, read_tree
from kboot.testing import write_kernel

#: Prints what kselftest's runner prints for `-t COLLECTION:PROGRAM`, with what the program prints.
RUNNER = """\
#!/bin/sh
cd "$(dirname "$0")" || exit 1
collection=${2%:*} program=${2#*:}
echo TAP version 13
echo 1..1
echo "# selftests: $collection: $program"
cd "$collection" || exit 1
if /usr/bin/timeout --foreground 100 /usr/bin/timeout 100 ./"$program" >>/dev/stdout; then
    echo "ok 1 selftests: $collection: $program"
else
    echo "not ok 1 selftests: $collection: $program # exit=1"
fi
"""
GOOD = "#!/bin/sh\necho '# TAP version 13'; echo '# 1..2'; echo '# ok 1 a'; echo '# ok 2 b'\n"
BAD = GOOD.replace("ok 2 b", "not ok 2 b") + "exit 1\n"
DIES = "#!/bin/sh\necho c >/proc/sysrq-trigger; sleep 60\n"


def write_tree(directory: Path) -> Path:
    tree = directory / "kselftest"
    for name, text in {
        "run_kselftest.sh": RUNNER,
        "kselftest-list.txt": "alpha:good\nalpha:bad\nbeta:dies\nbeta:slow\nbeta:last\n",
        "alpha/good": GOOD,
        "alpha/bad": BAD,
        "beta/dies": DIES,
        "beta/slow": "#!/bin/sh\nsleep 600\n",
        "beta/last": GOOD,
        "beta/settings": "# long ones\ntimeout=120\n",
    }.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if text.startswith("#!") else 0o644)
    return tree


def test_the_programs_of_a_tree_have_names_and_time_limits(tmp_path: Path) -> None:
    tree = read_tree(write_tree(tmp_path))
    assert [(program.id, program.timeout_s) for program in tree.programs] == [
        ("alpha:good", 45.0),
        ("alpha:bad", 45.0),
        ("beta:dies", 120.0),
        ("beta:slow", 120.0),
        ("beta:last", 120.0),
    ]


def test_an_archive_is_the_same_as_its_directory(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as archive:
        archive.add(tree, arcname="kselftest-packages/kselftest")
    unpacked, packed = read_tree(tree), read_tree(tmp_path / "tree.tar.gz")
    assert packed.programs == unpacked.programs
    assert packed.initramfs.read_bytes() == unpacked.initramfs.read_bytes()


def test_lists_say_what_is_not_run_and_what_is_known_to_fail(tmp_path: Path) -> None:
    skip, expected = tmp_path / "skip", tmp_path / "expected"
    skip.write_text("# too slow under emulation\n\nbeta:s*  # takes ten minutes\n")
    expected.write_text("alpha:bad/b # bug 17\nbeta:* # all of it\n")
    tree = read_tree(write_tree(tmp_path), skip=skip, expected_failures=expected)
    by_id = {program.id: program for program in tree.programs}
    assert by_id["beta:slow"].skip_reason == "takes ten minutes"
    assert by_id["beta:last"].skip_reason == ""
    assert by_id["alpha:bad"].expected_failures == {"selftests: alpha: bad/b": "bug 17"}
    assert by_id["beta:dies"].expected_failures == {
        "selftests: beta: dies": "all of it",
        "selftests: beta: dies/*": "all of it",
    }


def test_a_listed_pattern_without_a_reason_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("a:b # why\na:c\n")
    with pytest.raises(ConfigError, match=r"list:2: 'a:c' has no reason"):
        read_patterns(tmp_path / "list")


def test_what_is_no_tree_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    with pytest.raises(ConfigError, match="neither a directory nor a tar archive") as raised:
        read_tree(tmp_path / "file")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"gone cannot be read: No such file or directory$"):
        read_tree(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"no installed kselftest.*make -C"):
        read_tree(tmp_path)


#: Has all machines replayed, and answers for kselftest's programs.
PLUGIN = """
import kboot.session
from kboot.testing import FakeBackend, GuestAction
from tests.test_kselftest import BAD_OUTPUT, GOOD_OUTPUT


def guest(command):
    if "kboot-run beta:dies" in command:
        return GuestAction.PANIC
    if "kboot-run" in command:
        return (0, BAD_OUTPUT if "alpha:bad" in command else GOOD_OUTPUT)
    return None


def replayed(config, **arguments):
    ours = {"backend": FakeBackend(commands=guest), "shared_server": None}
    return real(config, **{**arguments, **ours})


real, kboot.session.open_session = kboot.session.open_session, replayed
"""
GOOD_OUTPUT = """\
TAP version 13
1..1
# selftests: alpha: good
# TAP version 13
# 1..2
# ok 1 a
# ok 2 b
ok 1 selftests: alpha: good
"""
BAD_OUTPUT = GOOD_OUTPUT.replace("ok 2 b\nok", "not ok 2 b\nnot ok").replace("good", "bad")


def run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> pytest.RunResult:
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(kselftest_plugin=PLUGIN)
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}:{Path(__file__).parent.parent}")
    write_kernel(pytester.path / "vmlinuz", "6.99.1-mine")
    pytester.path.joinpath("empty").mkdir()
    return pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "-p", "kselftest_plugin", "--kernel=vmlinuz"),
        *(*arguments, "empty"),
    )


def test_a_wrong_tree_ends_the_run_at_once(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(pytester, monkeypatch, "--kboot-kselftest=.")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: kboot: *no installed kselftest*"])


def test_workers_share_the_programs_and_a_crash_does_not_end_the_suite(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.path.joinpath("skip").write_text("beta:slow # takes ten minutes\n")
    write_tree(pytester.path)
    result = run(
        pytester,
        monkeypatch,
        *("--kboot-kselftest=kselftest", "--kboot-kselftest-skip=skip", "-n2", "-v", "-rs"),
    )
    output = result.stdout.str()
    told = re.findall(r"\[(gw\d)\] \[ *\d+%\] (\w+) \S+test_kselftest\[(\S+)\]", output)
    assert sorted((name, outcome) for _, outcome, name in told) == [
        ("alpha:bad", "FAILED"),
        ("alpha:good", "PASSED"),
        ("beta:dies", "FAILED"),
        ("beta:last", "PASSED"),
        ("beta:slow", "SKIPPED"),
    ]
    assert {worker for worker, _, _ in told} == {"gw0", "gw1"}
    assert "SUBFAILED[selftests: alpha: bad/b]" in output
    assert "takes ten minutes" in output


def test_failures_that_are_known_are_expected(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.path.joinpath("known").write_text("alpha:bad # bug 17\n")
    write_tree(pytester.path)
    result = run(
        pytester,
        monkeypatch,
        *("--kboot-kselftest=kselftest", "--kboot-kselftest-expected=known", "-k", "bad"),
    )
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*alpha:bad: 1 passed, 1 expected failure"])
