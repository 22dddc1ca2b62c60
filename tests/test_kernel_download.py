"""Kernels by URL, from a real nginx: cached, resumed, checked, and one clear line if it fails."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError
from kboot.kernel import local_path, read_kernel
from kboot.kernel.download import download
from kboot.machine.settings import settings_for
from tests.test_kernel import RELEASE, arm64_image, bzimage, written

CONFIGURATION = """
daemon off; master_process off; pid off; error_log stderr;
events {{}}
http {{
    log_format json escape=json '{{"path": "$uri", "status": "$status", "range": "$http_range",'
        ' "accept": "$http_accept_encoding"}}';
    access_log {here}/access.jsonl json;
    client_body_temp_path {here}; proxy_temp_path {here}; fastcgi_temp_path {here};
    uwsgi_temp_path {here}; scgi_temp_path {here};
    server {{
        listen 127.0.0.1:{port};
        root {here}/files;
        {more}
        location /moved {{ return 302 /vmlinuz; }}
        location /broken {{ return 503; }}
        location /gzipped {{ add_header Content-Encoding gzip; alias {here}/files/Image.gz; }}
    }}
}}
"""


class Server:
    """An nginx of the test's own on a fixed port, which can go and come back."""

    def __init__(self, here: Path) -> None:
        self.here = here
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.files = here / "files"
        self.files.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, more: str = "") -> None:
        text = CONFIGURATION.format(here=self.here, port=self.port, more=more)
        (self.here / "nginx.conf").write_text(text)
        argv = ["nginx", "-e", "stderr", "-p", str(self.here), "-c", str(self.here / "nginx.conf")]
        self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.02)
        raise TimeoutError("nginx does not answer")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def requests(self) -> list[dict[str, Any]]:
        """All of them but our own. nginx logs a request after its answer, and before the next."""
        last = f"/last-{time.monotonic_ns()}"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(self.url(last[1:]), timeout=20)  # noqa: S310
        caught.value.close()
        for _ in Deadline(20).poll(0.01):
            lines = (self.here / "access.jsonl").read_text().splitlines(keepends=True)
            found = [json.loads(line) for line in lines if line.endswith("\n")]
            if found and found[-1]["path"] == last:
                return [each for each in found if not each["path"].startswith("/last-")]
        raise TimeoutError("nginx does not log what it was asked")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/kboot/downloads"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def test_a_kernel_is_fetched_once_and_then_only_asked_about(server: Server) -> None:
    written(server.files / "vmlinuz", bzimage())
    first, second = (local_path(server.url("vmlinuz")) for _ in range(2))
    assert first == second
    assert (first.name, first.read_bytes()) == ("vmlinuz", bzimage())
    assert read_kernel(first).release == RELEASE
    assert [each["status"] for each in server.requests()] == ["200", "304"]


def test_a_kernel_that_has_changed_is_fetched_again(server: Server) -> None:
    path = written(server.files / "vmlinuz", bzimage())
    download(server.url("vmlinuz"))
    path.write_bytes(bzimage(version="6.13.0 (me) #1"))
    os.utime(path, (1, 1))
    assert read_kernel(download(server.url("vmlinuz"))).release == "6.13.0"


def test_what_was_cut_off_goes_on_where_it_ended(server: Server, own_cache: Path) -> None:
    content = os.urandom(6_000_000)
    written(server.files / "vmlinuz", content)
    server.kill()
    server.start("limit_rate 1500000;")
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(download(server.url("vmlinuz"))))
    thread.start()
    until = time.monotonic() + 30
    while sum(file.stat().st_size for file in own_cache.glob("*/.partial")) < 1_000_000:
        assert time.monotonic() < until
        time.sleep(0.02)
    server.kill()
    server.start()
    thread.join(timeout=60)
    assert [path.read_bytes() for path in found] == [content]
    last = server.requests()[-1]
    assert last["status"] == "206"
    assert int(last["range"].removeprefix("bytes=").removesuffix("-")) >= 1_000_000
    assert [*own_cache.glob("*/.partial")] == []


def test_what_changed_after_it_was_cut_off_is_fetched_from_the_start(
    server: Server, own_cache: Path
) -> None:
    written(server.files / "vmlinuz", bzimage())
    whole = download(server.url("vmlinuz"))
    # As a run that was killed leaves it.
    whole.with_name(".partial").write_bytes(b"x" * 1000)
    whole.with_name(".partial.json").write_text('{"etag": "\\"old-3e8\\""}')
    whole.unlink()
    assert download(server.url("vmlinuz")).read_bytes() == bzimage()
    assert server.requests()[-1]["range"] == "bytes=1000-"
    assert server.requests()[-1]["status"] == "200"


