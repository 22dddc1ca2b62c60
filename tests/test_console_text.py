from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kboot.console.echo import EchoFilter
from kboot.console.text import LINE_LIMIT, LineSplitter, normalise

SERIAL = st.lists(
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from(
            [
                b"\n",
                b"\r\n",
                b"\r",
                b"\b",
                b"\x1b[1;31m",
                b"\x1b]0;title\x07",
                b"\x1bc",
                b"\xc3\xbc",
            ]
        ),
    ),
    max_size=30,
).map(b"".join)


@given(SERIAL, st.lists(st.integers(min_value=1, max_value=7), min_size=1))
def test_lines_do_not_depend_on_how_the_bytes_were_cut(data: bytes, sizes: list[int]) -> None:
    whole, cut = LineSplitter(), LineSplitter()
    expected = whole.feed(data)
    lines, position, index = [], 0, 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        lines += cut.feed(data[position : position + size])
        position, index = position + size, index + 1
    assert lines == expected
    assert cut.pending == whole.pending


@given(SERIAL)
def test_every_byte_belongs_to_one_line(data: bytes) -> None:
    splitter = LineSplitter()
    lines = [*splitter.feed(data), *splitter.flush()]
    assert b"".join(line.data for line in lines) == data
    assert [line.start for line in lines] == [0, *(line.end for line in lines)][: len(lines)]


@given(SERIAL)
def test_text_has_no_control_characters(data: bytes) -> None:
    assert not [c for c in normalise(data) if (c < " " and c != "\t") or c == "\x7f"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain\r\n", "plain"),
        (b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2)\r\n", "SeaBIOS (version 1.16.2)"),
        (b"10%\r 20%\r100%\r\n", "100%"),
        (b"Press Ctrl-B...\b \b\b \b\b \b\r\n", "Press Ctrl-B   "),
        (b"\x1b]0;root@linux: ~\x07/ # \x1b[6n", "/ # "),
        (b"\x1b[?2004hbash# ", "bash# "),
        (b"\x1b(Bmenu", "menu"),
        (b"f\xc3\xbcr \xff\r\n", "für \N{REPLACEMENT CHARACTER}"),
        (b"tab\there\x00\x07\r\r\n", "tab\there"),
        (b"cut off \x1b[3", "cut off "),
    ],
)
def test_a_line_reads_as_a_terminal_shows_it(raw: bytes, text: str) -> None:
    assert normalise(raw) == text


def test_a_line_that_never_ends_is_cut() -> None:
    splitter = LineSplitter()
    lines = splitter.feed(b"x" * (3 * LINE_LIMIT + 5))
    assert [len(line.data) for line in lines] == [LINE_LIMIT] * 3
    assert splitter.pending.data == b"x" * 5


def test_an_echo_comes_back_once() -> None:
    echo = EchoFilter()
    echo.sent(b"echo Kernel panic - not syncing\r")
    assert echo.take(b"/ # echo Kernel panic - not syncing\r\n")
    assert not echo.take(b"echo Kernel panic - not syncing\r\n")


def test_an_echo_that_a_line_editor_wrapped_is_known_in_all_its_parts() -> None:
    echo = EchoFilter()
    typed = b"echo 'BUG: kernel NULL pointer dereference, address: 0000000000000000' > /dev/null"
    echo.sent(typed + b"\r")
    assert echo.take(b"root@linux:~# " + typed[:66] + b" \r\n")
    assert echo.take(typed[66:] + b"\r\n")
    assert not echo.take(b"BUG: kernel NULL pointer dereference, address: 0000000000000000\r\n")


def test_a_short_answer_is_not_taken_for_an_echo() -> None:
    echo = EchoFilter()
    echo.sent(b"root\r")
    assert not echo.take(b"root\r\n")


def test_half_an_echo_is_no_prompt() -> None:
    echo = EchoFilter()
    echo.sent(b"grep -n login: /var/log/messages\r")
    assert echo.without("# grep -n login:") == "#"
    assert echo.without("debian login: ") == "debian login: "
