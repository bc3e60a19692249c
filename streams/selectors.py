"""Which jobs an operator means: a small closed language over what a delivery states.

condition   = comparison | condition `and` condition | condition `or` condition | `not` condition | (condition)
comparison  = operand (`==` `!=` `<` `<=` `>` `>=` `in` `not in`) operand, at least one of them a field
operand     = field | string | number | true | false | null | [operand, ...] without fields
field       = type | queue | organization | attempt | priority | payload.NAME, payload.NAME.NAME, payload["NAME"]

Payload fields go by the names that publishers write and events show, or by those of Python. Values are compared as
events show them: instants and bytes are strings. A comparison with a field that is not there, or of unlike kinds, is
false, whatever its operator; so is one with a secret field, lest somebody find out what is in it by asking.
"""

import ast
import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic_core import to_jsonable_python

from streams.delivery import Delivery
from streams.jobs import Handler, Payload, secret_fields
from streams.queues import QUEUES

LENGTH_MAX = 1_000
"""Most characters of a selector."""

DEPTH_MAX = 20

Selector = Callable[[Delivery], bool]
Value = Callable[[Delivery], Any]

_MISSING: Final = object()

_FIELDS: Mapping[str, Value] = {
    "type": lambda delivery: delivery.handler.job_type,
    "queue": lambda delivery: delivery.queue.name,
    "organization": lambda delivery: delivery.organization_id,
    "attempt": lambda delivery: delivery.attempt,
    "priority": lambda delivery: delivery.priority,
}
_WORDS = {"true": True, "false": False, "null": None}

_ORDERS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip

ALLOWED = (
    f"{', '.join(_FIELDS)} and payload.NAME, compared with == != < <= > >= in, not in "
    "to strings, numbers, true, false, null and lists of them, joined by and, or, not"
)


class InvalidSelector(ValueError):
    """A text is no selector; says where, and what is allowed."""


def selector_of(text: str) -> Selector:
    """Return what tells whether a delivery is meant; it never raises. Raises InvalidSelector."""
    return _Compiler(text).condition(_parse(text), 0)


def check_selector(text: str, handlers: Iterable[Handler]) -> None:
    """Raise InvalidSelector when a text is no selector, or names what no job of some handlers can have."""
    compiler, known = _Compiler(text), list(handlers)
    condition = _parse(text)
    compiler.condition(condition, 0)
    names = {"type": {one.job_type for one in known}, "queue": set(QUEUES)}
    for field, string in _compared(condition):
        if string not in names.get(field, {string}):
            raise InvalidSelector(
                f"unknown {field} {string!r}; expected one of {', '.join(sorted(names[field]))}"
            )
    visible = {name for one in known for name in _attributes(one.payload)}
    secret = {name for one in known for name in secret_fields(one.payload)}
    for name, *_ in compiler.paths:
        if name not in visible:
            raise InvalidSelector(
                f"payload.{name} is secret, and secrets are not compared"
                if name in secret | {to_camel(one) for one in secret}
                else f"no job type has a field payload.{name}"
            )


def _compared(condition: ast.expr) -> Iterator[tuple[str, str]]:
    """Yield each name with each string that it is compared with."""
    for node in ast.walk(condition):
        if isinstance(node, ast.Compare):
            parts = [part for one in (node.left, *node.comparators) for part in ast.walk(one)]
            strings = [
                one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)
            ]
            names = [one.id for one in (node.left, *node.comparators) if isinstance(one, ast.Name)]
            yield from itertools.product(names, strings)


