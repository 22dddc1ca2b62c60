"""A real browser for tests of pages: Debian's Chromium, without a window."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

#: Debian's packages chromium-headless-shell and chromium, and what others call theirs.
_PROGRAMS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
_ARGUMENTS = (
    # As root, and in a container, it has no sandbox.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(slots=True)
class OpenPage:
    """A page in the browser, and what went wrong in it."""

    #: Of playwright.
    page: Any
    #: Messages of the console, exceptions, and requests that the page has made.
    faults: list[str] = field(default_factory=list)

    def shown(self) -> list[str]:
        """The ids of the tests that the table shows."""
        found: list[str] = self.page.eval_on_selector_all(
            "#cases tbody tr:not([hidden])",
            "rows => rows.map(row => row.querySelector('.id').textContent)",
        )
        return found


class Browser:
    """Opens pages; made by `open_browser`."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    @contextlib.contextmanager
    def open(
        self, path: Path, *, scheme: Literal["light", "dark"] = "light", script: bool = True
    ) -> Iterator[OpenPage]:
        """A file, in a window of its own."""
        context = self._browser.new_context(
            color_scheme=scheme,
            java_script_enabled=script,
            viewport={"width": 1280, "height": 900},
        )
        opened = OpenPage(context.new_page())
        url = path.as_uri()
        opened.page.on("console", lambda message: opened.faults.append(message.text))
        opened.page.on("pageerror", lambda error: opened.faults.append(str(error)))

        def see(request: Any) -> None:
            if request.url.partition("#")[0] != url:
                opened.faults.append(f"request for {request.url}")

        opened.page.on("request", see)
        opened.page.goto(url)
        try:
            yield opened
        finally:
            context.close()


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser for the length of the ``with``."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.fail("no Chromium: run make setup, or install the package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_ARGUMENTS))
        try:
            yield Browser(browser)
        finally:
            browser.close()
