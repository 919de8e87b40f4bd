"""Pages and cards from the Jinja templates that lie beside the code.

Values are escaped in HTML and left as they are in Markdown; a name that a template misses is an
error. Reads the template, writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


def rendered(template: Path, filters: Mapping[str, Callable[..., str]], /, **values: Any) -> str:
    """Return the text of `template` (*.html.j2 or *.md.j2) with `values` filled in.

    Raises:
        jinja2.UndefinedError: the template names a value that is not given.
    """
    environment = _environment(template.parent)
    environment.filters |= filters
    return environment.get_template(template.name).render(**values)


@cache
def _environment(folder: Path) -> Environment:
    """The folder's templates; one that was compiled stays for the next page of this process."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
