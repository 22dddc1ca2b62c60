"""The boot server, with a real nginx."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot import state
from kboot.backend import Fetch, Progress
from kboot.deadline import Deadline
from kboot.errors import ConfigError, InfraError, ProcessError
from kboot.log import step
from kboot.nginx import FetchLog, Nginx, parse_fetch, serve


@pytest.fixture
def run() -> Iterator[Path]:
    with state.run_directory() as directory:
        yield directory


@pytest.fixture
def server(run: Path) -> Iterator[Nginx]:
    with serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)) as nginx:
        yield nginx


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


def status_of(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    return 200


def test_an_artifact_is_served_under_its_digest(server: Nginx, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(os.urandom(3_000_000))
    url = server.put(image)
    assert url.endswith(hashlib.sha256(image.read_bytes()).hexdigest())
    assert get(url) == image.read_bytes()


def test_putting_twice_gives_one_address_and_a_rewritten_file_another(
    server: Nginx, tmp_path: Path
) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"one")
    first = server.put(image)
    assert server.put(image) == first
    image.write_bytes(b"two")
    second = server.put(image)
    assert (get(first), get(second)) == (b"one", b"two")


def test_a_build_that_writes_into_its_file_does_not_change_what_was_put(
    server: Nginx, tmp_path: Path
) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"before")
    url = server.put(image)
    with image.open("r+b") as file:
        file.write(b"AFTER!")
    assert get(url) == b"before"


def test_a_file_that_is_not_there_is_the_users_to_mend(server: Nginx, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nothing"):
        server.put(tmp_path / "nothing")


def test_who_waits_for_a_file_is_told_how_far_it_is(server: Nginx, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(os.urandom(3_000_000))
    seen: list[Progress] = []
    server.put(image, seen.append)
    assert [each.done for each in seen] == sorted({each.done for each in seen})
    assert (len(seen), seen[-1].done, seen[-1].size) == (3, 3_000_000, 3_000_000)
    server.put(image, seen.append)
    assert len(seen) == 3


def test_what_is_there_under_another_name_is_read_but_not_sent(
    server: Nginx, tmp_path: Path
) -> None:
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    one.write_bytes(b"kernel")
    two.write_bytes(b"kernel")
    three.write_bytes(b"KERNEL")
    seen: list[str] = []
    urls = [server.put(file, lambda each: seen.append(each.step)) for file in (one, two, three)]
    assert seen == ["send", "read", "read", "send"]
    assert urls[0] == urls[1] != urls[2]


def test_who_gives_up_in_the_middle_of_a_file_has_published_nothing(
    server: Nginx, tmp_path: Path
) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(os.urandom(3_000_000))

    def give_up(_: Progress) -> None:
        raise InfraError("enough")

    with pytest.raises(InfraError, match="enough"):
        server.put(image, give_up)
    assert list((server.prefix / "files/artifacts").iterdir()) == []


def test_what_was_removed_is_gone_and_can_be_put_again(server: Nginx, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"kernel")
    url = server.put(image)
    assert (server.remove(url), status_of(url), server.remove(url)) == (6, 404, 0)
    assert get(server.put(image)) == b"kernel"


def test_a_script_is_replaced_at_once_and_leaves_no_other_file(server: Nginx) -> None:
    url = server.write("m0/boot.ipxe", "#!ipxe\none\n")
    assert server.write("m0/boot.ipxe", "#!ipxe\ntwo\n") == url
    assert get(url) == b"#!ipxe\ntwo\n"
    assert len(list((server.prefix / "files/scripts/m0").iterdir())) == 1


def test_a_tree_is_served_as_it_is_and_follows_what_changes(server: Nginx, tmp_path: Path) -> None:
    menu, image = tmp_path / "menu.ipxe", tmp_path / "image"
    menu.write_text("#!ipxe\n")
    image.write_bytes(b"data")
    names = {"menu.ipxe": menu, "deep/er/an image.img": image}
    assert server.publish_tree("m0", names) == ["deep/er/an image.img", "menu.ipxe"]
    server.write("m0/boot.ipxe", "#!ipxe\n")
    assert get(server.url("scripts/m0/deep/er/an%20image.img")) == b"data"
    assert server.publish_tree("m0", names) == []
    menu.write_text("#!ipxe\nshell\n")
    assert get(server.url("scripts/m0/menu.ipxe")) == b"#!ipxe\n"
    assert server.publish_tree("m0", {"menu.ipxe": menu}) == ["deep/er/an image.img", "menu.ipxe"]
    assert get(server.url("scripts/m0/menu.ipxe")) == b"#!ipxe\nshell\n"
    assert status_of(server.url("scripts/m0/deep/er/an%20image.img")) == 404
    # What was a directory may be a file.
    server.publish_tree("m0", {"menu.ipxe": menu, "deep": image})
    assert get(server.url("scripts/m0/deep")) == b"data"
    server.publish_tree("m0", {"menu.ipxe": menu})
    assert get(server.url("scripts/m0/boot.ipxe")) == b"#!ipxe\n"
    assert status_of(server.url("scripts/m1/menu.ipxe")) == 404


def test_what_is_not_there_is_a_real_404(server: Nginx) -> None:
    assert status_of(server.url("artifacts/0000")) == 404
    assert status_of(server.url("scripts/")) in {403, 404}
    assert status_of(server.url("../nginx.conf")) in {400, 404}


def test_another_runs_token_is_a_404(server: Nginx, tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"kernel")
    assert status_of(server.put(image).replace(server.token, "0123456789abcdef")) == 404


def test_the_access_log_tells_who_asked_for_what(server: Nginx) -> None:
    url = server.write("m0/boot.ipxe", "#!ipxe\n")
    get(url + "?m=m0&b=77")
    status_of(server.url("artifacts/gone") + "?m=m0&b=77")
    get(server.url("beacon/handoff"))
    # An answer is there before its line in the log is.
    for _ in Deadline(10).poll(0.02):
        ours = [each for each in server.fetches() if each.path != "beacon/up"]
        if len(ours) == 3:
            break
    assert [(each.path, each.query, each.status, each.complete) for each in ours] == [
        ("scripts/m0/boot.ipxe", "m=m0&b=77", 200, True),
        ("artifacts/gone", "m=m0&b=77", 404, True),
        ("beacon/handoff", "", 200, True),
    ]
    assert ours[0].size == len("#!ipxe\n")


def test_requests_of_strangers_are_not_ours(server: Nginx) -> None:
    base = server.url("").replace(f"/{server.token}/", "")
    status_of(f"{base}/favicon.ico")
    assert [each for each in server.fetches() if each.path != "beacon/up"] == []


def test_requests_are_counted_on_when_old_ones_are_dropped() -> None:
    log = FetchLog(limit=3)
    fetch = Fetch(time=0.0, path="", query="", status=200, size=0, complete=True, user_agent="iPXE")
    assert log.since(0) == ((), 0)
    for number in range(5):
        log.append(dataclasses.replace(fetch, size=number))
    assert [fetch.size for fetch in log.all()] == [2, 3, 4]
    for position, sizes in {0: [2, 3, 4], 3: [3, 4], 4: [4], 5: [], 9: []}.items():
        new, following = log.since(position)
        assert ([fetch.size for fetch in new], following) == (sizes, 5)


def test_it_listens_on_loopback_only(server: Nginx) -> None:
    listening = [
        line.split()[1]
        for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{server.port:04X}")
    ]
    assert listening == [f"0100007F:{server.port:04X}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no privileges to give up")
def test_started_by_root_it_is_an_ordinary_user(server: Nginx) -> None:
    status = Path(f"/proc/{server.pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert set(uids) == {"65534"}


def test_a_killed_nginx_is_the_hosts_fault(server: Nginx) -> None:
    server.check()
    os.kill(server.pid, signal.SIGKILL)
    for _ in Deadline(5).poll(0.01):
        if server.exit_status is not None:
            break
    with pytest.raises(InfraError, match="nginx was killed by signal 9"):
        server.check()


def test_two_servers_do_not_meet(run: Path) -> None:
    with (
        serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)) as one,
        serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)) as two,
    ):
        url = one.write("m0/boot.ipxe", "#!ipxe one\n")
        assert one.port != two.port
        assert status_of(url.replace(str(one.port), str(two.port))) == 404


def test_nothing_is_left_of_it(run: Path) -> None:
    with serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)) as nginx:
        pid = nginx.pid
    assert not Path(f"/proc/{pid}").exists()
    assert [each for each in run.iterdir() if each.name.startswith("nginx")] == []


def test_without_nginx_the_remedy_is_told(run: Path) -> None:
    with (
        pytest.raises(ProcessError, match="no-such-nginx not found"),
        serve(run, guest_host="h", program="no-such-nginx", deadline=Deadline(20)),
    ):
        pass


def test_an_nginx_that_does_not_start_says_why(run: Path) -> None:
    with (
        pytest.raises(InfraError, match="nginx did not start"),
        serve(run, guest_host="h", program="/bin/false", deadline=Deadline(20)),
    ):
        pass


def test_a_log_line_with_odd_bytes_is_read() -> None:
    line = (
        r'{"time": 1.5, "method": "GET", "uri": "/token/a\u0022b?m=m0", "status": "000", '
        r'"size": 0, "completion": "", "user_agent": "\u00ff"}'
    )
    fetch = parse_fetch(line, token="token")
    assert fetch is not None
    assert (fetch.path, fetch.query, fetch.status, fetch.complete) == ('a"b', "m=m0", 0, False)


def test_what_happens_while_it_serves_is_no_part_of_its_start(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "kboot"),
        serve(run, guest_host="127.0.0.1", program="nginx", deadline=Deadline(20)),
        step("boot m0"),
    ):
        pass
    assert "boot m0" in caplog.messages, "not indented below nginx"
