"""Merging one Markdown document of the overlay into upstream's, section by section."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.overlay.problems import Change, Log, Merged

_HEADING = re.compile(r"(?P<marks>#{1,6})[ \t]+(?P<text>.*?)[ \t]*#*[ \t]*")
_ATTRIBUTES = re.compile(r"[ \t]*\{[^{}]*\}$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_MARKER = re.compile(r"<!-- overlay: after (.+?) -->")
_DIRECTIVE = re.compile(r"<!--\s*overlay\s*:.*-->")
_COMMENTS = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a document."""

    line: int
    """The index of its line."""
    level: int
    """From 1, for a document's title, to 6."""
    text: str
    """Without marks and attributes."""


def headings(lines: Sequence[str]) -> list[Heading]:
    """Find the headings of a document, in their order; code blocks and front matter hold none."""
    found: list[Heading] = []
    fence = "---" if lines and lines[0].rstrip() == "---" else ""
    for number, line in enumerate(lines):
        if fence == "---":
            fence = "" if number and line.rstrip() == "---" else fence
        elif match := _FENCE.match(line):
            mark = match[1]
            if not fence:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and line.strip() == mark:
                fence = ""
        elif not fence and (match := _HEADING.fullmatch(line.rstrip("\n"))):
            text = _ATTRIBUTES.sub("", match["text"])
            found.append(Heading(number, len(match["marks"]), text))
    return found


def merge_document(
    upstream: str | None,
    overlay: str,
    *,
    path: str,
    keep: Callable[[str], bool] = lambda heading: True,
) -> Merged:
    """Merge the text of a document.

    The overlay's sections are headings with what follows them, and the sections below them. Above the heading
    `<!-- overlay: after HEADING -->` names the section behind which one goes. Other comments before the first
    section are for the readers of the overlay, and are left out. `upstream` is the document as released,
    `None` if there is none. `keep` tells by its heading whether a section is merged, without those below it.
    """
    log = Log(path)
    theirs = {heading.text for heading in headings((upstream or "").splitlines(keepends=True))}
    mine = {heading.text for heading in headings(overlay.splitlines(keepends=True))}
    left_out = {name for name in mine if not keep(name)}
    if upstream is None:
        return Merged(_without(overlay, left_out), (), ())
    text = upstream
    followers: dict[str, str] = {}
    for after, section in _sections(overlay, log):
        if headings(section)[0].text in left_out & theirs:
            continue
        # Sections that name the same heading keep their order: each goes behind the one before it.
        behind = after
        while behind in followers:
            behind = followers[behind]
        text = _merge_section(text, behind, section, log)
        name = headings(section)[0].text
        if after is not None and after != name and name not in followers:
            followers[after] = name
    return Merged(_without(text, left_out - theirs), tuple(log.changes), tuple(log.problems))


def _without(text: str, names: set[str]) -> str:
    """Leave sections out of a document, each to the next heading."""
    lines = text.splitlines(keepends=True)
    found = headings(lines)
    for heading, following in reversed(list(zip(found, [*found[1:], None], strict=True))):
        if heading.text in names:
            del lines[heading.line : following.line if following else None]
            if following is None:
                while lines and not lines[-1].strip():
                    lines.pop()
    return "".join(lines)


def _sections(overlay: str, log: Log) -> list[tuple[str | None, list[str]]]:
    """Cut the overlay's document into sections, each with what its marker names."""
    lines = overlay.splitlines(keepends=True)
    tops: list[Heading] = []
    for heading in headings(lines):
        marked = marker_of(lines, heading) is not None
        if not tops or marked or heading.level <= tops[-1].level:
            tops.append(heading)
    start = tops[0].line if tops else len(lines)
    before = "".join(lines[:start])
    if _COMMENTS.sub("", before).strip():
        log.problem("", "text stands before the first heading", "put it into a section")
    found: list[tuple[str | None, list[str]]] = []
    for heading, following in zip(tops, [*tops[1:], None], strict=True):
        section = lines[heading.line : following.line if following else None]
        while section and (not section[-1].strip() or _MARKER.fullmatch(section[-1].strip())):
            section.pop()
        found.append((marker_of(lines, heading), section))
    used = sum(after is not None for after, _ in found)
    if len(_DIRECTIVE.findall(overlay)) != used:
        what = "a directive does not stand above a heading, or says nothing known"
        log.problem("", what, "write `<!-- overlay: after HEADING -->` right above the heading")
    return found


def _above(lines: Sequence[str], line: int) -> str:
    """Return the last line with anything on it before the given one."""
    return next((text.strip() for text in reversed(lines[:line]) if text.strip()), "")


def marker_of(lines: Sequence[str], heading: Heading) -> str | None:
    """Return what the marker above a heading names, `None` if there is no marker."""
    marker = _MARKER.fullmatch(_above(lines, heading.line))
    return marker[1] if marker else None


def _merge_section(text: str, after: str | None, section: list[str], log: Log) -> str:
    lines = text.splitlines(keepends=True)
    known = headings(lines)
    (heading, *_) = headings(section)
    same = [h for h in known if h.text == heading.text]
    if len(same) > 1:
        what = "upstream has this heading more than once"
        log.problem(heading.text, what, "choose another heading")
        return text
    if same:
        return _replace(lines, known, same[0], section, log)
    targets = [h for h in known if h.text == after]
    if after is not None and len(targets) != 1:
        count = "several sections" if targets else "no section"
        what = f"its marker names `{after}`, which is a heading of {count}"
        log.problem(heading.text, what, "name a heading that stands once, or remove the marker")
        return text
    end = _end(known, targets[0], len(lines)) if targets else len(lines)
    if any(h.line == end and h.level > heading.level for h in known):
        what = f"the sections that follow `{after}` would come to belong to it"
        log.problem(heading.text, what, "name the last section of its own level")
    log.changes.append(Change("adds", heading.text, after=after))
    return _joined(lines[:end], section, lines[end:])


def _replace(
    lines: list[str], known: Sequence[Heading], heading: Heading, section: list[str], log: Log
) -> str:
    end = _end(known, heading, len(lines))
    while not lines[end - 1].strip():
        end -= 1
    old = lines[heading.line : end]
    if "".join(old).rstrip() == "".join(section).rstrip():
        log.changes.append(Change("keeps", heading.text))
        return "".join(lines)
    digest = hashlib.sha256("".join(old).rstrip().encode()).hexdigest()
    log.changes.append(Change("replaces", heading.text, upstream=f"sha256:{digest}"))
    return _joined(lines[: heading.line], section, lines[end:])


def _end(known: Sequence[Heading], heading: Heading, total: int) -> int:
    """Return the index of the line behind a section and the sections below it."""
    return next(
        (h.line for h in known if h.line > heading.line and h.level <= heading.level), total
    )


def _joined(before: list[str], section: list[str], after: list[str]) -> str:
    """Put a section between lines, with a blank line on either side."""
    section = [*section[:-1], section[-1].rstrip("\n") + "\n"]
    if before and not before[-1].endswith("\n"):
        before = [*before[:-1], before[-1] + "\n"]
    if before and before[-1].strip():
        before = [*before, "\n"]
    if after and after[0].strip():
        after = ["\n", *after]
    return "".join([*before, *section, *after])
