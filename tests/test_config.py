"""kboot.config: four sources, one value, and errors that say where the mistake is."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kboot import config
from kboot.config import Config, load, parse
from kboot.errors import ConfigError


def test_with_no_source_the_defaults_hold(tmp_path: Path) -> None:
    assert load({}, {}, tmp_path) == Config()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().cpus = 2  # type: ignore[misc]


def test_a_file_beats_the_defaults_a_variable_the_file_and_an_option_the_variable(
    tmp_path: Path,
) -> None:
    (tmp_path / "kboot.toml").write_text('memory = "1G"\ncpus = 2\ntimeout = 60\n')
    environ = {"KBOOT_CPUS": "3", "KBOOT_TIMEOUT": "2m"}
    loaded = load({"timeout": "90s"}, environ, tmp_path)
    assert (loaded.memory_mib, loaded.cpus, loaded.timeout_s) == (1024, 3, 90.0)


@pytest.mark.parametrize("nothing", [None, (), []])
def test_an_option_that_was_not_given_decides_nothing(nothing: object, tmp_path: Path) -> None:
    assert load({"initrd": nothing}, {"KBOOT_INITRD": "/a /b"}, tmp_path).initrd == (
        Path("/a"),
        Path("/b"),
    )


def test_an_empty_variable_decides_nothing(tmp_path: Path) -> None:
    assert load({}, {"KBOOT_MEMORY": ""}, tmp_path) == Config()


def test_the_file_is_searched_for_upwards(tmp_path: Path) -> None:
    (tmp_path / "kboot.toml").write_text("cpus = 4\n")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert load({}, {}, deep).cpus == 4


def test_a_pyproject_without_kboot_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "kboot.toml").write_text("cpus = 4\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert load({}, {}, inner).cpus == 4


def test_a_pyproject_can_hold_the_settings(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.kboot]\nfirmware = 'uefi'\n")
    assert load({}, {}, tmp_path).firmware == "uefi"


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "kboot.toml").write_text("kernel = 'bzImage'\ninitrd = ['a b', '/c']\n")
    deep = tmp_path / "deep"
    deep.mkdir()
    loaded = load({}, {}, deep)
    assert loaded.kernel == str(tmp_path / "bzImage")
    assert loaded.initrd == (tmp_path / "a b", Path("/c"))


def test_paths_of_options_and_variables_are_relative_to_the_directory(tmp_path: Path) -> None:
    loaded = load({"kernel": "bzImage"}, {"KBOOT_EVIDENCE": "out"}, tmp_path)
    assert loaded.kernel == str(tmp_path / "bzImage")
    assert loaded.evidence == tmp_path / "out"


def test_a_url_is_a_kernel_and_stays_as_it_is(tmp_path: Path) -> None:
    url = "https://example.org/linux.deb"
    assert load({"kernel": url}, {}, tmp_path).kernel == url


def test_the_tiny_root_file_system_is_not_a_path(tmp_path: Path) -> None:
    assert load({"rootfs": "tiny"}, {}, tmp_path).rootfs == "tiny"
    assert load({"rootfs": "tiny.cpio"}, {}, tmp_path).rootfs == str(tmp_path / "tiny.cpio")


def test_arguments_for_qemu_are_split_as_a_shell_would(tmp_path: Path) -> None:
    text = "-device 'virtio rng' -s"
    expected = ("-device", "virtio rng", "-s")
    assert load({"qemu_arguments": text}, {}, tmp_path).qemu_arguments == expected
    (tmp_path / "kboot.toml").write_text("qemu_arguments = ['-device', 'virtio rng', '-s']\n")
    assert load({}, {}, tmp_path).qemu_arguments == expected


@pytest.mark.parametrize(
    ("said", "mib"),
    [("512", 512), (512, 512), ("512M", 512), ("2G", 2048), ("2 GiB", 2048), ("2gb", 2048)],
)
def test_memory_is_read_with_and_without_a_unit(said: object, mib: int, tmp_path: Path) -> None:
    assert load({"memory": said}, {}, tmp_path).memory_mib == mib


@pytest.mark.parametrize(
    ("said", "seconds"), [("90", 90), (90, 90), (1.5, 1.5), ("90s", 90), ("3m", 180), ("1h", 3600)]
)
def test_a_time_is_read_with_and_without_a_unit(
    said: object, seconds: float, tmp_path: Path
) -> None:
    assert load({"timeout": said}, {}, tmp_path).timeout_s == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory", "lots"),
        ("memory", "12"),
        ("memory", "999999999G"),
        ("memory", True),
        ("memory", -512),
        ("cpus", "0"),
        ("cpus", "two"),
        ("cpus", True),
        ("cpus", 1.5),
        ("cpus", "²"),
        ("timeout", "0"),
        ("timeout", "soon"),
        ("timeout", False),
        ("timeout", "inf"),
        ("firmware", "efi"),
        ("accel", 1),
        ("backend", "kvm"),
        ("kernel", ""),
        ("kernel", 6.1),
        ("cmdline", "a\nb"),
        ("initrd", 5),
        ("qemu_arguments", "'"),
        ("qemu_arguments", [1]),
        ("evidence", []),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_file(
    name: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "kboot.toml"
    file.write_text(f"{name} = {toml(value)}\n")
    with pytest.raises(ConfigError) as raised:
        load({}, {}, tmp_path)
    message = str(raised.value)
    assert message.startswith(f"{file}: {name}: {value!r} is not ")
    assert "\n" not in message


def toml(value: object) -> str:
    if isinstance(value, str):
        # Every quoted text here is the same in Python and TOML, but for the marks.
        return '"' + value.replace("\n", "\\n") + '"'
    return str(value).lower()


def test_a_bad_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^KBOOT_MEMORY: 'lots' is not a size; write 512"):
        load({}, {"KBOOT_MEMORY": "lots"}, tmp_path)


def test_a_bad_option_is_named_as_the_user_wrote_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--firmware: 'ufi' .* did you mean uefi\?"):
        load({"firmware": "ufi"}, {}, tmp_path)
    with pytest.raises(ConfigError, match=r"^--kboot-firmware: 'ufi'"):
        load({"firmware": "ufi"}, {}, tmp_path, spell=lambda setting: setting.pytest_option)


def test_an_unknown_key_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    file = tmp_path / "kboot.toml"
    file.write_text("memmory = 512\n")
    with pytest.raises(ConfigError, match=r"'memmory'; did you mean memory\?") as raised:
        load({}, {}, tmp_path)
    assert str(file) in str(raised.value)


def test_an_unknown_key_near_to_none_is_answered_with_them_all(tmp_path: Path) -> None:
    (tmp_path / "kboot.toml").write_text("xyzzy = 1\n")
    with pytest.raises(ConfigError, match=r"'xyzzy'; there are kernel, backend, .*, nginx"):
        load({}, {}, tmp_path)


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"KBOOT_KERNAL .*did you mean KBOOT_KERNEL\?"):
        load({}, {"KBOOT_KERNAL": "x"}, tmp_path)
    with pytest.raises(ConfigError, match=r"KBOOT_XYZZY .*unset it"):
        load({}, {"KBOOT_XYZZY": "x"}, tmp_path)


@pytest.mark.parametrize("variable", config.RESERVED_VARIABLES)
def test_variables_of_kboots_own_are_not_settings(variable: str, tmp_path: Path) -> None:
    assert load({}, {variable: "x"}, tmp_path) == Config()


@pytest.mark.parametrize("content", [b"cpus = = 2", b"\xff\xfe"])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kboot.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"kboot\.toml: cannot be read: "):
        load({}, {}, tmp_path)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone")])
def test_a_kboot_toml_that_is_no_file_is_not_passed_over(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "kboot.toml")
    with pytest.raises(ConfigError, match=r"kboot.toml: is no file; settings are read from it"):
        load({}, {}, tmp_path)


def test_every_field_is_a_setting_with_names_of_its_own() -> None:
    assert {setting.field for setting in config.SETTINGS} == {f.name for f in fields(Config)}
    for attribute in ("name", "option", "pytest_option", "variable"):
        names = [getattr(setting, attribute) for setting in config.SETTINGS]
        assert len(set(names)) == len(names)


def test_kernel_alone_has_a_short_pytest_option() -> None:
    short = [s.name for s in config.SETTINGS if not s.pytest_option.startswith("--kboot-")]
    assert short == ["kernel"]


@pytest.mark.parametrize("setting", config.SETTINGS, ids=lambda setting: setting.name)
def test_every_default_is_a_value_its_own_parser_accepts(
    setting: config.Setting, tmp_path: Path
) -> None:
    if setting.default not in {None, "", ()}:
        assert setting.parse(setting.default, tmp_path) == setting.default


@given(st.text(max_size=30) | st.integers() | st.floats() | st.booleans())
def test_parsers_return_a_value_or_say_in_one_line_what_it_is_not(value: object) -> None:
    for setting in config.SETTINGS:
        words = "fine"
        try:
            setting.parse(value, Path("/"))
        except ValueError as error:
            words = str(error)
        assert words
        assert "\n" not in words


@given(st.integers(min_value=64, max_value=16 * 1024 * 1024))
def test_any_sensible_size_is_read_back(mib: int) -> None:
    assert parse.memory_mib(f"{mib}M", Path("/")) == mib


def test_the_documentation_shows_the_settings_as_they_are() -> None:
    page = Path(__file__).parent.parent / "docs" / "configuration.md"
    assert config.markdown_table() in page.read_text(encoding="utf-8")


def test_importing_the_configuration_does_not_import_a_toml_parser() -> None:
    code = (
        "import sys; import kboot.config; from pathlib import Path;"
        "kboot.config.load({}, {}, Path('/nowhere'));"
        "assert not {'tomllib', 'difflib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["initrd", "evidence", "rootfs", "kernel"])
def test_a_program_may_give_paths_as_texts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("x.cpio",) if name == "initrd" else "x.cpio"
    wanted: object = tmp_path / "x.cpio"
    if name in {"rootfs", "kernel"}:
        wanted = str(wanted)
    config = Config(**{name: given})  # type: ignore[arg-type]
    assert getattr(config, name) == ((wanted,) if name == "initrd" else wanted)
    as_path = ((Path("x.cpio"),)) if name == "initrd" else Path("x.cpio")
    assert Config(**{name: as_path}) == config  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("initrd", (7,), "Config(initrd=...): (7,) is not one line of text"),
        ("cpus", 0, "Config(cpus=...): 0 is not a whole number from 1 to 255"),
        (
            "firmware",
            "uefy",
            "Config(firmware=...): 'uefy' is not one of auto, bios, uefi; did you mean",
        ),
        ("timeout_s", -1.0, "Config(timeout_s=...): -1.0 is not a time above 0"),
        ("kernel", "a\0b", "is not one line of text"),
    ],
)
def test_a_programs_mistake_is_named(field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**{field: value})  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_configuration_is_the_same_when_it_is_made_again() -> None:
    config = Config(
        timeout_s=1e-5, memory_mib=1024, module=("dummy",), cluster_pull_secrets=("a", "b c")
    )
    assert dataclasses.replace(config) == config


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("kboot.toml", "[kboot]\nmemory = 512\n", "'kboot'; settings stand in no table here"),
        ("pyproject.toml", "[tool]\nkboot = 3\n", "tool.kboot is no table; write [tool.kboot]"),
    ],
)
def test_settings_in_the_wrong_table_are_told_where_to_stand(
    file: str, text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, tmp_path)
    assert words in str(caught.value)


def test_modules_are_a_list_in_a_file_or_words_with_commas(tmp_path: Path) -> None:
    (tmp_path / "kboot.toml").write_text('modules = ["ext4", "xfs"]\n')
    assert load({}, {}, tmp_path).modules == "ext4,xfs"
    assert load({"modules": "ext4,loop"}, {}, tmp_path).modules == "ext4,loop"
    (tmp_path / "kboot.toml").write_text('modules = ["ext4", "x y"]\n')
    with pytest.raises(ConfigError, match=r"modules: \['ext4', 'x y'\] is not all, none, or names"):
        load({}, {}, tmp_path)
