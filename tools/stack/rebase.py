"""Comparing the overlay with another release than the one that it is pinned to."""

from __future__ import annotations

import ast
import difflib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import libcst as cst

from tools.overlay import lock, scopes, tree
from tools.overlay.markdown import headings
from tools.overlay.problems import OverlayError, Problem
from tools.overlay.project import Project
from tools.stack.leaves import is_module, members
from tools.stack.manifest import StackError
from tools.stack.uses import uses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tools.overlay.scopes import Statement
    from tools.overlay.upstream import Release
    from tools.stack.cut import Stack

_PIN = r"(zarr\s*==\s*){}(?=[\"'\s;,])"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that another release has otherwise."""

    name: str
    """The definition or heading; empty for the file."""
    what: str
    """What is otherwise."""
    accepted: bool
    """Whether `--accept` may settle it: it changed, and what takes its place still has a place."""
    diff: tuple[str, ...] = ()
    """What upstream changed."""
    concerns: tuple[str, ...] = ()
    """The branches that it touches."""


@dataclass(slots=True)
class FileReport:
    """What another release means for one file of the overlay."""

    path: str
    """In a checkout of upstream's."""
    new: bool
    """Whether the file is the overlay's alone."""
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """What another release means for the overlay."""

    old: str
    new: str
    files: tuple[FileReport, ...]
    left_out: tuple[str, ...] = ()
    """Folders that the release comes without, which are not compared."""

    @property
    def findings(self) -> list[Finding]:
        """All that is otherwise."""
        return [finding for file in self.files for finding in file.findings]

    @property
    def blocking(self) -> list[Finding]:
        """What must be adapted before the release can be accepted."""
        return [finding for finding in self.findings if not finding.accepted]


def compare(stack: Stack, old: Path, new: Path, version: str) -> Report:
    """Compare the overlay with another release.

    Parameters
    ----------
    stack : Stack
        The stack, cut against the pinned release.
    old, new : Path
        The sources of the pinned release, and of the other.
    version : str
        The other release.

    Returns
    -------
    Report
        What still applies, what changed and what is gone, for each file.
    """
    project = stack.project
    files = {
        path: FileReport(path, new=stack.upstream[path] is None)
        for path in stack.overlay
        if path not in stack.manifest.own
    }
    concerns = _Concerns(stack)
    locked = project.load_lock()
    left_out: list[str] = []
    for folder, prefix in ((tree.PACKAGE, "src/"), ("tests", ""), (tree.DOCUMENTS, "")):
        if not (new / prefix / folder).is_dir():
            left_out.append(folder)
            for path in [path for path in files if path.startswith(f"{prefix}{folder}/")]:
                del files[path]
            continue
        overlay = project.overlay if prefix else project.root
        plan = tree.plan(new / prefix, overlay, folder=folder)
        before = tree.plan(old / prefix, overlay, folder=folder)
        for path, name, finding in _differences(plan, before, locked, old / prefix, new / prefix):
            file = files.get(f"{prefix}{path}")
            if file is not None:
                branches = concerns.of(file.path, name)
                file.findings.append(replace(finding, name=name, concerns=branches))
    sources = (_Sources(old), _Sources(new))
    for file in files.values():
        if is_module(file.path):
            file.findings += _lost_names(file.path, stack, *sources, concerns)
    return Report(project.pinned, version, tuple(files.values()), tuple(left_out))


@dataclass(frozen=True, slots=True)
class _Concerns:
    """Which branches have to do with what."""

    stack: Stack

    def of(self, path: str, name: str) -> tuple[str, ...]:
        """Return the branches that own a definition, or what is in it, or any of the file."""
        requests = self.stack.manifest.pull_requests
        leaves = self.stack.leaves.get(path, [])
        found = [leaf for leaf in leaves if name and name in (leaf.name, *leaf.above)]
        numbers = {self.stack.owners[leaf] for leaf in found or leaves if leaf in self.stack.owners}
        return tuple(requests[number].branch for number in sorted(numbers))


