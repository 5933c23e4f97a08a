"""Docstrings of the public API agree with the signatures: arguments, fields and results."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

MODULES = ["", ".adapters", ".integrations", ".model", ".optim", ".research", ".rules", ".testing"]
# Exported for the wrapper, not for users.
INTERNAL = {"checked_theta", "no_fraction", "signed_bound"}


def public() -> dict[str, Any]:
    """The exported classes and functions, by the first name that they are exported under."""
    found: dict[str, Any] = {}
    for suffix in MODULES:
        module = importlib.import_module(f"momo_wrap{suffix}")
        for name in module.__all__:
            value = getattr(module, name)
            is_known = any(value is other for other in found.values())
            if name not in INTERNAL and not is_known and callable(value):
                found[f"{module.__name__}.{name}"] = value
    return {name: value for name, value in found.items() if getattr(value, "__doc__", None)}


def methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions and methods, without those that a base class documents."""
    for name, value in PUBLIC.items():
        if inspect.isfunction(value):
            yield name, value
        for key, its in vars(value).items() if isinstance(value, type) else ():
            function = inspect.unwrap(its.__func__ if isinstance(its, classmethod) else its)
            inherited = isinstance(value, type) and any(key in vars(b) for b in value.__mro__[1:])
            if inspect.isfunction(function) and not key.startswith("_") and not inherited:
                yield f"{name}.{key}", function


PUBLIC = public()
METHODS = dict(methods())
CLASSES = {name: value for name, value in PUBLIC.items() if isinstance(value, type)}


def section(doc: str, *titles: str) -> set[str]:
    """The names that the sections of a docstring describe, without asterisks."""
    names: set[str] = set()
    for title in titles:
        found = re.search(rf"^{title}:\n((?: .*\n|\n)*)", f"{doc}\n", re.MULTILINE)
        for entry in re.findall(r"^    (\S.*?): ", found[1] if found else "", re.MULTILINE):
            names |= {name.strip("*` ") for name in entry.split(",")}
    return names


def refers(doc: str) -> bool:
    """Whether a docstring refers to another one for its arguments."""
    return re.search(r"\b[Ss]ee `", doc) is not None


def arguments(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of the arguments, and whether there are others."""
    given = inspect.signature(function).parameters.values()
    others = {p.name for p in given if p.kind is inspect.Parameter.VAR_KEYWORD}
    # `MoMoWrapper` takes `**unknown` only to say where they belong.
    names = {p.name for p in given} - {"self", "cls", "_"} - (others & {"unknown"})
    return names, bool(others)


@pytest.mark.parametrize("name", METHODS)
def test_functions(name: str) -> None:
    function = METHODS[name]
    doc = inspect.cleandoc(function.__doc__ or "")
    assert doc, f"{name} has no docstring"
    described, (expected, takes_others) = section(doc, "Args"), arguments(function)
    if not refers(doc.partition("\n\n")[0]):
        assert expected <= described, f"{name} does not describe {expected - described}"
        result = inspect.signature(function).return_annotation
        returns = "Returns:\n" in doc or doc.startswith("Return") or "Iterator" in str(result)
        assert returns or result in (None, "None"), f"{name} does not say what it returns"
    assert takes_others or described <= expected, f"{name} has no {described - expected}"


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    kind = CLASSES[name]
    doc = inspect.cleandoc(kind.__doc__ or "")
    described, (expected, takes_others) = section(doc, "Args", "Attributes"), (set[str](), True)
    if "__dataclass_fields__" in vars(kind):
        fields = dataclasses.fields(kind)
        expected, takes_others = {f.name for f in fields if f.init and f.name[0] != "_"}, False
    elif hasattr(kind, "_fields"):
        expected, takes_others = set(kind._fields), False
    elif "__init__" in vars(kind):
        expected, takes_others = arguments(kind)
    if not (refers(doc) and not described):
        assert expected <= described, f"{name} does not describe {expected - described}"
    attributes = section(doc, "Attributes")
    assert takes_others or described - attributes <= expected, f"{name} has no {described}"


@pytest.mark.parametrize("name", [*METHODS, *CLASSES])
def test_errors_are_classes(name: str) -> None:
    doc = inspect.cleandoc(getattr(METHODS.get(name, CLASSES.get(name)), "__doc__", "") or "")
    for error in section(doc, "Raises"):
        found = getattr(importlib.import_module("builtins"), error, None)
        assert isinstance(found, type), f"{name} raises {error}"
        assert issubclass(found, Exception), f"{name} raises {error}"


def test_missing_parts_are_found() -> None:
    doc = "Do.\n\nArgs:\n    one, *two: A.\n        b: c\n\nRaises:\n    ValueError: D."
    assert section(doc, "Args") == {"one", "two"}
    assert section(doc, "Raises") == {"ValueError"}
    assert section(doc, "Attributes") == set()
    assert len(METHODS) > 40, METHODS.keys()
    assert len(CLASSES) > 40, CLASSES.keys()
