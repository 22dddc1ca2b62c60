from __future__ import annotations

import base64
import random
import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kboot.guest.agent import escape, pieces
from kboot.guest.frames import (
    BASE64_BYTES,
    Checksum,
    Extent,
    Frame,
    FrameFilter,
    FrameReader,
    Output,
    Tag,
    cksum,
    fit,
    without_frames,
)
from tests.serial_lines import PRINTK, PRINTK_WITHOUT_TIME

NONCE = "424242"


def frame(tag: Tag, index: int, payload: bytes, sequence: int = 7) -> bytes:
    return b"~%s:%d:%d:%d:%d:%s;\r\n" % (
        NONCE.encode(),
        sequence,
        tag,
        index,
        len(payload),
        payload,
    )


def transfer(data: bytes) -> bytes:
    """The frames that carry `data` as standard output."""
    return b"".join(
        frame(Tag.STDOUT, index, base64.b64encode(data[start : start + BASE64_BYTES]))
        for index, start in enumerate(range(0, len(data), BASE64_BYTES), start=1)
    )


def interrupted(wire: bytes, records: tuple[bytes, ...], chance: float, seed: int) -> bytes:
    """`wire` with records printed into it before random bytes."""
    rng = random.Random(seed)
    noisy = bytearray()
    for byte in wire:
        if rng.random() < chance:
            noisy += rng.choice(records)
        noisy.append(byte)
    return bytes(noisy)


def received(wire: bytes, sizes: list[int] | None = None) -> list[Frame]:
    """The frames a reader makes of `wire`, cut into pieces of these sizes."""
    reader, frames, position, index = FrameReader(NONCE), [], 0, 0
    while position < len(wire):
        size = sizes[index % len(sizes)] if sizes else len(wire)
        frames += reader.feed(wire[position : position + size])
        position, index = position + size, index + 1
    return frames


CUTS = st.lists(st.integers(min_value=1, max_value=40), min_size=1)


@given(st.binary(min_size=1, max_size=400), CUTS)
def test_frames_do_not_depend_on_how_the_bytes_were_cut(data: bytes, sizes: list[int]) -> None:
    wire = b"log ~ noise ~42 ~424242:x\r\n" + transfer(data)
    frames = received(wire, sizes)
    assert frames == received(wire)
    assert b"".join(base64.b64decode(f.payload) for f in frames) == data


@given(st.binary(min_size=1, max_size=300), CUTS, st.integers())
def test_kernel_messages_with_times_are_cut_out_exactly(
    data: bytes, sizes: list[int], seed: int
) -> None:
    wire = interrupted(transfer(data), PRINTK[:2], 0.1, seed)
    frames = received(wire, sizes)
    output = Output()
    for one in frames:
        output.take(one, 0)
    assert output.complete(Extent(cksum(data), len(data)), Checksum.CKSUM) == data


@given(st.binary(min_size=1, max_size=600), st.integers(), st.floats(0.001, 0.2))
def test_output_among_kernel_messages_without_times_is_exact_or_missing(
    data: bytes, seed: int, chance: float
) -> None:
    output = Output()
    for one in received(interrupted(transfer(data), PRINTK_WITHOUT_TIME, chance, seed)):
        output.take(one, 0)
    complete = output.complete(Extent(cksum(data), len(data)), Checksum.CKSUM)
    assert complete in {data, None}


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 300))
def test_output_that_lost_bytes_is_never_complete(data: bytes, start: int, length: int) -> None:
    wire = transfer(data)
    lost = wire[:start] + wire[start + length :]
    output = Output()
    for one in received(lost):
        output.take(one, 0)
    assert output.complete(Extent(cksum(data), len(data)), Checksum.CKSUM) in {data, None}


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_noise_makes_the_reader_stumble(noise: bytes) -> None:
    assert received(noise + b"\r\n~\r\n" + frame(Tag.ANSWER, 0, b"1,1"))[-1].payload == b"1"


