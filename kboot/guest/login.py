"""From a serial line to a `Guest`: past the login prompt, and the agent into the shell."""

from __future__ import annotations

import contextlib
import secrets
from importlib import resources

from kboot.boot_messages import LOGIN_PROMPTS
from kboot.console import Console
from kboot.deadline import Deadline
from kboot.errors import GuestError, GuestTimeout
from kboot.guest.agent import NOBODY, NoAnswer, ShellAgent, escape, pieces, twice
from kboot.guest.guest import Guest
from kboot.guest.history import CommandHistory
from kboot.log import logger

#: For an answer; a loaded TCG guest takes its time.
PATIENCE_S = 2.0

#: One after another, until there is a prompt. Each is harmless where the one before was right.
_KEYS = (
    # A getty, or a shell.
    b"\r",
    # An agent, whoever has started it.
    twice(f"@{NOBODY} 0 q") + b"\r",
    # A shell into which an agent was being typed, and a program that somebody has started.
    twice("exit") + b"\x03\r",
)


def wake_terminal(console: Console, deadline: Deadline) -> None:
    """Type what brings a prompt back, as far as that is possible."""
    for keys in _KEYS:
        since = console.mark()
        console.send(keys, echoed=False)
        with contextlib.suppress(GuestTimeout):
            console.expect_prompt(LOGIN_PROMPTS, deadline=deadline.within(PATIENCE_S), since=since)
            return


_LOGIN, _PASSWORD, *_SHELL = range(len(LOGIN_PROMPTS))

#: A line without a prompt for so long is nudged with the return key.
_NUDGE_S = 3.0

_REFUSALS = 3

_CTRL_C = b"\x03"

# Typed at an unknown prompt, with line editing and echo as they happen to be; hence one short
# line. The leading space keeps it out of a history. The inner shell reads lines from the terminal
# plainly: no editing, no prompt, no bracketed paste.
LOADER = (
    " unset HISTFILE PROMPT_COMMAND;export TERM=dumb;stty -echo;stty cols 999;"
    """sh -c 'while IFS="|" read -r l a b;do [ "$l$a" = "${#b}$b" ]&&eval "$a";done'"""
)

#: Characters of the agent's text per line.
_TEXT_SIZE = 300


def log_in(
    console: Console,
    user: str,
    password: str | None,
    deadline: Deadline,
    *,
    command_timeout_s: float = 60.0,
    history: CommandHistory | None = None,
) -> Guest:
    """Log in on the serial line and return the guest.

    A shell that is there already (autologin) is taken as it is. `GuestError` names the user when
    the login is refused; `GuestTimeout` when no prompt comes.
    """
    agent = _Login(console, user, password).run(deadline)
    return Guest(agent, command_timeout_s=command_timeout_s, history=history)


class _Login:
    """The state of one login: what was typed already."""

    def __init__(self, console: Console, user: str, password: str | None) -> None:
        self._console = console
        self._user = user
        self._password = password
        self._tries = 0
        self._typed_user = False

    def run(self, deadline: Deadline) -> ShellAgent:
        since = self._console.line_start()
        while True:
            try:
                prompt = self._console.expect_prompt(
                    LOGIN_PROMPTS, deadline=deadline.within(_NUDGE_S), since=since
                )
            except GuestTimeout:
                if deadline.expired:
                    raise
                since = self._console.mark()
                self._console.sendline()
                continue
            since = prompt.end
            if prompt.index == _LOGIN:
                self._type_user(prompt.before)
            elif prompt.index == _PASSWORD:
                self._type_password()
            elif (agent := self._load(deadline)) is not None:
                return agent
            else:
                since = self._console.mark()
                self._console.send(_CTRL_C + b"\r", echoed=False)

    def _type_user(self, before: str) -> None:
        if self._tries == _REFUSALS:
            said = before.strip().rpartition("\n")[2] or "it asks again"
            reason = "Login incorrect" if "incorrect" in before else said
            raise GuestError(f"login as {self._user!r} refused {self._tries} times: {reason}")
        self._tries += 1
        self._typed_user = True
        self._console.sendline(self._user)

    def _type_password(self) -> None:
        if not self._typed_user:
            # Something else was taken for the user's name: the way out is to fail.
            self._console.sendline()
            return
        if self._password is None:
            raise GuestError(f"the guest asks for the password of {self._user!r}; none was given")
        self._console.sendline(self._password, echoed=False)

    def _load(self, deadline: Deadline) -> ShellAgent | None:
        """Start the agent in the shell; None when nobody answers."""
        try:
            return load_agent(self._console, deadline.within(30))
        except GuestTimeout:
            if deadline.expired:
                raise
        except NoAnswer as error:
            logger.debug("no agent in the shell: %s", error)
        return None


def load_agent(console: Console, deadline: Deadline) -> ShellAgent:
    """Start the agent at a shell prompt. `GuestError` when it does not answer."""
    nonce = str(100_000 + secrets.randbelow(900_000))
    agent = ShellAgent(console, nonce)
    console.sendline(LOADER)
    answer = f"r(){{ printf '~%s:%s:0:0:3:1,1;\\n' {nonce} $1;}};r 1"
    agent.exchange(answer, 1, deadline, tries=3)
    text = escape(agent_text(nonce).encode())
    names = []
    for number, piece in enumerate(pieces(text, _TEXT_SIZE), start=2):
        agent.exchange(f"p{number}='{piece}';r {number}", number, deadline)
        names.append(f"$p{number}")
    length = len(agent_text(nonce))
    last = len(names) + 2
    joined = f'Z=$(printf %b "{"".join(names)}");[ ${{#Z}} = {length} ]&&r {last}'
    agent.exchange(joined, last, deadline)
    console.send(twice('eval "$Z"'), echoed=False)
    start = console.mark()
    agent.hello(deadline)
    if f"@{nonce}".encode() in console.raw(start):
        logger.warning("the guest's terminal still echoes: is there no stty in it?")
    return agent


def agent_text(nonce: str) -> str:
    """The agent's program, without comments and indentation."""
    source = (resources.files("kboot.guest") / "agent.sh").read_text(encoding="ascii")
    lines = (line.strip() for line in source.splitlines())
    return "\n".join([f"N={nonce}", *(line for line in lines if line and line[0] != "#")])
