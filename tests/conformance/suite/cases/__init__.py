"""The cases. Each is a coroutine that takes a Play; its name says which trap it covers, its docstring what it demands."""

import importlib
import pkgutil

CASES = {}


def case(function):
    """Registers a case under its function's name."""
    CASES[function.__name__] = function
    return function


def load() -> dict:
    """Every case by name, in the order of the files and of their text."""
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f"{__name__}.{module}")
    return CASES
