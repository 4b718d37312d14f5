"""A registry: entries by name, from this package, from a call, and from installed packages."""

import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

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
    entry. The entry points are loaded when a name is unknown, or all names are listed. One that
    cannot be loaded is logged and left out.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._entries: dict[str, T] = {}
        self._is_complete = False

    def register(self, entry: T) -> T:
        """Adds an entry, and returns it.

        Raises:
            ValueError: if there is another one of this name.
        """
        if self._entries.get(entry.name, entry) != entry:
            raise ValueError(
                f"{entry.name!r} is registered twice in {self._group}: rename one of them"
            )
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
                where = f"{self._group} of {point.dist.name if point.dist else point.value}"
                _LOG.warning("%s, %s, cannot be used: %s", point.name, where, problem)
