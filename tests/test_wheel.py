"""What is published works away from the checkout: the wheel, built by way of the source archive."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from kboot import __version__, templates

CHECKOUT = Path(__file__).parent.parent

#: Something for every value that a template asks for.
VALUES: dict[str, dict[str, object]] = {
    "ipxe/boot.ipxe": {
        "attempts": 3,
        "beacon_url": "http://server/beacon",
        "command_line": "console=ttyS0",
        "initrd_urls": ["http://server/one", "http://server/two"],
        "kernel_url": "http://server/kernel",
        "nonce": "abc",
        "query": "m=m0",
        "retry_delay_s": 1,
    },
    "ipxe/firmware.ipxe": {"marker": "waiting", "key": 7, "gateway": "10.0.2.2"},
    "ipxe/load.ipxe": {"ipxe_url": "http://server/own", "start_url": "http://server/start"},
    "ipxe/prompt.ipxe": {},
    "ipxe/start.ipxe": {"script_url": "http://server/script"},
    "nginx/kubernetes/nginx.conf": {"http_port": 8080, "run": "r1", "upload_port": 8081},
    "nginx/nginx.conf": {"port": 8080, "token": "t0ken", "hidden": ""},
    "nginx/tls.conf": {"stem": "tls-on", "port": 8443, "upstream": 8080},
}

RENDER = """
import json, pathlib, sys
from kboot import templates
values = json.loads(sys.argv[1])
texts = {name: templates.render(name, **values[name]) for name in templates.names()}
print(json.dumps({"from": templates.__file__, "texts": texts}))
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the source archive, and the wheel built from it."""
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory)]
    subprocess.run([*build, str(CHECKOUT)], check=True, capture_output=True)
    return directory


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel; what it depends on is borrowed from ours.

    Borrowed by a path file: ours comes after its own, and our editable kboot is not followed.
    """
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place)
    python = place / "bin" / "python"
    (wheel,) = dist.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    (own,) = place.glob("lib/python*/site-packages")
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


def test_the_wheel_renders_every_template_as_the_checkout_does(installed: Path) -> None:
    argv = [str(installed / "python"), "-c", RENDER, json.dumps(VALUES)]
    done = subprocess.run(argv, check=True, capture_output=True, cwd="/")
    rendered = json.loads(done.stdout)
    assert Path(rendered["from"]).is_relative_to(installed.parent)
    assert rendered["texts"] == {
        name: templates.render(name, **VALUES[name]) for name in templates.names()
    }


def test_the_wheel_brings_the_command(installed: Path) -> None:
    done = subprocess.run(
        [installed / "kboot", "--version"], check=True, capture_output=True, text=True, cwd="/"
    )
    assert done.stdout == f"kboot {__version__}\n"


def test_the_wheel_brings_the_pytest_plugin(installed: Path, tmp_path: Path) -> None:
    argv = [str(installed / "python"), "-m", "pytest", "--help"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "--kernel=" in done.stdout
    assert "--kboot-backend=" in done.stdout


def test_the_wheel_says_that_it_is_typed(installed: Path) -> None:
    (marker,) = installed.parent.glob("lib/python*/site-packages/kboot/py.typed")
    assert marker.is_file()
