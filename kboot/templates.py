"""Find and render templates, such as those in ``ipxe/`` and ``nginx/``: the only home of `jinja2`.

The wheel carries both folders in ``kboot/_data``; in a checkout they are beside the package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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


class TemplateError(ValueError):
    """A template of the user's is wrong; `line` is where, 0 if that is not known."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def variables_of(text: str) -> list[tuple[str, int]]:
    """The variables that a template wants from outside, each with its first line.

    `TemplateError` if it is no template.
    """
    import jinja2.meta  # noqa: PLC0415  as above

    try:
        tree = _environment().parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(error.message or "not a template", error.lineno) from error
    wanted = jinja2.meta.find_undeclared_variables(tree)
    lines: dict[str, int] = {}
    for name in tree.find_all(jinja2.nodes.Name):
        if name.name in wanted:
            lines.setdefault(name.name, name.lineno)
    return sorted(lines.items(), key=lambda item: item[1])


def render_text(text: str, **values: object) -> str:
    """Render a template of the user's. `TemplateError` if that goes wrong."""
    try:
        return _environment().from_string(text).render(**values)
    except Exception as error:  # a template can do anything that Python can
        raise TemplateError(str(error), _line_of(error)) from error


def _line_of(error: BaseException) -> int:
    """The line of a user's template in which something was raised."""
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def render_html(
    folder: Path, name: str, *, as_shown: Callable[[str], str], **values: object
) -> str:
    """Render a template for HTML of `folder`: whatever a value says, it stays text.

    Each text is given to `as_shown` before.
    """
    import jinja2  # noqa: PLC0415

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        # What is safe already is of the template's own.
        finalize=lambda value: as_shown(value) if type(value) is str else value,
    )
    return environment.get_template(f"{name}.j2").render(**values)
