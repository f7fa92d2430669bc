"""The order in which ruff wants names and imports to stand, without ruff.

It is that of its `isort` and `__all__` rules at their defaults: sections, then natural order, in which
`int8` comes before `int16`; among the members of one statement constants, classes and the rest in turn.
"""

from __future__ import annotations

import re
import sys

type Key = tuple[object, ...]

_SECTIONS = ("future", "standard library", "third party", "first party", "local")


def section(module: str) -> int:
    """Return the rank of the section of imports that a module belongs to."""
    root = module.partition(".")[0]
    if module.startswith("."):
        name = "local"
    elif root == "__future__":
        name = "future"
    elif root in sys.stdlib_module_names:
        name = "standard library"
    elif root == "zarr":
        name = "first party"
    else:
        name = "third party"
    return _SECTIONS.index(name)


def natural(text: str) -> Key:
    """Return a key that sorts numbers inside of names by their value."""
    return tuple(
        (ord("0"), int(part)) if part.isdecimal() else (ord(part), 0)
        for part in re.findall(r"[0-9]+|[^0-9]", text)
    )


def _kind(name: str) -> int:
    if len(name) > 1 and name.isupper():
        return 0
    return 1 if name[:1].isupper() else 2


def member(name: str, asname: str | None = None) -> Key:
    """Return the key of a name within a `from … import`."""
    return (_kind(name), natural(name.lower()), natural(name), natural(asname or ""))


def export(name: str) -> Key:
    """Return the key of a name within `__all__`."""
    return (_kind(name), natural(name))


def statement(module: str, members: tuple[tuple[str, str | None], ...], asname: str | None) -> Key:
    """Return the key of an import statement among others.

    Parameters
    ----------
    module : str
        What is imported, or imported from; with its leading dots where it is relative.
    members : tuple
        The names and aliases of a `from … import`; empty for a plain `import`.
    asname : str, optional
        The alias of a plain `import`.

    Returns
    -------
    tuple
        Statements sort by it: by section, `import` before `from`, by the module's name.
    """
    dots = len(module) - len(module.lstrip("."))
    bare = module[dots:]
    first = min((member(*pair) for pair in members), default=())
    return (
        section(module),
        bool(members),
        -dots,
        natural(bare.lower()),
        natural(bare),
        first,
        natural(asname or ""),
    )
