"""A boot server that does wrong on purpose, seen by a client that hides nothing."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from kboot import state
from kboot.deadline import Deadline
from kboot.errors import ConfigError
from kboot.fault_proxy import CAPTIVE_PORTAL
from kboot.nginx import Nginx, serve
from kboot.server_faults import KINDS, FaultKind
from kboot.testing import FakeBackend

CONTENT = os.urandom(300_000)


@dataclass(frozen=True)
class Answer:
    """All that came, and how it ended."""

    status: int
    headers: dict[str, str]
    body: bytes
    ended: str


@pytest.fixture
def server() -> Iterator[Nginx]:
    with (
        state.run_directory() as run,
        serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)) as nginx,
    ):
        yield nginx


@pytest.fixture
def image(server: Nginx, tmp_path: Path) -> str:
    """The URL of a file."""
    (tmp_path / "image").write_bytes(CONTENT)
    return server.put(tmp_path / "image")


def ask(url: str, *, patience_s: float = 20.0) -> Answer:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nUser-Agent: iPXE/1\r\nConnection: close\r\n\r\n"
    data, ended = b"", "end"
    with socket.create_connection(("127.0.0.1", parts.port or 80), timeout=patience_s) as wire:
        wire.sendall(request.encode())
        try:
            while piece := wire.recv(65536):
                data += piece
        except ConnectionResetError:
            ended = "reset"
        except TimeoutError:
            ended = "silence"
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(int(first.split(" ")[1]) if first else 0, headers, body, ended)


def test_without_faults_nothing_stands_between_a_machine_and_nginx(
    server: Nginx, image: str
) -> None:
    assert ask(image).headers["server"] == "nginx"
    assert "kboot-faults" not in {thread.name for thread in threading.enumerate()}


def test_a_status_comes_as_often_as_it_was_ordered(server: Nginx, image: str) -> None:
    fault = server.fault(image, status=503, times=2)
    assert [ask(image).status for _ in range(3)] == [503, 503, 200]
    assert fault.hits == 2
    assert ask(image).body == CONTENT


def test_other_requests_are_passed_on(server: Nginx, image: str) -> None:
    server.fault("scripts/*", status=500)
    answer = ask(f"{image}?m=m0&b=1")
    assert (answer.status, answer.body) == (200, CONTENT)
    assert ask(server.url("nothing")).status == 404
    assert [fetch.query for fetch in server.fetches() if fetch.path.startswith("art")] == [
        "m=m0&b=1"
    ]


def test_a_fault_is_over_when_it_is_cleared_and_the_proxy_goes(server: Nginx, image: str) -> None:
    with server.fault(image, status=404) as fault:
        assert ask(image).status == 404
        assert fault.hits == 1
    assert fault.hits == 1
    assert ask(image).status == 200
    assert "kboot-faults" not in {thread.name for thread in threading.enumerate()}
    for _ in range(3):
        with server.fault(image, status=403):
            assert ask(image).status == 403
        assert ask(image).body == CONTENT


def test_a_request_that_met_a_fault_is_in_the_log_with_it(server: Nginx, image: str) -> None:
    server.fault(image, "truncated", after=1000)
    ask(f"{image}?m=m0&b=1")
    fetch = server.fetches()[-1]
    assert (fetch.fault, fetch.status, fetch.size, fetch.complete) == (
        "truncated",
        200,
        1000,
        False,
    )
    assert (fetch.query, fetch.user_agent) == ("m=m0&b=1", "iPXE/1")
    # What the proxy had to ask nginx for is no fetch of the machine's.
    assert [each.path for each in server.fetches()].count(fetch.path) == 1


def test_a_fault_may_be_for_one_machine(server: Nginx, image: str) -> None:
    server.write("m1/boot.ipxe", "#!ipxe\n")
    server.fault("*", status=500, machine="m1")
    assert ask(f"{image}?m=m10&b=1").status == 200
    assert ask(f"{image}?m=m1&b=1").status == 500
    assert ask(server.url("scripts/m1/boot.ipxe")).status == 500


def test_a_connection_is_refused_or_broken_off(server: Nginx, image: str) -> None:
    server.fault(image, "refused", times=1)
    server.fault(image, "reset", after=1000, times=1)
    first, second = ask(image), ask(image)
    assert (first.status, first.ended) == (0, "reset")
    assert (second.ended, len(second.body)) == ("reset", 1000)
    assert second.headers["content-length"] == str(len(CONTENT))


def test_an_answer_is_too_short_or_of_another_length(server: Nginx, image: str) -> None:
    server.fault(image, "truncated", after=5000, times=1)
    server.fault(image, "wrong-length", times=1)
    short, wrong = ask(image), ask(image)
    assert (len(short.body), short.headers["content-length"], short.ended) == (
        5000,
        "300000",
        "end",
    )
    assert (len(wrong.body), wrong.headers["content-length"]) == (300_000, "150000")


def test_an_answer_is_slow_or_stands_still(server: Nginx, image: str) -> None:
    server.fault(image, "slow", rate=600_000, times=1)
    server.fault(image, "stalled", after=2000, times=1)
    assert ask(image).body == CONTENT
    still = ask(image, patience_s=0.3)
    assert (len(still.body), still.ended) == (2000, "silence")


def test_a_redirect_leads_elsewhere_or_round_and_round(server: Nginx, image: str) -> None:
    server.fault(image, "redirect", location="http://127.0.0.1:1/", times=1)
    server.fault(image, "redirect-loop", times=1)
    first, second = ask(f"{image}?a=1"), ask(f"{image}?a=1")
    assert (first.status, first.headers["location"]) == (302, "http://127.0.0.1:1/")
    assert second.headers["location"] == urlsplit(image).path + "?a=1"


def test_a_file_is_met_by_its_name_however_it_is_asked_for(server: Nginx, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(CONTENT)
    server.publish_tree("m0", {"menus/a b.ipxe": tmp_path / "a"})
    server.fault("scripts/m0/menus/a b.ipxe", status=500, times=1)
    server.fault(server.url("scripts/m0/menus/a%20b.ipxe?x=1"), status=503, times=1)
    asked = [server.url("scripts/m0//menus/a%20b.ipxe?y=2") for _ in range(3)]
    assert [ask(url).status for url in asked] == [500, 503, 200]
    assert {each.path for each in server.fetches() if each.query == "y=2"} == {
        "scripts/m0/menus/a b.ipxe"
    }


@pytest.mark.parametrize("kind", ["slow", "stalled", "truncated", "reset", "wrong-length", "gzip"])
def test_a_fault_makes_no_file_of_what_is_not_there(server: Nginx, kind: FaultKind) -> None:
    with server.fault("*", kind):
        assert ask(server.url("scripts/m0/mac/52-54.ipxe")).status == 404
        assert (server.fetches()[-1].status, server.fetches()[-1].fault) == (404, kind)


def test_a_script_may_say_who_asks_by_post(server: Nginx) -> None:
    url = server.write("m0/a menu.ipxe", "#!ipxe\n")
    place = urlsplit(url).path.replace(" ", "%20")

    def post(place: str, method: str = "POST") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, place, body=b"mac=52%3A54&uuid=1")
            answer = connection.getresponse()
            return answer.status, answer.read()

    assert post(place) == (200, b"#!ipxe\n")
    assert post(f"{place}.none")[0] == 404
    assert post(place, "PUT")[0] == 405
    assert ("scripts/m0/a menu.ipxe", 200) in {
        (each.path, each.status) for each in server.fetches()
    }
    with server.fault(url, status=503, times=1):
        assert [post(place)[0], post(place)] == [503, (200, b"#!ipxe\n")]
    with server.fault(url, "slow"):
        assert post(place) == (200, b"#!ipxe\n")


def test_a_fault_is_of_this_server_by_http_or_https(server: Nginx, image: str) -> None:
    fault = server.fault(image.replace("http:", "https:").replace(str(server.port), "1"), "empty")
    assert ask(image).body == b""
    assert fault.hits == 1
    for url in ("http://192.0.2.1/vmlinuz", image.replace(server.token, "other")):
        with pytest.raises(ConfigError, match=rf"is of this boot server, http://.*, not of {url}"):
            server.fault(url, status=503)


def test_something_else_comes_than_was_asked_for(server: Nginx, image: str) -> None:
    for kind in ("captive-portal", "gzip", "empty"):
        server.fault(image, kind, times=1)
    page, packed, empty = ask(image), ask(image), ask(image)
    assert (page.status, page.body, page.headers["content-type"]) == (
        200,
        CAPTIVE_PORTAL,
        "text/html",
    )
    assert gzip.decompress(packed.body) == CONTENT
    assert packed.headers["content-encoding"] == "gzip"
    assert (empty.status, empty.body) == (200, b"")


def test_an_answer_is_huge(server: Nginx, image: str) -> None:
    server.fault(image, "huge", size=5_000_001)
    answer = ask(image)
    assert answer.headers["content-length"] == "5000001"
    assert answer.body == bytes(5_000_001)


def test_a_server_ends_while_answers_stand_still(image: str, server: Nginx) -> None:
    server.fault(image, "stalled", after=0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        wire.sendall(f"GET {urlsplit(image).path} HTTP/1.1\r\n\r\n".encode())
        assert wire.recv(1000)
        server.clear_faults()
        assert wire.recv(1000) == b""


@pytest.mark.parametrize(
    ("kind", "how", "words"),
    [
        ("fire", {}, "there is no fault 'fire'; there are: status, refused"),
        (None, {}, "say which fault: status=503, or one of status, refused"),
        (None, {"status": 200}, "from 400 to 599, not 200"),
        ("reset", {"after": -1}, "after and size are not negative"),
        ("reset", {"afterwards": 1}, "a fault has no afterwards"),
        ("empty", {"times": 0}, "at least once"),
    ],
)
def test_what_is_no_fault_is_refused(
    server: Nginx, kind: str | None, how: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        server.fault("*", kind, **how)  # type: ignore[arg-type]


def test_a_server_that_cannot_do_wrong_says_so() -> None:
    with (
        FakeBackend().serve(Deadline(1)) as fake,
        pytest.raises(ConfigError, match="does no wrong"),
    ):
        fake.fault("*", status=500)


def test_every_kind_has_an_answer(server: Nginx, image: str) -> None:
    for kind in KINDS:
        with server.fault(image, kind, size=10, after=10, rate=10_000_000) as fault:
            ask(image, patience_s=0.2)
            assert fault.hits == 1
