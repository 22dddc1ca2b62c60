"""Readers of a shared console."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from kboot.console import Console
from kboot.crash import Scanner
from kboot.supervisor.shared_console import Keyboard, SharedConsole
from tests.serial_lines import SocketStream
from tests.test_console import room


def test_a_full_disk_holds_no_reader_up_and_makes_none_spin(tmp_path: Path) -> None:
    said = b"".join(b"line %d\r\n" % number for number in range(500))
    host, guest = socket.socketpair()
    ours, theirs = socket.socketpair()
    stopping = threading.Event()
    ours.settimeout(20)
    with (
        guest,
        ours,
        theirs,
        room(1001),
        ours.makefile("rb") as incoming,
        Console(SocketStream(host), record=tmp_path, scanner=Scanner()) as console,
    ):
        shared = SharedConsole(console, tmp_path / "serial.log", Keyboard())
        guest.sendall(said)
        console.expect("line 499", timeout=10)
        reader = threading.Thread(target=shared.read, args=(theirs, 10, stopping.is_set))
        reader.start()
        assert incoming.read(len(said) - 10) == said[10:]
        before = time.process_time()
        time.sleep(1)
        assert time.process_time() - before < 0.3
        guest.sendall(b"more")
        assert incoming.read(4) == b"more"
        stopping.set()
        ours.close()
        reader.join(10)