def _differences(
    plan: tree.Plan, before: tree.Plan, locked: lock.Lock, old: Path, new: Path
) -> Iterator[tuple[str, str, Finding]]:
    """Yield file, definition and finding for all that merges otherwise, or no more."""
    gone = {path for path, part in before.parts.items() if not part.new and plan.parts[path].new}
    for path in sorted(gone):
        yield path, "", Finding("", "upstream has no such file", accepted=False)
    for path, part in plan.parts.items():
        if not part.new and before.parts[path].new:
            yield path, "", Finding("", "upstream has a file of this name", accepted=False)
    lost = sorted((plan.definitions("adds")) & (before.opened() | before.replaced().keys()))
    for name in lost:
        path, _, definition = name.partition("::")
        yield path, definition, Finding("", "upstream has no such definition", accepted=False)
    for name in sorted(
        (plan.replaced().keys() | plan.definitions("keeps")) & before.definitions("adds")
    ):
        path, _, definition = name.partition("::")
        yield path, definition, Finding("", "upstream has one of this name", accepted=False)
    for name, digest in sorted(plan.replaced().items()):
        was = locked.replaced.get(name, before.replaced().get(name))
        if was is not None and was != digest:
            path, _, definition = name.partition("::")
            diff = _diff(path, definition, old, new)
            yield path, definition, Finding("", f"upstream's is {digest}", accepted=True, diff=diff)
    for problem in plan.problems:
        path, _, definition = problem.where.partition("::")
        # Markers lie idle only in a class that is gone, or behind an anchor that is: both are told.
        if path not in gone and "directs nothing" not in problem.what:
            yield path, definition, Finding("", problem.what, accepted=False)


def _diff(path: str, name: str, old: Path, new: Path) -> tuple[str, ...]:
    """Compare a definition or section in two releases."""
    texts = [(root / path).read_bytes().decode() for root in (old, new)]
    get = text_of_definition if is_module(path) else text_of_section
    before, after = (get(text, name).splitlines() for text in texts)
    return tuple(difflib.unified_diff(before, after, "pinned", "other", lineterm="", n=2))[2:]


def text_of_definition(text: str, name: str) -> str:
    """Return the text of a definition of a module.

    Parameters
    ----------
    text : str
        The module.
    name : str
        Its qualified name.

    Returns
    -------
    str
        The text, not indented; empty if there is none.
    """
    body: Sequence[Statement] = cst.parse_module(text).body
    *classes, last = name.split(".")
    for each in classes:
        found = (p.statements[0] for p in scopes.pieces(body) if each in p.names)
        body = [s for c in found if isinstance(c, cst.ClassDef) for s in members(c)]
    return "".join(piece.code for piece in scopes.pieces(body) if last in piece.names)


def text_of_section(text: str, name: str) -> str:
    """Return the text of a section of a document, with those below it; empty if there is none."""
    lines = text.splitlines(keepends=True)
    found = headings(lines)
    for heading in found:
        if heading.text == name:
            after = (h.line for h in found if h.line > heading.line and h.level <= heading.level)
            return "".join(lines[heading.line : next(after, None)])
    return ""


@dataclass(frozen=True, slots=True)
class _Sources:
    """The modules of a release, as the overlay sees them."""

    root: Path
    known: dict[str, frozenset[str] | None] = field(default_factory=dict)

    def names(self, path: str) -> frozenset[str] | None:
        """Return what a module makes known at its top level; `None` if there is no such module."""
        if path not in self.known:
            file = self.root / path
            self.known[path] = None
            if file.is_file():
                body = cst.parse_module(file.read_bytes().decode()).body
                named = {name for piece in scopes.pieces(body) for name in piece.names}
                self.known[path] = frozenset(named | scopes.hidden_names(body).keys())
        return self.known[path]

    def provides(self, module: str, name: str) -> bool:
        """Tell whether there is something to import from a module."""
        above = f"src/{module.replace('.', '/')}"
        for path in (f"{above}.py", f"{above}/__init__.py"):
            if name in (self.names(path) or ()):
                return True
        return any(
            (self.root / above / inner).is_file() for inner in (f"{name}.py", f"{name}/__init__.py")
        )


