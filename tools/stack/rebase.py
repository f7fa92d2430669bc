"""Comparing the overlay with another release than the one that it is pinned to."""

import ast
import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tools.overlay import lock, pieces, tree
from tools.overlay.markdown import headings
from tools.overlay.problems import OverlayError, Problem
from tools.overlay.project import Project
from tools.overlay.upstream import Release
from tools.stack.cut import Stack
from tools.stack.manifest import StackError

_PIN = r"(zarr\s*==\s*){}(?=[\"'\s;,])"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that another release has otherwise."""

    path: str
    """The file, in a checkout of upstream's."""
    name: str
    """The definition or heading; empty for the file."""
    what: str
    """What is otherwise."""
    accepted: bool = False
    """Whether `--accept` may settle it: it changed, and what takes its place still has a place."""
    diff: tuple[str, ...] = ()
    """What upstream changed."""
    concerns: tuple[str, ...] = ()
    """The branches that it touches."""


@dataclass(frozen=True, slots=True)
class Report:
    """What another release means for the overlay."""

    old: str
    new: str
    files: tuple[str, ...]
    """What was compared."""
    findings: tuple[Finding, ...]
    left_out: tuple[str, ...] = ()
    """Folders that the release comes without, which are not compared."""


def compare(stack: Stack, new: Path, version: str) -> Report:
    """Compare the overlay, cut against the sources of the pinned release, with the sources of another."""
    old, locked = stack.base, stack.project.load_lock()
    files = [path for path in stack.overlay if path not in stack.manifest.own]
    found: list[Finding] = []
    left_out: list[str] = []
    plans = zip(stack.plans, Stack(stack.project, new).plans, ("src/", "", ""), strict=True)
    for before, after, prefix in plans:
        if not (new / prefix / before.folder).is_dir():
            left_out.append(before.folder)
            files = [path for path in files if not path.startswith(f"{prefix}{before.folder}/")]
            continue
        drifted = {
            name: digest
            for name, digest in after.replaced().items()
            if locked.replaced.get(name, digest) != digest
        }
        found += (
            Finding(prefix + path, "", "upstream has a file of this name")
            for path in sorted(after.opened() - before.opened() - after.definitions("opens"))
        )
        for problem in (*after.problems, *lock.verify(after, locked)):
            path, _, name = problem.where.partition("::")
            if problem.where in drifted:
                diff = _diff(old / prefix / path, new / prefix / path, name)
                what = f"upstream's is {drifted[problem.where]}"
                found.append(Finding(prefix + path, name, what, accepted=True, diff=diff))
            # Markers are unused only if their class or their anchor is gone, which is reported anyway.
            elif "directs nothing" not in problem.what:
                found.append(Finding(prefix + path, name, problem.what))
    for path in files:
        if path.endswith(".py"):
            found += (
                Finding(path, "", f"uses {what}, which upstream does not have there")
                for what in _lost_names(stack.overlay[path].decode(), path, old, new)
            )
    kept = dict.fromkeys(f for f in found if f.path in files)
    named = tuple(replace(f, concerns=_concerns(stack, f.path, f.name)) for f in kept)
    return Report(stack.project.pinned, version, tuple(files), named, tuple(left_out))


def _concerns(stack: Stack, path: str, name: str) -> tuple[str, ...]:
    """Return the branches that own a definition, or what is in it, or any of the file."""
    leaves = stack.leaves.get(path, [])
    found = [leaf for leaf in leaves if name and name in (leaf.name, *leaf.above)]
    numbers = {stack.owners[leaf] for leaf in found or leaves if leaf in stack.owners}
    return tuple(stack.manifest.pull_requests[number].branch for number in sorted(numbers))


def _diff(old: Path, new: Path, name: str) -> tuple[str, ...]:
    """Compare a definition or section in two releases."""
    get = definition if old.suffix == ".py" else section
    before, after = (get(path.read_bytes().decode(), name).splitlines() for path in (old, new))
    return tuple(difflib.unified_diff(before, after, "pinned", "other", lineterm="", n=2))[2:]


