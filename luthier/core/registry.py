"""Finds, lists and loads plugins: the folder is the registry, the file's name is the plugin's name.

`Registry("luthier.training.methods", Method)` offers every module beside `base.py` in that package, and every
entry point of the group `luthier.methods`. A plugin is imported when it is asked for, never before.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from luthier.core.errors import InvalidParameter, Unavailable

T = TypeVar("T")


class MissingLibrary(Unavailable):
    code = "missing_library"


@functools.cache
def points_of(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, looked up once in a process: it takes some milliseconds, and a package that is
    installed later is seen by the next process. A test that brings points of its own calls `points_of.cache_clear()`.
    """
    return {point.name: point for point in entry_points(group=group)}


class Registry(Generic[T]):
    """The plugins of one kind. `contract` is the base class that each fulfils; `kind` is the word for one in messages."""

    def __init__(
        self,
        package: str,
        contract: type[T],
        *,
        kind: str,
        extra: str = "engine",
        folders: bool = False,
        besides: Collection[str] = (),
    ) -> None:
        """`extra` is the extra that brings what the plugins need; with `folders` only sub-packages are plugins, but for those
        in `besides`."""
        self.folders = folders
        self.besides = besides
        self.package = package
        self.contract = contract
        self.kind = kind
        self.extra = extra
        self._loaded: dict[str, type[T]] = {}

    def names(self) -> list[str]:
        """Every name that can be loaded, sorted; nothing is imported but the package itself."""
        return sorted(set(self._files()) | set(self._entry_points()))

    def load(self, name: str) -> type[T]:
        """The class of that name; again costs nothing. Raises InvalidParameter when there is none, MissingLibrary when it
        needs one.
        """
        if (known := self._loaded.get(name)) is None:
            known = self._loaded[name] = self._found(name)
        return known

    def _found(self, name: str) -> type[T]:
        if name in self._files():
            return self._class_in(self._import(f"{self.package}.{name}"))
        if name in (found := self._entry_points()):  # a file of ours always comes first
            return found[name].load()
        near = difflib.get_close_matches(name, self.names(), n=1)
        raise InvalidParameter(
            self.kind,
            f"there is no {self.kind} {name!r}; known: {', '.join(self.names())}",
            hint=f"Did you mean {near[0]!r}?" if near else None,
        )

    def _files(self) -> list[str]:
        package = importlib.import_module(self.package)
        return [
            module.name
            for module in pkgutil.iter_modules(package.__path__)
            if module.name != "base" and not module.name.startswith("_") and (module.ispkg or not self.folders)
            if module.name not in self.besides
        ]

    def _entry_points(self) -> dict[str, EntryPoint]:
        return points_of("luthier." + self.package.rsplit(".", 1)[-1])

    def _import(self, module: str) -> ModuleType:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as missing:
            raise MissingLibrary(
                f"{self.kind} {module.rsplit('.', 1)[-1]!r} needs the library {missing.name!r}.",
                hint=f"Install it with: pip install 'luthier[{self.extra}]'",
            ) from missing

    def _class_in(self, module: ModuleType) -> type[T]:
        found = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, self.contract)
            and not inspect.isabstract(value)
            and (value.__module__ == module.__name__ or value.__module__.startswith(module.__name__ + "."))
        ]
        if len(found) != 1:
            raise TypeError(
                f"{module.__name__} must define exactly one {self.contract.__name__}, it defines {len(found)}"
            )
        return found[0]
