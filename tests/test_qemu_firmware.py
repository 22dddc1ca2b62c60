from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kboot.errors import InfraError
from kboot.qemu.firmware import find_uefi, parse_descriptor


def descriptor(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(folder / "CODE.fd"), "format": "raw"},
            "nvram-template": {"filename": str(folder / "VARS.fd"), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["acpi-s3"],
    } | changes


def install(folder: Path, name: str, content: dict[str, Any]) -> None:
    for file in ("CODE.fd", "VARS.fd"):
        (folder / file).write_bytes(b"\0")
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(autouse=True)
def no_firmware_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_the_first_that_fits_is_taken(tmp_path: Path) -> None:
    install(tmp_path, "40-secure.json", descriptor(tmp_path, features=["secure-boot"]))
    install(tmp_path, "60-plain.json", descriptor(tmp_path))
    found = find_uefi("x86_64", folders=(tmp_path,), root=tmp_path)
    assert (found.code, found.variables_template) == (tmp_path / "CODE.fd", tmp_path / "VARS.fd")


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ["requires-smm"]},
        {"features": ["enrolled-keys"]},
        {"interface-types": ["bios"]},
        {"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}]},
        {"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*"]}]},
        {"mapping": {"device": "memory", "filename": "/fw"}},
    ],
)
def test_what_does_not_fit_is_left_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    install(tmp_path, "60.json", descriptor(tmp_path, **changes))
    with pytest.raises(InfraError, match="apt-get install ovmf"):
        find_uefi("x86_64", folders=(tmp_path,), root=tmp_path)


def test_a_damaged_descriptor_does_not_hide_the_next(tmp_path: Path) -> None:
    install(tmp_path, "60-plain.json", descriptor(tmp_path))
    (tmp_path / "10-damaged.json").write_text("{", encoding="utf-8")
    (tmp_path / "20-odd.json").write_text("[]", encoding="utf-8")
    assert find_uefi("x86_64", folders=(tmp_path,), root=tmp_path).code == tmp_path / "CODE.fd"


def test_a_descriptor_of_firmware_that_is_not_there_is_left_alone(tmp_path: Path) -> None:
    install(tmp_path, "60.json", descriptor(tmp_path / "gone"))
    with pytest.raises(InfraError):
        find_uefi("x86_64", folders=(tmp_path,), root=tmp_path)


@pytest.mark.parametrize(
    ("code", "variables", "image_format"),
    [
        ("OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd", "raw"),
        ("OVMF/OVMF_CODE.fd", "OVMF/OVMF_VARS.fd", "raw"),
        ("edk2/ovmf/OVMF_CODE_4M.qcow2", "edk2/ovmf/OVMF_VARS_4M.qcow2", "qcow2"),
        ("edk2/x64/OVMF_CODE.4m.fd", "edk2/x64/OVMF_VARS.4m.fd", "raw"),
    ],
)
def test_without_descriptors_the_usual_places_are_looked_at(
    tmp_path: Path, code: str, variables: str, image_format: str
) -> None:
    places = [tmp_path / "usr" / "share" / name for name in (code, variables)]
    # One that refuses unsigned kernels is beside it.
    for path in (*places, tmp_path / "usr/share/OVMF/OVMF_CODE_4M.ms.fd"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0")
    found = find_uefi("x86_64", folders=(), root=tmp_path)
    assert [found.code, found.variables_template] == places
    assert found.format == image_format


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["interface-types", "mapping", "targets", "features", "device", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_descriptor_or_a_value_error(value: object) -> None:
    try:
        found = parse_descriptor(json.dumps(value), architecture="x86_64", machine="pc-q35-7.2")
    except ValueError:
        return
    assert found is None
