"""Stands in for packages that a bare machine lacks and that nothing there uses.

The learner's modules import what decodes videos and hashes files, though computing with tensors
needs none of it. Of a package that is missing, a module is made whose names are exception classes:
importing works, and using one fails.
"""

import importlib.util
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - of a package, as the import system wants it

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {"__new__": _refuse, "__module__": self.__name__})


def _refuse(cls: type, *_: object, **__: object) -> Any:
    raise RuntimeError(f"{cls.__module__}.{cls.__name__} is a stand-in: the package is missing")


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: set[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self._packages:
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: a stand-in is complete when it is made."""


def stand_in_for(*packages: str) -> list[str]:
    """Let those packages be imported that are not installed; returns which."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        sys.meta_path.append(_Finder(set(missing)))
    return missing