def _lost_names(
    path: str, stack: Stack, old: _Sources, new: _Sources, concerns: _Concerns
) -> Iterator[Finding]:
    """Yield what a module of the overlay takes from upstream's, and the other release lacks."""
    text = stack.overlay[path].decode()
    lost = [
        f"`{name}` from {module}"
        for module, name in sorted(_imports(text))
        if old.provides(module, name) and not new.provides(module, name)
    ]
    if (before := old.names(path)) is not None and (after := new.names(path)) is not None:
        body = cst.parse_module(text).body
        used = uses(text, postponed=True).all - scopes.hidden_names(body).keys()
        lost += [f"`{name}` of the same module" for name in sorted(used & (before - after))]
    for what in lost:
        said = f"uses {what}, which upstream does not have there"
        yield Finding("", said, accepted=False, concerns=concerns.of(path, ""))


def _imports(text: str) -> set[tuple[str, str]]:
    """Return what a module imports of zarr's, wherever in it."""
    return {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        for alias in node.names
        if node.module.partition(".")[0] == tree.PACKAGE
    }


def lines(report: Report) -> Iterator[str]:
    """Lay a report out.

    Parameters
    ----------
    report : Report
        The report.

    Yields
    ------
    str
        Lines: what applies, and for each file that does not what is otherwise.
    """
    good = [file for file in report.files if not file.findings]
    yield f"The overlay, written against zarr {report.old}, and zarr {report.new}:"
    for folder in report.left_out:
        yield f"what is in {folder}/ is not compared: the release comes without"
    yield ""
    yield f"{len(good)} of {len(report.files)} files apply as they are:"
    yield from (f"    {file.path}{' (new)' if file.new else ''}" for file in good)
    for file in report.files:
        if not file.findings:
            continue
        yield ""
        yield f"{file.path}:"
        for finding in file.findings:
            name = f"{finding.name}: " if finding.name else ""
            state = "drifted" if finding.accepted else "does not apply"
            yield f"    {state}: {name}{finding.what}  [{', '.join(finding.concerns)}]"
            yield from (f"        {line}" for line in finding.diff)
    touched: dict[str, int] = {}
    for finding in report.findings:
        for branch in finding.concerns:
            touched[branch] = touched.get(branch, 0) + 1
    yield ""
    drifted = len(report.findings) - len(report.blocking)
    yield f"{drifted} drifted, {len(report.blocking)} do not apply"
    yield from (f"    {branch}: {count}" for branch, count in touched.items())


def accept(project: Project, report: Report, found: Release, digests: Mapping[str, str]) -> None:
    """Pin the fork to another release.

    Parameters
    ----------
    project : Project
        The fork.
    report : Report
        What the release means for it. What drifted is taken to have been looked at.
    found : Release
        The release: its source distribution.
    digests : Mapping
        The SHA-256 of its archives, by kind.

    Raises
    ------
    StackError
        If something does not apply; nothing is written then.
    """
    problems: Iterable[Problem] = [
        Problem(
            file.path + (f"::{finding.name}" if finding.name else ""),
            f"does not apply to zarr {report.new}: {finding.what}",
            "adapt the overlay, then accept",
        )
        for file in report.files
        for finding in file.findings
        if not finding.accepted
    ]
    if problems:
        raise StackError(problems)
    settings = project.root / "pyproject.toml"
    before = settings.read_text()
    after, count = re.subn(_PIN.format(re.escape(project.pinned)), rf"\g<1>{report.new}", before)
    if count != 1:
        what = f"names zarr=={project.pinned} {count} times"
        raise StackError([Problem(settings.name, what, "let it name the pinned release once")])
    old = replace(project.load_lock(), sdist=digests["sdist"], wheel=digests["wheel"])
    settings.write_text(after)
    try:
        text = Project(project.root).rewritten(found, old).text()
    except OverlayError:
        settings.write_text(before)
        raise
    project.lock_file.write_text(text)
