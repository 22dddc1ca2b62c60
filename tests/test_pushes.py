"""What is pushed to a machine, and what the next supervisor knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kboot.backend import Backend, BootServer
from kboot.config import Config
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.machine import open_backend
from kboot.rootfs import tiny_initramfs
from kboot.supervisor.handover import Handover, HandoverWriter, Script, read_note, to_plain
from kboot.supervisor.pushes import Pushes, Wanted


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with open_backend(Config()) as backend:
        yield backend


@pytest.fixture
def server(backend: Backend) -> Iterator[BootServer]:
    with backend.serve(Deadline(20)) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, debian_kernel: Path) -> Config:
    """With a kernel of our own, to be removed."""
    (tmp_path / "mine.deb").hardlink_to(debian_kernel)
    return Config(kernel=str(tmp_path / "mine.deb"), password="secret", initrd=())


def test_what_is_not_pushed_stays_also_where_its_file_is_gone(
    server: BootServer, config: Config, tmp_path: Path
) -> None:
    pushes = Pushes(server, config, "m")
    first = pushes.accept(pushes.read(config))
    Path(config.kernel or "").unlink()
    image = tmp_path / "image.cpio"
    image.write_bytes(tiny_initramfs().read_bytes())
    second = pushes.accept(pushes.prepare(Wanted(files=[image])))
    assert second.load.kernel_url == first.load.kernel_url
    assert second.load.settings.initrds == (image,)
    image.unlink()
    third = pushes.accept(pushes.prepare(Wanted(command_line="debug")))
    assert third.urls == second.urls
    assert third.load.settings.command_line == "debug"


def test_another_kernel_has_drivers_of_its_own_for_the_machines_disks(
    server: BootServer, config: Config, quick_kernel: Path
) -> None:
    pushes = Pushes(server, replace(config, disk=("data=blank",)), "m")
    first = pushes.accept(pushes.read(replace(config, disk=("data=blank",))))
    second = pushes.prepare(Wanted(files=[quick_kernel]))
    assert second.load.kernel.release != first.load.kernel.release
    *same, drivers = second.load.settings.initrds
    assert same == list(first.load.settings.initrds[:-1])
    assert second.load.kernel.release.encode() in drivers.read_bytes()


def test_an_initramfs_of_the_users_stays_for_another_kernel_though_its_file_is_gone(
    server: BootServer, config: Config, quick_kernel: Path, tmp_path: Path
) -> None:
    image = tmp_path / "image.cpio"
    image.write_bytes(tiny_initramfs().read_bytes())
    config = replace(config, rootfs=str(image), disk=("data=blank",))
    pushes = Pushes(server, config, "m")
    first = pushes.accept(pushes.read(config))
    image.unlink()
    second = pushes.prepare(Wanted(files=[quick_kernel]))
    assert second.load.initrd_urls == first.load.initrd_urls


def test_a_note_is_read_as_it_was_written(server: BootServer, config: Config) -> None:
    pushes = Pushes(server, config, "m")
    push = pushes.accept(pushes.read(config))
    note = Handover(
        config=config,
        pushes=(push,),
        current=1,
        scripts=(Script(nonce="a", push=1), Script(nonce="b", push=1), Script(nonce="c", push=7)),
        proved="a",
        boots=3,
        started=1.5,
    )
    # How to get at its modules is no part of what a kernel is.
    assert read_note(json.dumps(to_plain(note))) == note
    # What is proved is likeliest, and what is forgotten cannot be.
    assert list(note.loads) == ["b", "a"]
    newer = {**to_plain(note), "invented_later": 1}
    assert read_note(json.dumps(newer)) == note
    again = Pushes(server, config, "m")
    again.restore(note.pushes, note.current)
    assert again.current == push
    assert again.accept(again.prepare(Wanted(command_line="debug"))).number == 2


@pytest.mark.parametrize("text", ["", "[]", '{"config": 1}', '{"pushes": []}'])
def test_a_note_that_is_none_is_told_with_the_remedy(text: str) -> None:
    with pytest.raises(InfraError, match="kboot down, kboot up"):
        read_note(text)


def test_where_machines_do_not_stay_nothing_is_kept(
    backend: Backend, server: BootServer, config: Config
) -> None:
    pushes = Pushes(server, config, "m")
    push = pushes.accept(pushes.read(config))
    writer = HandoverWriter(
        backend, pushes, Handover(config=replace(config, evidence=Path("/here")))
    )
    writer.begin_boot("a", push)
    assert writer.note.scripts == ()
    assert writer.note.config.evidence is None