def test_a_checksum_is_held_against_the_content(server: Server, own_cache: Path) -> None:
    written(server.files / "vmlinuz", bzimage())
    digest = hashlib.sha256(bzimage()).hexdigest()
    url = server.url("vmlinuz")
    assert download(f"{url}#sha256={digest.upper()}").read_bytes() == bzimage()
    # It is known: nobody is asked.
    count = len(server.requests())
    download(f"{url}#sha256={digest}")
    assert len(server.requests()) == count
    with pytest.raises(ConfigError, match=f"its sha256 is {digest}, not {'0' * 64}"):
        download(f"{url}#sha256={'0' * 64}")
    assert [*own_cache.glob("*/.partial")] == []


def test_a_gzip_file_stays_one_on_its_way(server: Server) -> None:
    import gzip

    written(server.files / "Image.gz", gzip.compress(arm64_image()))
    path = download(server.url("gzipped"))
    assert path.read_bytes() == gzip.compress(arm64_image())
    assert server.requests()[-1]["accept"] == "identity"


def test_a_redirection_is_followed(server: Server) -> None:
    written(server.files / "vmlinuz", bzimage())
    assert download(server.url("moved")).read_bytes() == bzimage()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/vmlinuz", "http:// and https:// only; download it yourself"),
        ("file:///boot/vmlinuz", "http:// and https:// only; download it yourself"),
        ("http:///vmlinuz", "http:// and https:// only"),
        ("http://[::1/vmlinuz", "not a URL"),
        ("http://host:99999/vmlinuz", "not a URL"),
        ("http://host/vmlinuz#md5=1", "#md5=1 is not #sha256= and 64 hexadecimal digits"),
        ("http://host/vmlinuz#sha256=12", "#sha256=12 is not #sha256="),
    ],
)
def test_what_is_no_url_to_download_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        download(url)
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_the_users_mistake(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"the server says 404 Not Found; check the URL"):
        download(server.url("vmlinuz"))


def test_a_server_out_of_order_is_asked_again_and_then_named(server: Server) -> None:
    with pytest.raises(InfraError, match=r"/broken: the server says 503 .*, 5 times"):
        download(server.url("broken"))
    assert len(server.requests()) == 5


def test_a_server_that_is_not_there_is_named_without_the_password(server: Server) -> None:
    server.kill()
    url = server.url("vmlinuz").replace("://", "://me:secret@")
    with pytest.raises(InfraError) as caught:
        download(url)
    server.start()
    assert "Connection refused" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "object at" not in str(caught.value)


def test_authorities_that_are_not_there_are_the_users_mistake(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/none.pem")
    with pytest.raises(ConfigError, match=r"REQUESTS_CA_BUNDLE=/none.pem: there is no such file"):
        download(server.url("vmlinuz").replace("http:", "https:"))
    with pytest.raises(ConfigError, match="404 Not Found"):
        download(server.url("vmlinuz"))


def test_a_server_without_tls_is_not_taken_for_one_that_is_not_trusted(server: Server) -> None:
    url = server.url("vmlinuz").replace("http:", "https:")
    with pytest.raises(InfraError, match=r"TLS fails: .*write http://.*/vmlinuz"):
        download(url)


def test_the_command_line_takes_a_url(server: Server) -> None:
    written(server.files / "vmlinuz", bzimage(load_flags=0))
    command = [sys.executable, "-m", "kboot", "boot", server.url("vmlinuz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert "/vmlinuz: a kernel for i686: kboot has no machine for i686" in line


def test_a_root_file_system_is_fetched_as_a_kernel_is(server: Server) -> None:
    (server.files / "root.cpio").write_bytes(b"070701 and so on")
    (server.files / "root.img").write_bytes((bytes(0x438) + b"\x53\xef").ljust(1 << 17, b"\0"))
    kernel = read_kernel(written(server.here / "vmlinuz", bzimage()))
    initramfs = settings_for(kernel, Config(rootfs=server.url("root.cpio")))
    assert initramfs.initrds[0].read_bytes() == b"070701 and so on"
    (disk,) = settings_for(kernel, Config(rootfs=server.url("root.img"))).spec.disks
    assert disk.source.endswith("/root.img")
    assert Path(disk.source).stat().st_size == 1 << 17
    with pytest.raises(ConfigError, match="the server says 404 Not Found; check the URL"):
        settings_for(kernel, Config(rootfs=server.url("none.img")))
