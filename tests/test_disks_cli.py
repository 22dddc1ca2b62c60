"""``kboot disks`` on this host; on a cluster it is tested in `tests.kubevirt.test_claims`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kboot.cli import main
from kboot.config import read_disks
from kboot.disks import keep, kept_disks, read_image


@pytest.fixture(autouse=True)
def state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_a_kept_disk_is_listed_cloned_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["disks", "list"]) == 0
    assert "no disks; keep one" in capsys.readouterr().out
    base = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "4M"], check=True)
    (disk,) = read_disks((f"data={base},keep",))
    keep("m1", disk, read_image(base, what="disk data"), 4 << 20)
    assert main(["disks", "list", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["disk"], found["bytes"], found["in_use"]) == ("m1/data", 4 << 20, False)
    assert found["above"] == str(base)
    assert main(["disks", "clone", "m1/data", "gold"]) == 0
    assert "use it: --disk clone:gold" in capsys.readouterr().out
    assert main(["disks", "clone", "m1/data", "gold"]) == 2
    assert "there is a disk gold already" in capsys.readouterr().err
    assert main(["disks", "rm", "m1/data", "gold"]) == 0
    assert kept_disks() == []
    assert main(["disks", "rm", "m1/data"]) == 2
    assert "no disk m1/data is kept on this host; see kboot disks list" in capsys.readouterr().err


def test_a_name_that_no_disk_can_have_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disks", "clone", "m1/data", "Gold/1"]) == 2
    assert "cannot be a disk's name" in capsys.readouterr().err