def _parse(text: str) -> ast.expr:
    if len(text) > LENGTH_MAX:
        raise InvalidSelector(f"a selector has at most {LENGTH_MAX} characters, got {len(text)}")
    # As one line, so that a position is a column.
    line = " ".join(text.split("\n")).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        raise InvalidSelector(f"column {error.offset or 1}: {error.msg}; allowed are {ALLOWED}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidSelector(f"{error or 'it is too deep'}; allowed are {ALLOWED}") from None


class _Compiler:
    def __init__(self, text: str) -> None:
        self._bytes = " ".join(text.split("\n")).strip().encode("utf-8", "replace")
        self.paths: list[tuple[str, ...]] = []

    def _error(self, node: ast.AST, what: str) -> InvalidSelector:
        # Python counts columns in bytes.
        column = len(self._bytes[: getattr(node, "col_offset", 0)].decode("utf-8", "replace")) + 1
        return InvalidSelector(f"column {column}: {what}; allowed are {ALLOWED}")

    def _source(self, node: ast.expr) -> str:
        return self._bytes[node.col_offset : node.end_col_offset].decode("utf-8", "replace")[:40]

    def condition(self, node: ast.expr, depth: int) -> Selector:
        if depth > DEPTH_MAX:
            raise self._error(node, f"it is deeper than {DEPTH_MAX}")
        match node:
            case ast.BoolOp(ast.And(), values):
                parts = [self.condition(one, depth + 1) for one in values]
                return lambda delivery: all(part(delivery) for part in parts)
            case ast.BoolOp(ast.Or(), values):
                parts = [self.condition(one, depth + 1) for one in values]
                return lambda delivery: any(part(delivery) for part in parts)
            case ast.UnaryOp(ast.Not(), operand):
                part = self.condition(operand, depth + 1)
                return lambda delivery: not part(delivery)
            case ast.Compare(left, [relation], [right]):
                return self._comparison(node, left, relation, right)
            case ast.Compare():
                raise self._error(node, "one comparison at a time, such as 1 < attempt and attempt < 3")
            case _:
                raise self._error(node, "expected a comparison")

    def _comparison(self, node: ast.expr, left: ast.expr, relation: ast.cmpop, right: ast.expr) -> Selector:
        first, second = self._field(left), self._field(right)
        if first is None and second is None:
            raise self._error(node, "expected a comparison with a field")
        a = first or self._constant(left)
        b = second or self._constant(right)
        test = self._relation(node, relation)

        def compare(delivery: Delivery) -> bool:
            found, other = a(delivery), b(delivery)
            return found is not _MISSING and other is not _MISSING and test(found, other)

        return compare

    def _relation(self, node: ast.expr, relation: ast.cmpop) -> Callable[[Any, Any], bool]:
        match relation:
            case ast.Eq():
                return _equal
            case ast.NotEq():
                return lambda a, b: _comparable(a, b) and not _equal(a, b)
            case ast.In():
                return lambda a, b: _contains(b, a) is True
            case ast.NotIn():
                return lambda a, b: _contains(b, a) is False
            case ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE():
                test = _ORDERS[type(relation)]
                return lambda a, b: _kind(a) == _kind(b) in ("number", "string") and test(a, b)
            case _:
                raise self._error(node, "this comparison is none of them")

    def _field(self, node: ast.expr) -> Value | None:
        """Return what looks a field up, or None when the operand is none."""
        names: list[str] = []
        start = node
        while isinstance(start, ast.Attribute | ast.Subscript):
            if isinstance(start, ast.Attribute):
                names.append(start.attr)
            elif isinstance(start.slice, ast.Constant) and isinstance(start.slice.value, str):
                names.append(start.slice.value)
            else:
                raise self._error(start.slice, 'expected the name of a field, as in payload["name"]')
            start = start.value
        if len(names) > DEPTH_MAX:
            raise self._error(node, f"it is deeper than {DEPTH_MAX}")
        if not isinstance(start, ast.Name):
            if names:
                raise self._error(start, "expected payload before the name of a field")
            return None
        if start.id == "payload" and names:
            path = tuple(reversed(names))
            self.paths.append(path)
            return lambda delivery: _look_up(delivery.payload, path)
        if start.id in _FIELDS and not names:
            return _FIELDS[start.id]
        if start.id in _WORDS and not names:
            return None
        raise self._error(start, f"{self._source(node)!r} is no field")

    def _constant(self, node: ast.expr) -> Value:
        value = self._literal(node)
        return lambda delivery: value

    def _literal(self, node: ast.expr, *, nested: bool = False) -> Any:
        match node:
            case ast.Constant(value) if value is None or isinstance(value, bool | int | float | str):
                return value
            case ast.UnaryOp(ast.USub(), ast.Constant(value)) if type(value) in (int, float):
                return -value  # type: ignore[operator] # a number, as the guard says
            case ast.Name(name) if name in _WORDS:
                return _WORDS[name]
            case ast.List(elements) if not nested:
                return [self._literal(one, nested=True) for one in elements]
            case _:
                raise self._error(node, f"{self._source(node)!r} is no value")


def _look_up(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if isinstance(value, BaseModel):
            attribute = _attributes(type(value)).get(name)
            value = _MISSING if attribute is None else getattr(value, attribute)
        elif isinstance(value, dict):
            value = value.get(name, _MISSING)
        else:
            value = _MISSING
        if value is _MISSING:
            return value
    return _shown(value)


@cache
def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """Return the attribute behind each name of a field that is no secret, on the wire and in Python."""
    secrets = secret_fields(model) if issubclass(model, Payload) else set()
    fields = {name: info for name, info in model.model_fields.items() if name not in secrets}
    return {alias: name for name, info in fields.items() for alias in (name, info.alias or name)}


def _shown(value: Any) -> Any:
    """Return a value as events show it."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, BaseModel | dict):
        return _MISSING
    return to_jsonable_python(value, bytes_mode="base64", by_alias=True, fallback=lambda unknown: None)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "truth"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "list"
        case _:
            return "other"


def _comparable(a: Any, b: Any) -> bool:
    """Return whether two values are of one kind; whether a field is null may be asked of any."""
    return _kind(a) == _kind(b) or a is None or b is None


def _equal(a: Any, b: Any) -> bool:
    return _kind(a) == _kind(b) and bool(a == b)


def _contains(whole: Any, part: Any) -> bool | None:
    """Return whether a list has an element, or a string another one within it; None when neither can be."""
    if isinstance(whole, list):
        return any(_equal(one, part) for one in whole)
    if isinstance(whole, str) and isinstance(part, str):
        return part in whole
    return None
