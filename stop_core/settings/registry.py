"""A registry: entries by name, from this package, from a call, and from installed packages."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from stop_core.storage.names import is_the_name_of_a_file

_LOG = logging.getLogger(__name__)


class Named(Protocol):
    """An entry of a registry."""

    @property
    def name(self) -> str:
        """The name by which users choose it."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Entries by name.

    An installed package adds its own by an entry point of the group `group` whose object is an
    entry, of the class `kind` (docs/your-own-method.md). The entry points are loaded when a name is
    unknown, or all names are listed. One that cannot be used is logged and left out.

    `check` is called with an entry and those before it, and raises an exception to refuse it.
    """

    def __init__(
        self,
        kind: type[T],
        group: str,
        check: Callable[[T, Iterable[T]], None] = lambda entry, others: None,
    ) -> None:
        self._kind, self._group, self._check = kind, group, check
        self._entries: dict[str, T] = {}
        self._is_complete = False

    # A registry is compared by identity, and not by its entries, which would load them.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def register(self, entry: T) -> T:
        """Adds an entry, and returns it; ValueError if there is another one of this name."""
        if not isinstance(entry, self._kind):
            raise ValueError(f"it is a {type(entry).__name__}, and not a {self._kind.__name__}")
        if not is_the_name_of_a_file(entry.name):
            raise ValueError(f"{entry.name!r} cannot be the name of a file; rename it")
        if self._entries.get(entry.name, entry) != entry:
            raise ValueError(
                f"{entry.name!r} is registered twice in {self._group}: rename one of them"
            )
        self._check(entry, self._entries.values())
        self._entries[entry.name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            self._load_entry_points()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(self._entries)

    def __len__(self) -> int:
        self._load_entry_points()
        return len(self._entries)

    def _load_entry_points(self) -> None:
        if self._is_complete:
            return
        self._is_complete = True
        for point in entry_points(group=self._group):
            try:
                self.register(point.load())
            except Exception as problem:  # the code of another package can raise anything
                package = point.dist.name if point.dist else point.value
                _LOG.warning(
                    "the package %s is left out: its %s %s cannot be used (%s: %s); update or "
                    "uninstall it",
                    *(package, self._kind.__name__.lower(), point.name),
                    *(type(problem).__name__, problem),
                )
