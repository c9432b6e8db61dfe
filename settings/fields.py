"""What stands on the field of a key: default, range, meaning, and its part in a run's result.

A section of keys is a dataclass. The text under a field is its meaning; the rest is in the field's
`metadata`, which `key` fills. `modeling`, which imports nothing of kvlab, writes the same by hand.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

LARGEST_SEED = 2**63 - 1
LABEL = "letters, digits, '.', '_' and '-', at most 100"
"""What a name has to be that becomes part of the name of a folder."""

Hint = Callable[[str, str, Sequence[str]], str]
"""Called with a key, a wrong word and those it takes; returns the end of the message, or ''."""


def key(
    default: Any = "???",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    one_of: Sequence[str] = (),
    hint: Hint | None = None,
    kind: str = "",
    changes_result: bool = True,
) -> Any:
    """Return the field of a key.

    Args:
        default: Its value, or what makes it; "???" if it has to be given.
        at_least: Lower bound of a number that is finite.
        above: The same, itself excluded.
        at_most: Upper bound.
        below: The same, itself excluded.
        one_of: The words that it takes.
        hint: Adds to the message for another word.
        kind: What a text is to the command line: `path`; `folder`, a path whose ~ is replaced as it
            is typed; `prose`, in which a comma is a comma; `label`, part of folder names; `word`,
            one of a few that other keys decide; any name if not given.
        changes_result: Whether a run can only be resumed with the same value.
    """
    rules = {
        **{"at_least": at_least, "above": above, "at_most": at_most, "below": below},
        **{"one_of": one_of or None, "hint": hint, "kind": kind or None},
        "changes_result": None if changes_result else False,
    }
    metadata = {name: rule for name, rule in rules.items() if rule is not None}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """A dataclass of keys, checked by what stands on its fields and by what they say together."""

    PREFIX: ClassVar[str] = ""

    def __init_subclass__(cls, prefix: str = "") -> None:
        super().__init_subclass__()
        cls.PREFIX = prefix

    def problems(self) -> list[str]:
        """Return what is wrong with the values, one message each, naming the key."""
        return [*out_of_range(self, self.PREFIX), *self.conflicts()]

    def conflicts(self) -> list[str]:
        """Return what is wrong with values that have to fit others."""
        return []


def out_of_range(section: Any, prefix: str) -> Iterable[str]:
    """Yield a message for each value that its own field does not allow.

    Args:
        section: A dataclass of keys.
        prefix: Stands before the name of each.
    """
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{prefix}{field.name}"
        if field.default == "???" and value in ("", "???"):
            yield f"{name} is not set"
        elif value is not None and not isinstance(value, list | dict):
            may_be_null = allows_null(hints(type(section))[field.name])
            if wanted := _wanted(value, field.metadata, may_be_null):
                hint = field.metadata.get("hint", _no_hint)
                tail = hint(name, value, field.metadata.get("one_of", ()))
                yield f"{name} ({value!r}) must be {wanted}{tail}"


def _no_hint(*_: object) -> str:
    return ""


def _wanted(value: Any, rules: typing.Mapping[str, Any], may_be_null: bool) -> str:
    """Say what a value has to be, if it is not that; else return ''."""
    if "one_of" in rules:
        words = [*(["null"] if may_be_null else []), *rules["one_of"]]
        return "" if value in rules["one_of"] else either(words)
    if rules.get("kind") == "label":
        return "" if is_label(value) else LABEL
    low, high = rules.get("at_least", rules.get("above")), rules.get("at_most", rules.get("below"))
    if low is None:
        return ""
    is_above = value > low or ("at_least" in rules and value == low)
    is_below = high is None or value < high or ("at_most" in rules and value == high)
    if math.isfinite(value) and is_above and is_below:
        return ""
    null = ", or null" if may_be_null else ""
    if "at_least" in rules and "at_most" in rules:
        return f"from {_shown(low)} to {_shown(high)}{null}"
    text = f"{'at least' if 'at_least' in rules else 'above'} {_shown(low)}"
    if high is not None:
        text += f" and {'at most' if 'at_most' in rules else 'below'} {_shown(high)}"
    return text + null


def is_label(name: str) -> bool:
    """Return whether a name can be part of the name of a folder."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None


def _shown(bound: float) -> str:
    return "2^63 - 1" if bound == LARGEST_SEED else f"{bound:,}"


def either(words: Sequence[str]) -> str:
    """Return words as a choice: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def hints(schema: Any) -> dict[str, Any]:
    """Return the types of a section's keys, by their names."""
    return _hints(schema)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def allows_null(hint: Any) -> bool:
    """Return whether a type has None among what it allows."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return is_union and types.NoneType in typing.get_args(hint)


def along(schema: type, dotted: str) -> tuple[list[dataclasses.Field[Any]], Any]:
    """Return the fields that a dotted key leads through, and the type of the last.

    Names that a user gives, as those of a mixture's corpora are, are passed over. For a key that
    there is not, the fields end where it leaves the schema, and the type is None.
    """
    found: list[dataclasses.Field[Any]] = []
    hint: Any = schema
    for name in dotted.split("."):
        if dataclasses.is_dataclass(hint):
            known = {field.name: field for field in dataclasses.fields(hint)}
            if name not in known:
                return found, None
            found.append(known[name])
            hint = hints(hint)[name]
        elif typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        else:
            return found, None
    return found, hint


def default_of(schema: type, dotted: str) -> Any:
    """Return the default of a key; `MISSING` for one whose section has names that a user gives."""
    fields, hint = along(schema, dotted)
    if hint in (None, Any) or fields[-1].default_factory is dict:
        return dataclasses.MISSING
    made = fields[-1].default_factory
    return fields[-1].default if made is dataclasses.MISSING else made()


def changes_result(schema: type, dotted: str) -> bool:
    """Return whether a key has a part in what a run computes; one that is not known has."""
    fields, _ = along(schema, dotted)
    return all(field.metadata.get("changes_result", True) for field in fields)


@functools.cache
def meanings(schema: type) -> dict[str, str]:
    """Return what the text under each field of a section says, by the key's name."""
    (defined,) = ast.parse(inspect.getsource(schema)).body
    return meanings_in(defined)


def meanings_in(defined: ast.AST) -> dict[str, str]:
    """Return the same for a class that is not imported."""
    body: list[ast.stmt] = getattr(defined, "body", [])
    return {
        field.target.id: " ".join(str(text.value.value).split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
