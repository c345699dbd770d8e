"""Plant an error in the source of a module, and ask whether a law notices.

A row is a :class:`Mutation`: a module, the text to replace and what to put there, and the law that must then fail::

    Mutation(
        "MALA's wrong denominator",
        "boltzmix.compose.kernels.langevin",
        "4.0 * step_size",
        "2.0 * step_size",
        law=mala_keeps_a_gaussian,
    )

``law`` is any function without arguments that raises AssertionError when the law is broken: a check of
tests/contracts.py with its contract, a test function, or one written for the purpose; :func:`law` makes one of a check
and its arguments.

:func:`planted` compiles the changed source and swaps the code of those live functions that differ. Classes stay the
same objects, so ``isinstance``, other modules' imports and terms that exist already all see the error; leaving the
context puts everything back. What can be changed is the body of any function, method or property of the module;
module constants and class attributes are not functions and cannot (use ``monkeypatch`` for them). A text that does
not occur exactly once, or a change that reaches no live function, is an error of the row: rows cannot rot silently.
"""

import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

NOTICED = (AssertionError, pytest.fail.Exception)


@dataclass(frozen=True)
class Mutation:
    """One planted error.

    Args:
        name: what is wrong, as a reader would say it.
        module: dotted name of the module.
        old: text that occurs exactly once in its source (``within`` narrows the search).
        new: what replaces it.
        law: raises AssertionError when broken; passes on the unchanged code.
        within: a text after whose first occurrence ``old`` is searched, such as ``"class HMC"``; then the first
            occurrence after it is replaced.
    """

    name: str
    module: str
    old: str
    new: str
    law: Callable[[], object]
    within: str = ""


def mutate(source: str, mutation: Mutation) -> str:
    """The changed source."""
    start = source.find(mutation.within)
    if start < 0:
        raise LookupError(f"{mutation.name}: {mutation.within!r} does not occur in {mutation.module}")
    count = source.count(mutation.old, start)
    if count == 0 or (count > 1 and not mutation.within):
        raise LookupError(f"{mutation.name}: {mutation.old!r} occurs {count} times in {mutation.module}, not once")
    return source[:start] + source[start:].replace(mutation.old, mutation.new, 1)


def codes(code: types.CodeType, found: dict[str, types.CodeType] | None = None) -> dict[str, types.CodeType]:
    """The code objects of a compiled module by qualified name; those inside functions belong to their function."""
    found = {} if found is None else found
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found[constant.co_qualname] = constant
            if not constant.co_flags & inspect.CO_NEWLOCALS:  # a class body, not a function
                codes(constant, found)
    return found


def live_functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """Functions, methods, properties and wrapped functions that the module defines."""
    seen: set[int] = set()

    def visit(value: object) -> Iterator[types.FunctionType]:
        if isinstance(value, property):
            for part in (value.fget, value.fset, value.fdel):
                yield from visit(part)
            return
        value = getattr(value, "__func__", value)
        value = inspect.unwrap(value) if callable(value) else value
        if id(value) in seen or getattr(value, "__module__", None) != module.__name__:
            return
        seen.add(id(value))
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, type):
            for member in vars(value).values():
                yield from visit(member)

    for value in list(vars(module).values()):
        yield from visit(value)


@contextmanager
def planted(mutation: Mutation) -> Iterator[None]:
    """The error, for the length of a ``with`` block."""
    module = importlib.import_module(mutation.module)
    path = Path(inspect.getsourcefile(module) or "")
    source = path.read_text(encoding="utf-8")
    before = codes(compile(source, str(path), "exec"))
    after = codes(compile(mutate(source, mutation), str(path), "exec"))
    changed = {name for name in after if name in before and signature(before[name]) != signature(after[name])}
    swapped: list[tuple[types.FunctionType, types.CodeType]] = []
    try:
        for function in live_functions(module):
            if function.__qualname__ in changed:
                swapped.append((function, function.__code__))
                function.__code__ = after[function.__qualname__]
        if not swapped:
            raise LookupError(f"{mutation.name}: the change reaches no function of {mutation.module}")
        yield
    finally:
        for function, code in swapped:
            function.__code__ = code


def signature(code: types.CodeType) -> tuple:
    """What a function does, without where its lines are."""
    constants = tuple(signature(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts)
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars)


def law(check: Callable[..., object], *args: object) -> Callable[[], None]:
    """A check with its arguments as a law: an error that broken code raises in it counts as noticed, too."""

    @functools.wraps(check)
    def run() -> None:
        try:
            check(*args)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error

    return run


def verify(mutation: Mutation) -> None:
    """The law holds without the error and is broken by it; otherwise AssertionError."""
    mutation.law()
    with planted(mutation):
        try:
            mutation.law()
        except NOTICED:
            return
        except ExceptionGroup as group:
            if group.subgroup(AssertionError) is not None:
                return
            raise
    raise AssertionError(f"{mutation.name}: planted, and the law did not notice")
