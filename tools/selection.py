"""Which tests the arguments of `tools/test.py` select: the fork's, upstream's, or both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.environment import ROOT, SetupError

UPSTREAM = "upstream"

# Options of pytest after which comes something that may look like a path and is none that selects.
_TAKES_VALUE = {"-k", "-m", "-p", "-o", "-c", "-W", "-r", "--deselect", "--ignore", "--confcutdir"}


@dataclass(frozen=True, slots=True)
class Selection:
    """What is selected; false where everything is."""

    options: tuple[str, ...] = ()
    """The arguments that are not paths, for every section."""
    paths: Mapping[str, list[str]] = field(default_factory=dict)
    """By section, the tests that the other arguments select; empty where there were none."""

    def __bool__(self) -> bool:
        return bool(self.options or self.paths)

    def sections(self, everywhere: Sequence[str]) -> Sequence[str]:
        """Return the sections that have something to do; none where nothing was selected: all have."""
        return list(self.paths) or (everywhere if self.options else ())

    def arguments(self, section: str, otherwise: Sequence[str]) -> list[str]:
        """Return the arguments of pytest in a section, which runs `otherwise` if no path is selected."""
        return [*self.paths.get(section, otherwise), *self.options]


def parse(
    arguments: Sequence[str],
    own: Mapping[str, Sequence[str]],
    sdist: Callable[[], Path],
    *,
    root: Path = ROOT,
) -> Selection:
    """Sort arguments of pytest: options, paths and test ids.

    `own` holds by section the folders with tests in this checkout, and `sdist` returns the folder with
    upstream's source distribution; it is called only if there are paths.
    """
    options: list[str] = []
    paths: dict[str, list[str]] = {}
    previous = ""
    for argument in arguments:
        is_path = "/" in argument or ".py" in argument or (root / argument).exists()
        if argument.startswith("-") or previous in _TAKES_VALUE or not is_path:
            options.append(argument)
        else:
            places = [
                section
                for section, folders in own.items()
                if argument.startswith(tuple(folders)) and _holds(root, argument)
            ]
            if _holds(sdist(), argument):
                places.append(UPSTREAM)
            if not places:
                raise SetupError(f"{argument} is neither among the tests here nor among upstream's")
            for section in places:
                paths.setdefault(section, []).append(argument)
        previous = argument
    return Selection(tuple(options), paths)


def _holds(root: Path, argument: str) -> bool:
    """Tell whether there is such a file and, for the id of a test, whether it speaks of it."""
    name, *inside = argument.split("::")
    path = root / name
    if not inside:
        return path.exists()
    return path.is_file() and inside[0].partition("[")[0] in path.read_text()
