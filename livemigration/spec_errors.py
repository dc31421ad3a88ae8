"""One clear line for what is wrong with a specification: which key, what is wrong, what is allowed.

pydantic's own report takes several lines per error and names classes of ours; a person with a
scenario file needs the key as it is written there. `explain` turns a report into problems, most
telling first (an unknown key usually explains why another one is missing).
"""

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

_TYPE_NAMES: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


class SpecError(ValueError):
    """A specification that cannot be used; ``str()`` is one line ``key: what is wrong``."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: the dotted ``key`` ("" for the whole) and a one-line ``message``."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was most likely meant to be, or None when none is close."""
    names = list(known)
    folded = {known_name.lower().replace("_", "-"): known_name for known_name in names}
    wanted = name.lower().replace("_", "-")
    close = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def unknown_name(what: str, name: str, known: Sequence[str]) -> str:
    """``unknown WHAT 'name'; did you mean ...?``, or the list of what there is."""
    close = nearest(name, known)
    if close is not None:
        return f"unknown {what} {name!r}; did you mean {close!r}?"
    return f"unknown {what} {name!r}; known: {', '.join(sorted(known))}"


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """The problems of a failed validation of ``model``, unknown keys first."""
    details = error.errors(include_url=False)
    # A list counts as too short when its items are wrong: what is wrong inside says it all.
    places = [detail["loc"] for detail in details]
    details = [d for d in details if not any(_inside(place, d["loc"]) for place in places)]
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    problems = []
    for detail in details:
        steps = _walk(model, detail["loc"])
        key = ".".join(step.shown for step in steps if step.shown)
        holder = steps[-2].annotation if len(steps) > 1 else model
        problems.append(Problem(key, _message(dict(detail), holder)))
    return problems


def first_line(error: ValidationError, model: type[BaseModel]) -> str:
    """`explain` in one line: the first problem and how many more there are."""
    problems = explain(error, model)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]}{more}"


def _inside(place: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


@dataclass(frozen=True, slots=True)
class _Step:
    """One element of an error's location: its text ("" hides it) and the type found there."""

    shown: str
    annotation: Any


def _strip(annotation: Any) -> Any:
    """``annotation`` without Annotated[...]."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def members(annotation: Any) -> list[type[BaseModel]]:
    """The models that ``annotation`` allows, through unions and Annotated."""
    annotation = _strip(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for member in get_args(annotation) for model in members(member)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def kinds(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of ``kind`` that select ``model`` in a union."""
    field = model.model_fields.get("kind")
    annotation = _strip(field.annotation) if field is not None else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _tagged(annotation: Any) -> dict[object, Any]:
    """The members of a union that bear a Tag, by it."""
    found: dict[object, Any] = {}
    for member in get_args(annotation):
        if get_origin(member) is Annotated:
            inner, *notes = get_args(member)
            found |= {note.tag: inner for note in notes if isinstance(note, Tag)}
    return found


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> list[_Step]:
    """Follow an error's location through the models; union tags are followed but not shown."""
    steps = [_Step("", model)]
    for element in location:
        here = _strip(steps[-1].annotation)
        chosen = _tagged(here).get(element)
        if chosen is not None:
            steps[-1] = _Step(steps[-1].shown, chosen)
            continue
        models = members(here)
        by_tag = [model for model in models if element in kinds(model)]
        if len(models) > 1 and by_tag:
            steps[-1] = _Step(steps[-1].shown, by_tag[0])
            continue
        fields = models[0].model_fields if len(models) == 1 else {}
        if isinstance(element, str) and element in fields:
            steps.append(_Step(element, fields[element].annotation))
        elif isinstance(element, int) and get_args(here):
            steps.append(_Step(str(element), get_args(here)[0]))
        else:
            steps.append(_Step(str(element), None))
    return steps


def _message(detail: Mapping[str, Any], holder: Any) -> str:
    """What is wrong at one place, and what is allowed there."""
    kind, context, value = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "extra_forbidden":
        known = sorted({name for model in members(holder) for name in model.model_fields})
        return unknown_name("key", str(detail["loc"][-1]), known)
    if kind == "missing":
        return "missing; this key must be given"
    if kind == "union_tag_invalid":
        expected = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        return unknown_name("kind", str(context["tag"]), expected)
    if kind == "union_tag_not_found":
        return 'needs a key "kind" that says which one'
    if kind == "literal_error":
        return f"{_shown(value)} is not allowed; allowed: {context['expected']}"
    if kind in _TYPE_NAMES:
        return f"must be {_TYPE_NAMES[kind]}, not {_shown(value)}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]}, not {_shown(value)}"
    return _one_line(str(detail["msg"]).removeprefix("Value error, "))


def _shown(value: object) -> str:
    """A value as the user wrote it, short enough for one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())
