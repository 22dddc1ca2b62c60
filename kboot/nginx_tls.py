"""The boot server's HTTPS: an nginx for each certificate asked for, before the one for HTTP.

That one stays as it is, with its log, its files, and the faults that stand before it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from kboot import nginx_process, process, templates
from kboot.deadline import Deadline
from kboot.errors import InfraError
from kboot.log import logger
from kboot.server_tls import Certificate, TlsServer

if TYPE_CHECKING:
    from kboot.certificates import Authority

AUTHORITY_FILE = "ca.pem"

_START_LIMIT_S = 10.0


class TlsServers:
    """Those that run; made when they are asked for. Several threads may ask."""

    def __init__(
        self,
        prefix: Path,
        *,
        program: str,
        host: str,
        authority_file: Path | None,
        env: Mapping[str, str],
        user: int | None,
    ) -> None:
        """`prefix` is nginx's own folder, and `host` what its machines call it.

        The authority is the one in `authority_file`, or one of the run.
        """
        self._prefix = prefix
        self._program = program
        self._host = host
        self._authority_file = authority_file
        self._env = env
        self._user = user
        self._lock = threading.Lock()
        self._stack = contextlib.ExitStack()
        self._ports: dict[Certificate, int] = {}
        self._processes: dict[Certificate, process.Process] = {}

    def close(self) -> None:
        """End them all."""
        self._stack.close()

    @cached_property
    def _authority(self) -> Authority:
        # The library takes 0.1 s to load; most runs have no use for it.
        from kboot import certificates  # noqa: PLC0415

        authority = (
            certificates.read_authority(self._authority_file)
            if self._authority_file
            else certificates.new_authority()
        )
        (self._prefix / AUTHORITY_FILE).write_text(authority.pem, encoding="ascii")
        return authority

    def serve(self, certificate: Certificate, *, upstream: int, path: str) -> TlsServer:
        """Serve what is on the port `upstream`. `path` is where all its paths begin."""
        with self._lock:
            if certificate not in self._ports:
                self._ports[certificate] = self._start(certificate, upstream)
            return TlsServer(
                base=f"https://{self._host}:{self._ports[certificate]}{path}",
                authority=self._authority.pem,
            )

    def check(self) -> None:
        """Raise `InfraError` if one of them is not running any more."""
        for child in tuple(self._processes.values()):
            if child.exit_status() is not None:
                raise InfraError(f"the nginx for HTTPS has ended: {child.last_words()}")

    def _start(self, certificate: Certificate, upstream: int) -> int:
        name = f"tls-{certificate}"
        keys = self._prefix / f"{name}.pem"
        keys.touch(mode=0o600)
        keys.write_text(self._authority.server(self._host, certificate), encoding="ascii")
        if self._user is not None:
            os.chown(keys, self._user, self._user)
        for _ in range(nginx_process.PORT_ATTEMPTS):
            port = nginx_process.free_port()
            text = templates.render("nginx/tls.conf", stem=name, port=port, upstream=upstream)
            (self._prefix / f"{name}.conf").write_text(text, encoding="utf-8")
            with contextlib.ExitStack() as attempt:
                child = attempt.enter_context(self._spawn(name))
                if self._listens(child, port):
                    self._processes[certificate] = child
                    self._stack.enter_context(attempt.pop_all())
                    logger.debug("nginx serves by HTTPS (%s) on port %d", certificate, port)
                    return port
        raise nginx_process.no_free_port()

    def _spawn(self, name: str) -> contextlib.AbstractContextManager[process.Process]:
        log = self._prefix / f"{name}.log"
        log.unlink(missing_ok=True)
        conf = self._prefix / f"{name}.conf"
        argv = [self._program, "-e", "stderr", "-p", str(self._prefix), "-c", str(conf)]
        return process.spawn(argv, log=log, env=self._env, user=self._user)

    def _listens(self, child: process.Process, port: int) -> bool:
        """Whether it accepts connections; False if somebody else has its port."""
        for _ in Deadline(_START_LIMIT_S).poll(0.01):
            if nginx_process.port_was_taken(child, self._prefix):
                return False
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                # Somebody else's is not ours: ours has ended then, and says so.
                if child.exit_status() is None:
                    return True
        raise InfraError(f"nginx does not serve by HTTPS on 127.0.0.1:{port}")
