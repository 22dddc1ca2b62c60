"""What a machine is given to load: the boot server, its files, and the script that names them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from kboot.backend import MendableServer
from kboot.boot import Boot
from kboot.deadline import Deadline
from kboot.errors import InfraError, KbootError
from kboot.machines.keeping import Keeper
from kboot.machines.pushes import Push, Pushes

#: For a boot server that is made once more.
_MEND_LIMIT_S = 120.0


class Supply:
    """Switches what the machine loads next, and mends its boot server where that can be done.

    `notice` is told, in words for people, what had to be mended.
    """

    def __init__(
        self, boot: Boot, pushes: Pushes, keeper: Keeper, notice: Callable[[str], None]
    ) -> None:
        self._boot = boot
        self._pushes = pushes
        self._keeper = keeper
        self._notice = notice

    def switch(self, push: Push) -> dict[str, Any]:
        """Make a push what the machine loads from its next reset on."""
        self.restock(push)
        before = self._pushes.current
        accepted = self._pushes.accept(push)
        try:
            nonce = self._load(accepted)
        except KbootError:
            self._pushes.current = before
            raise
        return {**accepted.as_json(), "nonce": nonce}

    def renew(self) -> None:
        """Have the machine load the same once more, and yet told from before by its nonce."""
        if current := self._pushes.current:
            self.restock(current)
            self._load(current)

    def check(self) -> None:
        """`restock` with what the machine loads next."""
        if current := self._pushes.current:
            self.restock(current)

    def restock(self, push: Push) -> None:
        """See to it that the boot server is there, and has what a push is made of."""
        self.mend()
        if isinstance(self._boot.server, MendableServer):
            self._pushes.restock(push, self._boot.server)

    def mend(self) -> bool:
        """Make the boot server once more if it is gone, and can be made; whether that was so.

        `InfraError` if it is gone for good.
        """
        server = self._boot.server
        try:
            server.check()
        except InfraError as error:
            if not isinstance(server, MendableServer):
                raise
            server.mend(Deadline(_MEND_LIMIT_S))
            self._notice(f"{error}; it was made once more")
            return True
        return False

    def _load(self, push: Push) -> str:
        """Have the script load a push; its new nonce is noted before any machine can see it."""
        nonce = secrets.token_hex(8)
        self._keeper.will_boot(nonce, push)
        return self._boot.load_next(push.load, nonce)
