"""Troubles to order: what the next requests of a kind get instead of an answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field

from aiohttp import web

from tests.kubevirt.cluster import answers
from tests.kubevirt.cluster.connections import cut

#: Set on requests whose body is changed on the way.
DAMAGED = web.RequestKey("damaged", bool)

#: How long requests that are to come together are waited for.
_TOGETHER_S = 10.0


@dataclass(slots=True, kw_only=True)
class Fault:
    """For the next `count` requests whose method and path the pattern finds."""

    pattern: str
    count: int = 1
    #: Answered with this; 0 cuts the connection.
    status: int = 0
    #: Seconds to wait before.
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    #: Whether the request is done before its answer gets lost.
    done: bool = False
    #: How many of the body's bytes are taken before the connection is cut.
    cut_after: int = 0
    #: Whether its body is changed on the way through the service proxy.
    damage: bool = False
    #: How many of them must be under way at once before any goes on; else they are refused.
    together: int = 0
    arrived: list[asyncio.Event] = field(default_factory=list)


class Faults:
    def __init__(self) -> None:
        self.pending: list[Fault] = []
        self.hits = 0

    def order(self, fault: Fault) -> None:
        self.pending.append(fault)

    def take(self, request: web.Request) -> Fault | None:
        what = f"{request.method} {request.path_qs}"
        for fault in self.pending:
            if re.search(fault.pattern, what):
                fault.count -= 1
                self.hits += 1
                if fault.count == 0:
                    self.pending.remove(fault)
                return fault
        return None

    async def happen(self, fault: Fault, request: web.Request) -> web.StreamResponse | None:
        """The answer instead; None to go on as ever."""
        await asyncio.sleep(fault.delay_s)
        if fault.together:
            return await _meet(fault)
        if fault.damage:
            request[DAMAGED] = True
            return None
        if fault.cut_after:
            await request.content.readexactly(fault.cut_after)
        if fault.status:
            answer = answers.status(fault.status, "InternalError", "ordered by the test")
            answer.headers.update(fault.headers)
            return answer
        if fault.delay_s and not fault.cut_after:
            return None
        cut(request)
        return answers.status(500, "InternalError", "never seen")


async def _meet(fault: Fault) -> web.StreamResponse | None:
    """Go on when as many requests as have to be are under way; refuse it when they do not come."""
    all_there = asyncio.Event()
    fault.arrived.append(all_there)
    if len(fault.arrived) >= fault.together:
        for event in fault.arrived:
            event.set()
    try:
        await asyncio.wait_for(all_there.wait(), _TOGETHER_S)
    except TimeoutError:
        return answers.status(403, "Forbidden", f"{fault.together} were to come together")
    return None
