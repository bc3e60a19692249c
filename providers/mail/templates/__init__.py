"""Message templates: `<name>.txt`, whose first line is the subject, and `<name>.html`.

Variables are text. HTML is escaped, and a variable that a template uses but nobody gave is refused, so no
half-filled message leaves.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from providers.errors import Refused

if TYPE_CHECKING:
    from jinja2 import Environment, Template

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Content:
    """A filled template."""

    subject: str
    text: str
    html: str


@cache
def names() -> tuple[str, ...]:
    """Return the name of every template."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.txt")))


def render(name: str, variables: dict[str, str]) -> Content:
    """Fill a template. Raises Refused when it is unknown or a variable is missing."""
    from jinja2 import UndefinedError

    if name not in names():
        raise Refused(f"unknown template {name!r}; expected one of {', '.join(names())}")
    # The only variable that lands in an attribute; escaping alone would let `javascript:` through.
    if not variables.get("url", "https://").startswith(("https://", "http://")):
        raise Refused(f"template {name!r}: url must start with https:// or http://")
    subject, text, html = _templates(name)
    try:
        return Content(subject.render(variables), text.render(variables), html.render(variables))
    except UndefinedError as error:
        raise Refused(f"template {name!r}: {error.message}") from None


@cache
def _templates(name: str) -> "tuple[Template, Template, Template]":
    environment = _environment()
    # The subject is filled on its own: a line break in a variable must not push the rest into the text.
    subject, _, text = (_FOLDER / f"{name}.txt").read_text("utf-8").partition("\n")
    return (
        environment.from_string(subject),
        environment.from_string(text.lstrip()),
        environment.get_template(f"{name}.html"),
    )


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