def definition(text: str, name: str) -> str:
    """Return the text of a definition of a module by its qualified name; empty if there is none."""
    scope = pieces.module(text)
    *classes, last = name.split(".")
    for each in classes:
        outer = [piece for piece in scope.pieces if each in piece.names]
        scope = pieces.members(outer[0]) if outer else pieces.Scope([])
    found = (piece.own for piece in scope.pieces if last in piece.names)
    return textwrap.dedent("".join(line for own in found for line in own))


def section(text: str, name: str) -> str:
    """Return the text of a section of a document, with those below it; empty if there is none."""
    lines = text.splitlines(keepends=True)
    found = headings(lines)
    for heading in found:
        if heading.text == name:
            after = (h.line for h in found if h.line > heading.line and h.level <= heading.level)
            return "".join(lines[heading.line : next(after, None)])
    return ""


def _lost_names(text: str, path: str, old: Path, new: Path) -> Iterator[str]:
    """Yield what a module of the overlay takes from upstream's, and the other release lacks."""
    for module, name in sorted(_imports(text)):
        if _provides(old, module, name) and not _provides(new, module, name):
            yield f"`{name}` from {module}"
    before, after = _names(old / path), _names(new / path)
    if before is not None and after is not None:
        scope = pieces.module(text)
        used = {name for piece in scope.pieces for name in piece.uses()}
        lost = (used - pieces.hidden_names(scope).keys()) & (before - after)
        yield from (f"`{name}` of the same module" for name in sorted(lost))


def _imports(text: str) -> set[tuple[str, str]]:
    """Return what a module imports of zarr's, wherever in it."""
    return {
        (node.module, alias.name)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0
        for alias in node.names
        if node.module.partition(".")[0] == tree.PACKAGE
    }


def _names(path: Path) -> set[str] | None:
    """Return what a module makes known at its top level; `None` if there is no such module."""
    if not path.is_file():
        return None
    scope = pieces.module(path.read_bytes().decode())
    named = {name for piece in scope.pieces for name in piece.names}
    return named | pieces.hidden_names(scope).keys()


def _provides(root: Path, module: str, name: str) -> bool:
    """Tell whether there is something to import from a module."""
    above = root / "src" / module.replace(".", "/")
    if any(name in (_names(p) or ()) for p in (above.with_suffix(".py"), above / "__init__.py")):
        return True
    return (above / f"{name}.py").is_file() or (above / name / "__init__.py").is_file()


def lines(report: Report) -> Iterator[str]:
    """Yield lines that tell what applies, and for each file that does not what is otherwise."""
    touched = dict.fromkeys(finding.path for finding in report.findings)
    good = [path for path in report.files if path not in touched]
    yield f"The overlay, written against zarr {report.old}, and zarr {report.new}:"
    for folder in report.left_out:
        yield f"what is in {folder}/ is not compared: the release comes without"
    yield ""
    yield f"{len(good)} of {len(report.files)} files apply as they are:"
    yield from (f"    {path}" for path in good)
    for path in touched:
        yield ""
        yield f"{path}:"
        for finding in report.findings:
            if finding.path == path:
                name = f"{finding.name}: " if finding.name else ""
                state = "drifted" if finding.accepted else "does not apply"
                yield f"    {state}: {name}{finding.what}  [{', '.join(finding.concerns)}]"
                yield from (f"        {line}" for line in finding.diff)
    branches = [branch for finding in report.findings for branch in finding.concerns]
    drifted = sum(finding.accepted for finding in report.findings)
    yield ""
    yield f"{drifted} drifted, {len(report.findings) - drifted} do not apply"
    yield from (f"    {branch}: {branches.count(branch)}" for branch in dict.fromkeys(branches))


def accept(project: Project, report: Report, found: Release, digests: Mapping[str, str]) -> None:
    """Pin the fork to another release, if all applies; what drifted is taken to have been looked at.

    `found` is its source distribution, and `digests` are the SHA-256 of its archives, by kind.
    """
    if problems := [
        Problem(
            f.path + (f"::{f.name}" if f.name else ""),
            f"does not apply to zarr {report.new}: {f.what}",
            "adapt the overlay, then accept",
        )
        for f in report.findings
        if not f.accepted
    ]:
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
