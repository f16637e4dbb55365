"""The form of what is kept as JSON, and where a value that was read is not of it.

    {"stage": str, "threads?": (range(1, 4097), None), "parts?": {...: {"seconds": float}}, "notes?": [str], ...: (str, None)}

A type, of numbers those that can be computed with, and NaN; a whole number in a `range`; None for null; what a function says yes to; of a
tuple any; `[form]` a list of such; of an object a form for each key, "key?" one that may be missing, `...` for all others, which without
it may hold anything.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from bridle.core.errors import brief_repr

Form = Any  # as above
Fields = Mapping[Any, Form]  # of an object
LARGEST = 1e150  # of a number: the square of a larger one may be none


def float_of_at_least_0(value: Any) -> bool:
    return is_of_kind(value, float) and bool(value >= 0)


NUMBER: Form = (float, None)  # a metric; null where it was not measured, or was not finite
SECONDS: Form = float_of_at_least_0


def form_fault(value: object, form: Form) -> str:
    """Where the value is not of the form: "it needs seconds as float, got seconds = 'x'"; empty where it is."""
    return next(faults(value, form, ""), "")


def faults(value: Any, form: Form, place: str) -> Iterator[str]:
    if isinstance(form, tuple):
        form = next((one for one in form if is_of_kind(value, one)), form)
    if not is_of_kind(value, form):
        yield f"it needs {place or 'all of it'} as {form_words(form)}, got {f'{place} = ' * bool(place)}{brief_repr(value)}"
    elif isinstance(form, list):
        for number, inner in enumerate(value):
            yield from faults(inner, form[0], f"{place}[{number}]")
    elif isinstance(form, Mapping):
        start, named = f"{place}." * bool(place), {str(key).removesuffix("?"): key for key in form if key is not ...}
        for name, key in named.items():
            if name in value:
                yield from faults(value[name], form[key], start + name)
            elif key == name:
                yield f"it needs {start}{name} as {form_words(form[key])}, got no {start}{name}"
        for name in [name for name in value if ... in form and name not in named]:
            yield from faults(value[name], form[...], start + name[:60])


def is_of_kind(value: Any, form: Form) -> bool:
    """Whether a value is of a form, whatever is inside of it."""
    if isinstance(form, tuple):
        return any(is_of_kind(value, one) for one in form)
    if isinstance(form, Mapping | list):
        return isinstance(value, dict if isinstance(form, Mapping) else list)
    if form in (int, float):
        kinds = (int,) if form is int else (int, float)
        return type(value) in kinds and (abs(value) <= LARGEST or value != value)
    if isinstance(form, range):
        return type(value) is int and value in form
    if form is None:
        return value is None
    return isinstance(value, form) if isinstance(form, type) else bool(form(value))


def form_words(form: Form) -> str:
    if isinstance(form, tuple):
        return " or ".join(map(form_words, form))
    if isinstance(form, Mapping | list):
        return "an object" if isinstance(form, Mapping) else "a list"
    if isinstance(form, range):
        return f"a whole number from {form[0]:,} to {form[-1]:,}"
    return "null" if form is None else str(form.__name__).replace("_", " ")
