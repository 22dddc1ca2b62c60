"""Find and render the templates in ``ipxe/`` and ``nginx/``: the only home of `jinja2`.

The wheel carries both folders in ``kboot/_data``; in a checkout they are beside the package.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

_FOLDERS = ("ipxe", "nginx")


def _root() -> Path:
    package = Path(__file__).parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent


@functools.cache
def _environment() -> jinja2.Environment:
    # Imported when the first template is rendered: the plugin is loaded in every pytest run.
    import jinja2  # noqa: PLC0415

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_root()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  iPXE scripts and nginx configurations are not HTML
    )


def names() -> list[str]:
    """The names `render` knows, such as ``ipxe/boot.ipxe``."""
    root = _root()
    return sorted(
        path.relative_to(root).as_posix().removesuffix(".j2")
        for folder in _FOLDERS
        for path in (root / folder).rglob("*.j2")
    )


def render(name: str, **values: object) -> str:
    """Render a template. A value the template asks for and does not get is an error."""
    return _environment().get_template(f"{name}.j2").render(**values)
