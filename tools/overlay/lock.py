"""`overlay.lock`: which release the overlay was written against, and which of its definitions it replaces."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.overlay.problems import OverlayError, Problem
from tools.overlay.tree import Plan

NAME = "overlay.lock"
REWRITE = "run `python -m tools.overlay lock`"
_GONE = f"find where it went, move the overlay's there or take it out, then {REWRITE}"

_HEAD = """\
# The release that the overlay is merged into, the files and classes of it that the overlay goes into, and each
# definition that it replaces, with a fingerprint of upstream's. `python -m tools.overlay lock` writes this file.
"""


@dataclass(frozen=True, slots=True)
class Lock:
    """The contents of `overlay.lock`."""

    upstream: str
    """The version of the release."""
    sdist: str
    wheel: str
    """The SHA-256 of its archives, in hexadecimal."""
    opened: tuple[str, ...] = ()
    """The files and classes of upstream that the overlay goes into."""
    replaced: Mapping[str, str] = field(default_factory=dict)
    """By definition, `zarr/abc/store.py::Store.get`, the fingerprint of upstream's."""

    def text(self) -> str:
        """Return the text of the file."""
        lines = [
            _HEAD,
            f'upstream = "{self.upstream}"',
            f'sdist-sha256 = "{self.sdist}"',
            f'wheel-sha256 = "{self.wheel}"',
            "opened = [",
            *(f'    "{name}",' for name in sorted(self.opened)),
            "]",
            "",
            "[replaced]",
            *(f'"{name}" = "{self.replaced[name]}"' for name in sorted(self.replaced)),
        ]
        return "\n".join(lines) + "\n"


def load(path: Path) -> Lock:
    """Read the lock, which must be there and be what `Lock.text` writes."""
    try:
        table = tomllib.loads(path.read_text())
        return Lock(
            upstream=table["upstream"],
            sdist=table["sdist-sha256"],
            wheel=table["wheel-sha256"],
            opened=tuple(table["opened"]),
            replaced=table["replaced"],
        )
    except FileNotFoundError:
        what = "there is none"
    except (tomllib.TOMLDecodeError, KeyError) as error:
        what = f"it cannot be read: {error}"
    raise OverlayError([Problem(path.name, what, REWRITE)])


def within(folder: str, names: Iterable[str]) -> set[str]:
    """Return those of the names whose file is in the folder."""
    return {name for name in names if name.startswith(f"{folder}/")}


def verify(plan: Plan, lock: Lock) -> Iterator[Problem]:
    """Yield a problem for each definition that drifted, is gone from upstream, or is on one side only."""
    replaced, kept, added = plan.replaced(), plan.definitions("keeps"), plan.definitions("adds")
    for name in sorted(within(plan.folder, lock.opened) - plan.opened() - kept):
        if name in added or name in plan.parts:
            yield Problem(name, "the overlay goes into this, and upstream no longer has it", _GONE)
        else:
            what = "stands in the lock, but the overlay no longer goes into it"
            yield Problem(name, what, REWRITE)
    for name in sorted(within(plan.folder, lock.replaced) | replaced.keys()):
        was, now = lock.replaced.get(name), replaced.get(name)
        if was is None:
            what = "the overlay replaces upstream's definition, and the lock does not know of it"
            remedy = f"if that is meant, {REWRITE}; else give the new definition another name"
            yield Problem(name, what, remedy)
        elif now is None and name in added:
            what = "the overlay replaces this definition, and upstream no longer has it"
            yield Problem(name, what, _GONE)
        elif now is None and name not in kept:
            yield Problem(
                name, "stands in the lock, but the overlay no longer replaces it", REWRITE
            )
        elif now is not None and was != now:
            what = f"the lock has {was[:19]}…, upstream {now[:19]}…"
            yield Problem(
                name,
                f"upstream's definition is not the one that was replaced: {what}",
                f"carry its change over into the overlay's, then {REWRITE}",
            )
