"""Looking in each branch for names that only a later one brings.

That a name is imported or called before it is there, a linter finds. A comment, a docstring, a test that
patches by name and a sentence in the documentation can mention it all the same.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tools.overlay.problems import Problem
from tools.stack.leaves import is_module, texts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from tools.stack.cut import Stack

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE = re.compile(r"`+([^`\n]+)`+")
_TREES = ("src", "tests", "docs")
_TEXTS = (".py", ".md", ".toml", ".yml", ".ipynb")


@dataclass(frozen=True, slots=True)
class Name:
    """Something that a pull request is the first to bring."""

    word: str
    number: int
    """The index of the pull request."""

    @property
    def is_distinctive(self) -> bool:
        """Whether the word is no word of English: it has an underscore within, or capitals in it."""
        stem = self.word.strip("_")
        return "_" in stem or self.word.startswith("_") or stem[1:].lower() != stem[1:]

    def occurs(self, words: Collection[str], code: Collection[str]) -> bool:
        """Tell whether a text mentions it: a word of English must be marked as code."""
        return self.word in (words if self.is_distinctive else code)


def mentions(stack: Stack) -> list[Problem]:
    """Find what mentions a name that only a later pull request brings.

    Parameters
    ----------
    stack : Stack
        The stack.

    Returns
    -------
    list of Problem
        One for each file and name, of the first branch that has it. A name counts as new if upstream has no
        such word anywhere in its sources, tests and documents.
    """
    known = _words_of_tree(stack.base)
    brought = [_brought(stack, number) for number in range(len(stack.manifest.pull_requests))]
    problems: list[Problem] = []
    told: set[tuple[str, str]] = set()
    for number, pull_request in enumerate(stack.manifest.pull_requests[:-1]):
        files = dict(texts(stack.files(number + 1)))
        bound = {word for path, text in files.items() if is_module(path) for word in _bound(text)}
        bound.update(word for earlier in brought[: number + 1] for word in earlier)
        later = {
            word: Name(word, after)
            for after in range(len(brought) - 1, number, -1)
            for word in brought[after]
            if word not in known and word not in bound
        }
        for path, text in files.items():
            words, code = _words(text)
            for name in later.values():
                if name.occurs(words, code) and (path, name.word) not in told:
                    told.add((path, name.word))
                    after = stack.manifest.pull_requests[name.number].branch
                    problems.append(
                        Problem(
                            f"{pull_request.branch}, {path}:{_line(text, name)}",
                            f"mentions `{name.word}`, which {after} brings",
                            "move what mentions it there, or what it mentions here",
                        )
                    )
    return problems


def _line(text: str, name: Name) -> int:
    pattern = re.compile(rf"(?<![A-Za-z0-9_]){name.word}(?![A-Za-z0-9_])")
    lines = enumerate(text.splitlines(), 1)
    return next((number for number, line in lines if pattern.search(line)), 0)


def _brought(stack: Stack, number: int) -> set[str]:
    """Return the names that a pull request brings: of definitions in `src/`, and of new modules."""
    found: set[str] = set()
    for leaf, owner in stack.owners.items():
        if owner != number or not is_module(leaf.path):
            continue
        if leaf.path.startswith("src/") and leaf.name:
            found.add(leaf.name.rpartition(".")[2])
        elif leaf.path.startswith("src/"):
            found.add(PurePosixPath(leaf.path).stem)
    return found | set(_modules(stack, number))


def _modules(stack: Stack, number: int) -> Iterator[str]:
    """Yield the names of the modules that upstream lacks and that a pull request is the first to need."""
    for path, leaves in stack.leaves.items():
        if is_module(path) and stack.upstream[path] is None:
            owners = [stack.owners[leaf] for leaf in leaves if leaf in stack.owners]
            if owners and min(owners) == number:
                yield PurePosixPath(path).stem


@lru_cache(maxsize=1024)
def _words(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words of a text, and those that are marked as code."""
    quoted = " ".join(_CODE.findall(text))
    return frozenset(_WORD.findall(text)), frozenset(_WORD.findall(quoted))


@lru_cache(maxsize=1024)
def _bound(text: str) -> frozenset[str]:
    """Return the names that a module binds in whatever way, parameters and attributes among them."""
    return frozenset(_bindings(text))


def _bindings(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.keyword(arg=name):
                if name:
                    yield name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.ClassDef(name=name):
                yield name


def _words_of_tree(base: Path) -> set[str]:
    """Return all words in upstream's sources, tests and documents."""
    return {
        word
        for folder in _TREES
        for path in (base / folder).rglob("*")
        if path.suffix in _TEXTS and path.is_file()
        for word in _WORD.findall(path.read_text(errors="replace"))
    }