def test_frames_are_taken_out_of_what_people_read() -> None:
    for tag, payload in ((Tag.DONE, b"2.0.7.3.0.0,2.0.7.3.0.0"), (Tag.STDOUT, b"b25lCg==")):
        assert without_frames(frame(tag, 1, payload).decode().rstrip()) == ""
    message = "[    1.234567] random: crng init done"
    assert without_frames(f"~424242:7:1:1:64:TG9n{message}") == message
    assert without_frames(f"~424242:109:{message}") == message
    for line in (message, "~ # ls", "~42: no frame"):
        assert without_frames(line) == line


def test_a_serial_log_is_shown_without_frames_however_it_is_cut() -> None:
    said = b"[    1.234567] random: crng init done\r\n"
    done = frame(Tag.DONE, 1, b"2.0.7.3.0.0,2.0.7.3.0.0")
    lines = (said, done, frame(Tag.STDOUT, 1, b"b25lCg=="), b"~ # " + done, said)
    raw = b"".join(lines) + b"~424242:7:1:1:64:TG9n" + said + b"\r\nlogin: ~4242"
    shown = said + b"~ # \r\n" + said * 2 + b"\r\nlogin: ~4242"
    for size in (1, 2, 3, 7, 50, len(raw)):
        frames = FrameFilter()
        pieces = [frames.feed(raw[at : at + size]) for at in range(0, len(raw), size)]
        assert b"".join(pieces) + frames.flush() == shown


def test_a_prompt_is_shown_at_once() -> None:
    assert FrameFilter().feed(b"root@host:~# ") == b"root@host:~# "


def test_a_control_frame_whose_halves_differ_is_dropped() -> None:
    assert received(frame(Tag.DONE, 0, b"2.0,2.1")) == []


def test_a_frame_cut_once_by_a_message_like_itself_is_mended_by_its_length() -> None:
    whole = frame(Tag.STDOUT, 1, b"QUJDREVGR0g=")
    wire = whole[:25] + b"flood\r\n" + whole[25:]
    (mended,) = received(wire)
    assert mended.payload == b"QUJDREVGR0g="
    assert mended.repaired


def test_pieces_that_could_be_put_together_in_two_ways_are_refused() -> None:
    assert fit([b"abx", b"cdx", b"ef"], 6) is None
    assert fit([b"abx", b"cdef"], 6) == [b"ab", b"cdef"]
    assert fit([b"ab"], 6) is None


def test_wrong_pieces_are_forgotten_and_asked_for_again() -> None:
    output = Output()
    extent = Extent(cksum(b"hello"), 5)
    doubtful = Frame(sequence=7, tag=Tag.STDOUT, index=1, payload=b"aGVsbHg=", repaired=True)
    output.take(doubtful, 0)
    assert output.complete(extent, Checksum.CKSUM) is None
    assert output.missing(5) == [(0, 5)]
    # 68 65 6c 6c 6f, with % for c and _ for f.
    plain = Frame(sequence=8, tag=Tag.STDOUT_HEX, index=1, payload=b"68656%6%6_")
    output.take(plain, 0)
    assert output.complete(extent, Checksum.CKSUM) == b"hello"


@given(st.binary(max_size=300), st.sampled_from([40, 200, 800]))
def test_escaped_text_is_cut_between_escapes(data: bytes, size: int) -> None:
    parts = list(pieces(escape(data), size))
    assert "".join(parts) == escape(data)
    assert all(0 < len(part) <= size for part in parts)
    assert not any(re.search(r"\\0?\d{0,2}$", part) for part in parts)


@pytest.mark.parametrize("shell", [["busybox", "sh"], ["dash"], ["bash"]])
def test_shells_read_escaped_text_as_it_was(shell: list[str]) -> None:
    data = bytes(range(256)) + "é\n'\"$\\".encode()
    script = f"printf %b '{escape(data)}'"
    done = subprocess.run([*shell, "-c", script], capture_output=True, check=True)
    assert done.stdout == data


@given(st.binary(max_size=100))
@settings(max_examples=10)
def test_cksum_is_that_of_posix(data: bytes) -> None:
    printed = subprocess.run(["cksum"], input=data, capture_output=True, check=True).stdout
    assert int(printed.split()[0]) == cksum(data)
    assert Checksum.CKSUM.printed_for(data, printed)
