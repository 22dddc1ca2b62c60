"""Disks as users declare them, the images behind them, and what QEMU is told."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kboot.config import Config, load, read_disks
from kboot.disks import kept, read_image
from kboot.errors import ConfigError
from kboot.machine_spec import Disk, MachineSpec
from kboot.qemu import disks as qemu_disks
from kboot.qemu.disks import MachineDisks
from tests.disk_images import ROOT, gpt
from tests.test_kernel_download import Server


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def qemu_img(*words: str | Path) -> str:
    done = subprocess.run(["qemu-img", *words], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "a,b=c.img"
    path.write_bytes(b"content".ljust(1 << 20, b"\0"))
    return path


# ------------------------------------------------------------------------------- declarations


def test_a_disk_is_declared_by_its_source_and_options(tmp_path: Path) -> None:
    config = Config(
        disk=(
            "blank",
            "data=blank,size=2G,bus=nvme",
            f"{tmp_path}/base.qcow2,ro",
            "web=https://example.org/a=b.img?x=y,size=5000",
            "container:docker.io/library/x:1",
            "pvc:claim,keep,bus=scsi",
            "clone:golden",
        )
    )
    assert read_disks(config.disk) == (
        Disk(name="disk0", kind="blank", size_mib=1024),
        Disk(name="data", kind="blank", size_mib=2048, bus="nvme"),
        Disk(name="disk2", kind="image", source=f"{tmp_path}/base.qcow2", read_only=True),
        Disk(name="web", kind="image", source="https://example.org/a=b.img?x=y", size_mib=5000),
        Disk(name="disk4", kind="container", source="docker.io/library/x:1"),
        Disk(name="disk5", kind="pvc", source="claim", keep=True, bus="scsi"),
        Disk(name="disk6", kind="clone", source="golden"),
    )


def test_a_path_is_relative_to_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config(disk=("d=x/y.raw,ro",)).disk == (f"d={tmp_path}/x/y.raw,ro",)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("blank,size=lots", "'lots' is no size"),
        ("blank,size=0", "'0' is no size"),
        ("blank,rw", "'rw' in 'blank,rw' is not one of size=SIZE, ro, keep"),
        ("blank,ro", "blank and read-only"),
        ("x.img,ro,keep", "nothing to keep"),
        ("x.img,bus=ide", "is one of virtio, nvme, scsi"),
        ("x.img,size", "'size' in"),
        ("d=", "has no source"),
        ("", "has no source"),
        ("pvc:", "write pvc:NAME"),
        ("Data=blank", "'Data' in 'Data=blank' is no name; write 1 to 20 of a-z, 0-9 and -"),
        ("a-name-longer-than-that=x.img", "is no name"),
        ("=x.img", "for a file with = in its name, ./=x.img"),
        ("blank,size=1G,size=2G", "has size twice"),
    ],
)
def test_a_mistake_is_named(declared: str, words: str) -> None:
    with pytest.raises(ConfigError, match="is not a disk: ") as raised:
        Config(disk=(declared,))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_path_may_have_spaces_and_equals_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_disks(Config(disk=("./a=b c.img, size=1G , ro",)).disk) == (
        Disk(
            name="disk0",
            kind="image",
            source=f"{tmp_path}/a=b c.img",
            size_mib=1024,
            read_only=True,
        ),
    )


def test_what_was_given_on_the_command_line_is_told_without_brackets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--disk: 'blank,rw' is not a disk: 'rw' in"):
        load({"disk": ("blank,rw",)}, {}, tmp_path)


def test_two_disks_have_two_names() -> None:
    with pytest.raises(ConfigError, match="disk1 is there twice"):
        Config(disk=("disk1=blank", "blank"))


# ------------------------------------------------------------------------------------- images


def test_raw_qcow2_and_vmdk_are_read(raw: Path, tmp_path: Path) -> None:
    assert read_image(raw, what="disk d").format == "raw"
    for form in ("qcow2", "vmdk"):
        other = tmp_path / f"x.{form}"
        qemu_img("convert", "-f", "raw", "-O", form, raw, other)
        image = read_image(other, what="disk d")
        assert (image.format, image.size_bytes) == (form, 1 << 20)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file; was the copy or download cut off?"),
        (gzip.compress(b"x"), "it looks like gzip-compressed data"),
        (b"\x7fELF\x02\x01\x01".ljust(64, b"\0"), "give a raw, qcow2 or vmdk image"),
        (b"hello\n" * 512, "it looks like text"),
        (b"\0" * 700, "its 700 bytes are no multiple of 512"),
        (b"QFI\xfb" + b"\0\0\0\3" + b"\xff" * 600, "cannot be read as a disk image"),
    ],
)
def test_what_is_no_disk_image_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^disk d: {path}") as raised:
        read_image(path, what="disk d")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_image_that_is_cut_off_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(random.Random(1).randbytes(4 << 20))
    for number, words in enumerate(([], ["-c"], ["-o", "compat=0.10"], ["-o", "refcount_bits=1"])):
        image = tmp_path / f"{number}.qcow2"
        qemu_img("convert", *words, "-f", "raw", "-O", "qcow2", plain, image)
        assert read_image(image, what="disk d").size_bytes == 4 << 20
        for part in (0.001, 0.3, 0.6):
            os.truncate(image, int(image.stat().st_size * part))
            with pytest.raises(
                ConfigError, match=r"qcow2: (cut off: it has \d+ bytes|.* cannot be)"
            ):
                read_image(image, what="disk d")
    disk = gpt(tmp_path / "gpt.raw", (ROOT, "", bytes(1 << 20)))
    read_image(disk, what="disk d")
    os.truncate(disk, 2 << 20)
    with pytest.raises(ConfigError, match="cut off: it has 2097152 bytes of at least"):
        read_image(disk, what="disk d")
    system = tmp_path / "ext4.raw"
    subprocess.run(["mkfs.ext4", "-q", system, "8M"], check=True)
    read_image(system, what="disk d")
    os.truncate(system, 4 << 20)
    with pytest.raises(
        ConfigError, match="cut off: it has 4194304 bytes of at least 8388608; copy"
    ):
        read_image(system, what="disk d")


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=words):
            read_image(path, what="disk d")


def test_a_format_that_is_not_taken_comes_with_its_conversion(tmp_path: Path) -> None:
    path = tmp_path / "x.vdi"
    qemu_img("create", "-q", "-f", "vdi", path, "1M")
    with pytest.raises(ConfigError, match=r"qemu-img convert -O qcow2 \S+/x.vdi \S+/x.qcow2$"):
        read_image(path, what="disk d")


def test_a_missing_image_below_an_image_is_named(raw: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", layer)
    assert len(read_image(layer, what="disk d").stamps) == 2
    raw.unlink()
    with pytest.raises(ConfigError, match="which it is based on, cannot be opened; put it back"):
        read_image(layer, what="disk d")


@contextlib.contextmanager
def opened(image: Path, *options: str) -> Iterator[None]:
    """A QEMU has an image open, for writing unless the options say otherwise."""
    parts = ("driver=qcow2", "node-name=d", "file.driver=file", f"file.filename={image}", *options)
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    with subprocess.Popen(
        [*argv, "-accel", "tcg", "-blockdev", ",".join(parts), "-device", "virtio-blk-pci,drive=d"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        # Its greeting: the devices are there.
        assert b"QMP" in process.stdout.readline()
        yield
        process.kill()


@pytest.fixture
def writer(raw: Path) -> Iterator[Path]:
    """An image that a QEMU has open for writing."""
    image = raw.with_name("written.qcow2")
    qemu_img("convert", "-O", "qcow2", raw, image)
    with opened(image):
        yield image


def test_an_image_that_another_machine_writes_to_is_refused(writer: Path) -> None:
    with pytest.raises(ConfigError, match="is in use by another machine, which writes to it"):
        read_image(writer, what="disk d")


# --------------------------------------------------------------------------- for QEMU's eyes


def machine_disks(directory: Path, *declared: str) -> MachineDisks:
    return MachineDisks(read_disks(declared), directory, machine="m")


def test_each_disk_has_a_layer_and_its_name_as_serial_number(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    raw.rename(image)
    made = machine_disks(
        tmp_path, f"a={image}", "b=blank,size=3,bus=scsi", f"c={image},ro,bus=nvme"
    )
    words = made.begin(None, savable=False)
    nodes = [words[at + 1] for at, word in enumerate(words) if word == "-blockdev"]
    devices = [words[at + 1] for at, word in enumerate(words) if word == "-device"]
    assert nodes == [
        f"driver=qcow2,file.driver=file,file.filename={tmp_path}/disk-a.qcow2,"
        f"backing.driver=raw,backing.file.driver=file,backing.file.filename={image},"
        "node-name=disk-a,discard=unmap",
        f"driver=qcow2,file.driver=file,file.filename={tmp_path}/disk-b.qcow2,"
        "node-name=disk-b,discard=unmap",
        f"driver=raw,file.driver=file,file.filename={image},node-name=disk-c,read-only=on",
    ]
    assert devices == [
        "virtio-scsi-pci,id=scsi",
        "virtio-blk-pci,drive=disk-a,serial=a,id=a",
        "scsi-hd,bus=scsi.0,drive=disk-b,serial=b,id=b",
        "nvme,drive=disk-c,serial=c,id=c",
    ]
    sizes = {
        name: json.loads(qemu_img("info", "--output=json", tmp_path / f"disk-{name}.qcow2"))
        for name in "ab"
    }
    assert {name: info["virtual-size"] for name, info in sizes.items()} == {
        "a": 1 << 20,
        "b": 3 << 20,
    }


def test_a_disk_is_made_by_hand_from_whatever_place(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "an image $HOME.raw"
    raw.rename(image)
    (command,), _ = machine_disks(tmp_path, f"a={image}").by_hand()
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)  # noqa: S602
    info = json.loads(qemu_img("info", "--output=json", tmp_path / "a.qcow2"))
    assert info["backing-filename"] == str(image)


def test_a_disk_that_is_too_small_for_its_image_is_refused(raw: Path, tmp_path: Path) -> None:
    big = tmp_path / "big.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", big, "5M")
    with pytest.raises(ConfigError, match="5 MiB, which do not fit into 4 MiB; give it size=5M"):
        machine_disks(tmp_path, f"a={big},size=4")


def test_an_image_that_changes_under_a_machine_is_told(tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    image.write_bytes(b"\0" * 4096)
    made = machine_disks(tmp_path, f"a={image}")
    made.begin(None, savable=False)
    image.write_bytes(b"\1" * 4096)
    with pytest.raises(ConfigError, match=r"disk a: \S+/i.raw has changed since"):
        made.begin(None, savable=False)
    image.unlink()
    with pytest.raises(
        ConfigError, match=r"/i.raw is gone since .*; put it back, or start another"
    ):
        made.begin(None, savable=False)


def test_the_file_with_an_images_data_may_not_change_either(tmp_path: Path) -> None:
    image, data = tmp_path / "i.qcow2", tmp_path / "data.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, "1M")
    made = machine_disks(tmp_path, f"a={image}")
    made.begin(None, savable=False)
    data.write_bytes(bytes(1 << 20))
    with pytest.raises(ConfigError, match=r"disk a: \S+/data.raw has changed since"):
        made.begin(None, savable=False)


def test_a_power_cycle_begins_with_an_empty_layer(tmp_path: Path) -> None:
    made = machine_disks(tmp_path, "a=blank")
    made.begin(None, savable=False)
    layer = tmp_path / "disk-a.qcow2"
    empty = layer.read_bytes()
    layer.write_bytes(b"written to")
    made.begin(None, savable=False)
    assert layer.read_bytes() == empty


def test_a_layer_is_never_the_image(tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    image.write_bytes(b"\0" * 4096)
    before = image.stat()
    image.chmod(0o444)
    machine_disks(tmp_path, f"a={image}").begin(None, savable=True)
    assert image.stat().st_mtime_ns == before.st_mtime_ns


def test_another_image_makes_another_saved_machine(tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    image.write_bytes(b"\0" * 4096)
    declared = read_disks((f"a={image}",))
    first = qemu_disks.identity(declared)
    assert qemu_disks.identity(declared) == first
    image.write_bytes(b"\1" * 4096)
    assert qemu_disks.identity(declared) != first
    assert qemu_disks.identity(()) == {}


def test_what_cannot_be_saved_says_so(raw: Path, tmp_path: Path) -> None:
    qemu_img("convert", "-O", "vmdk", raw, tmp_path / "v.vmdk")
    above = tmp_path / "q.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", tmp_path / "v.vmdk", "-F", "vmdk", above)
    for declared, words in (
        ("blank", None),
        (f"d={tmp_path}/v.vmdk", f"convert it: qemu-img convert -O qcow2 {tmp_path}/v.vmdk"),
        (f"d={above}", "QEMU cannot save a machine with a vmdk image (disk d)"),
        ("d=blank,keep", "the disk d is kept"),
        ("d=blank,bus=nvme", "QEMU cannot save the NVMe disk d"),
    ):
        found = qemu_disks.snapshot_fault(read_disks((declared,)))
        assert found is None if words is None else words in str(found)


def test_a_clusters_disks_are_refused_here() -> None:
    for declared, words in (("pvc:x", "a cluster's"), ("container:x", "for a cluster")):
        (disk,) = read_disks((declared,))
        assert words in str(qemu_disks.fault(disk))


# ------------------------------------------------------------------------------------ kept ones


def test_a_kept_disk_stays_with_its_machine_and_its_source(tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    image.write_bytes(b"\0" * 4096)
    machine_disks(tmp_path, f"a={image},keep").begin(None, savable=False)
    (disk,) = kept.kept_disks()
    assert (disk.label, disk.source) == ("m/a", str(image))
    before = disk.path.read_bytes()
    machine_disks(tmp_path, f"a={image},keep").begin(None, savable=False)
    assert disk.path.read_bytes() == before
    with pytest.raises(ConfigError, match=r"kept above another source \(\S+i.raw\)"):
        machine_disks(tmp_path, "a=blank,keep").begin(None, savable=False)
    image.write_bytes(b"\1" * 4096)
    with pytest.raises(ConfigError, match=r"has changed since .* kboot disks rm m/a"):
        machine_disks(tmp_path, f"a={image},keep").begin(None, savable=False)
    kept.remove_kept(disk)
    assert kept.kept_disks() == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.kill()


def test_a_kept_disk_from_a_url_stays_when_the_server_has_another_image(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = server.files / "i.raw"
    image.write_bytes(b"of the first day".ljust(4096, b"\0"))
    declared = f"a={server.url('i.raw')},keep"
    words = machine_disks(tmp_path, declared).begin(None, savable=False)
    (disk,) = kept.kept_disks()
    assert disk.source == server.url("i.raw")
    image.write_bytes(b"of the second".ljust(8192, b"\0"))
    shutil.rmtree(tmp_path / "cache")
    again = machine_disks(tmp_path, declared)
    assert again.begin(None, savable=False) == words
    assert again.begin(None, savable=False) == words
    (base,) = disk.path.parent.glob("*.base")
    assert f"backing.file.filename={base}" in words[1]
    assert base.read_bytes().startswith(b"of the first day")
    with pytest.raises(ConfigError, match=r"kept above another source \(http\S+/i.raw\)"):
        machine_disks(tmp_path, "a=blank,keep").begin(None, savable=False)
    golden = kept.clone_kept(disk, "gold")
    kept.remove_kept(disk)
    assert not disk.path.parent.exists()
    qemu_img("convert", "-O", "raw", golden, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes().startswith(b"of the first day")


def test_a_kept_disk_keeps_its_size(tmp_path: Path) -> None:
    machine_disks(tmp_path, "a=blank,size=8M,keep").begin(None, savable=False)
    (disk,) = kept.kept_disks()
    with pytest.raises(ConfigError, match=r"kept with 8 MiB, not 4: give it size=8M$"):
        machine_disks(tmp_path, "a=blank,size=4M,keep").begin(None, savable=False)
    with pytest.raises(ConfigError, match="or make it larger: qemu-img resize") as raised:
        machine_disks(tmp_path, "a=blank,size=16M,keep").begin(None, savable=False)
    remedy = str(raised.value).partition("make it larger: ")[2].split()
    qemu_img(*remedy[1:])
    machine_disks(tmp_path, "a=blank,size=16M,keep").begin(None, savable=False)
    assert disk.size_bytes == 16 << 20


def test_what_is_kept_above_an_image_that_changed_is_not_cloned(tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    image.write_bytes(b"\0" * 4096)
    machine_disks(tmp_path, f"a={image},keep").begin(None, savable=False)
    image.write_bytes(b"\1" * 4096)
    with pytest.raises(ConfigError, match=r"i.raw has changed since it was made from it"):
        kept.clone_kept(kept.find_kept("m/a"), "gold")
    assert [disk.label for disk in kept.kept_disks()] == ["m/a"]


def test_a_kept_disk_has_no_cache_that_dies_with_qemu(tmp_path: Path) -> None:
    words = machine_disks(tmp_path, "a=blank,keep", "b=blank").begin(None, savable=False)
    assert "virtio-blk-pci,drive=disk-a,serial=a,id=a,write-cache=off" in words
    assert "virtio-blk-pci,drive=disk-b,serial=b,id=b" in words


def test_a_golden_disk_is_whole_and_others_begin_with_it(tmp_path: Path) -> None:
    image = tmp_path / "i.raw"
    image.write_bytes(b"below".ljust(1 << 16, b"\0"))
    machine_disks(tmp_path, f"a={image},keep").begin(None, savable=False)
    golden = kept.clone_kept(kept.find_kept("m/a"), "gold")
    image.unlink()
    assert "backing-filename" not in json.loads(qemu_img("info", "--output=json", golden))
    words = machine_disks(tmp_path, "b=clone:gold").begin(None, savable=False)
    assert f"backing.file.filename={golden}" in words[1]
    with pytest.raises(ConfigError, match="there is a disk gold already"):
        kept.clone_kept(kept.find_kept("gold"), "gold")
    machine_disks(tmp_path, "c=clone:gold,keep").begin(None, savable=False)
    with pytest.raises(ConfigError, match="gold is what m/c is made from; remove that first"):
        kept.remove_kept(kept.find_kept("gold"))
    with pytest.raises(ConfigError, match=r"there is no disk lead to clone \(there are: gold\)"):
        machine_disks(tmp_path, "b=clone:lead")
    with pytest.raises(ConfigError, match="a volume claim of another namespace, which a cluster"):
        machine_disks(tmp_path, "b=clone:other/gold")


def test_a_golden_disk_stays_while_a_machine_has_it_open(tmp_path: Path) -> None:
    machine_disks(tmp_path, "a=blank,size=1M,keep").begin(None, savable=False)
    golden = kept.clone_kept(kept.find_kept("m/a"), "gold")
    with opened(golden, "read-only=on"):
        with pytest.raises(ConfigError, match="gold is in use by a machine that is on; stop that"):
            kept.remove_kept(kept.find_kept("gold"))
        kept.clone_kept(kept.find_kept("gold"), "another")
    kept.remove_kept(kept.find_kept("gold"))
    assert [disk.label for disk in kept.kept_disks()] == ["m/a", "another"]


def test_the_spec_has_them(tmp_path: Path) -> None:
    assert MachineSpec(disks=read_disks(("blank",))).disks[0].name == "disk0"
