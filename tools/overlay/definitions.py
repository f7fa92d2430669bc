"""Merging the definitions of one scope, and of the classes in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import libcst as cst

from tools.overlay import exports, scopes
from tools.overlay.fingerprint import fingerprint
from tools.overlay.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.overlay.scopes import Piece, Statement

type Action = Literal["opens", "adds", "replaces", "exports", "keeps"]


@dataclass(frozen=True, slots=True)
class Change:
    """What the overlay does with one definition of one module."""

    action: Action
    """`keeps` where upstream has the very text that the overlay has."""
    name: str
    """The qualified name, `Store.get`."""
    after: str | None = None
    """The sibling that an added definition follows, where a marker names one."""
    upstream: str | None = None
    """The fingerprint of the upstream definition that is replaced."""


@dataclass(slots=True)
class Log:
    """What a merge did and what was wrong, over all the scopes of one module."""

    path: str
    changes: list[Change] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, name: str, what: str, remedy: str) -> None:
        """Note what is wrong with one definition, or with the module where `name` is empty."""
        where = f"{self.path}::{name}" if name else self.path
        self.problems.append(Problem(where, what, remedy))


def merge_scope(
    upstream: Sequence[Statement], overlay: Sequence[Statement], log: Log, *, within: str = ""
) -> list[Statement]:
    """Merge the body of a module or class.

    Parameters
    ----------
    upstream : Sequence of statements
        The body as upstream has it.
    overlay : Sequence of statements
        The overlay's part of it, imports excepted.
    log : Log
        Takes what was done and what was wrong.
    within : str
        The qualified name of the class, empty for a module.

    Returns
    -------
    list of statements
        The merged body. Statements that the overlay does not touch are the very objects of `upstream`,
        unless the blank lines above them depend on a new neighbour.
    """
    prefix = f"{within}." if within else ""
    merged = scopes.pieces(upstream)
    known: dict[str, list[Piece]] = {}
    for piece in merged:
        for name in piece.names:
            known.setdefault(name, []).append(piece)
    hidden = scopes.hidden_names(upstream)
    new: list[tuple[Piece, str | None]] = []
    seen: set[str] = set()

    for piece in scopes.pieces(overlay):
        markers = scopes.take_markers(piece)
        for directive in markers.malformed:
            name = prefix + piece.name if piece.names else within
            log.problem(
                name, f"`{directive}` says nothing known", "write `# overlay: after <name>`"
            )
        if not piece.names:
            _refuse_statement(piece, log, within)
            continue
        name = prefix + piece.name
        if again := seen.intersection(piece.names):
            log.problem(
                name, f"the overlay defines `{again.pop()}` twice here", "keep one of the two"
            )
            continue
        seen.update(piece.names)
        if len(markers.after) > 1:
            log.problem(name, "two markers say where it goes", "keep one of the two")
            continue
        existing = list(dict.fromkeys(p for n in piece.names for p in known.get(n, ())))
        if not existing:
            clash = [hidden[n] for n in piece.names if n in hidden]
            if clash:
                log.problem(
                    name,
                    f"upstream binds this name by {clash[0]}, which cannot be merged into",
                    "choose another name",
                )
                continue
            after = markers.after[0] if markers.after else None
            log.changes.append(Change("adds", name, after=after))
            new.append((piece, after))
            continue
        _merge_existing(piece, existing, markers.after, log, name)

    ordered = _place(merged, new, known, log, prefix)
    _space(ordered, depth=within.count(".") + 1 if within else 0)
    return [statement for piece in ordered for statement in piece.statements]


def _refuse_statement(piece: Piece, log: Log, within: str) -> None:
    """Refuse what is no definition, a placeholder excepted."""
    statement = piece.statements[0]
    if scopes.is_placeholder(statement) and "#" not in cst.Module([statement]).code:
        return
    if scopes.is_string(statement):
        log.problem(
            within,
            "the overlay writes a docstring or a bare string here, which has no place to go",
            "remove it: upstream's docstring stays; notes of the overlay go into its module docstring",
        )
        return
    code = piece.code.strip().partition("\n")[0]
    log.problem(
        within, f"`{code}` defines nothing, so it cannot be merged", "make it part of a definition"
    )


def _merge_existing(
    piece: Piece, existing: list[Piece], after: tuple[str, ...], log: Log, name: str
) -> None:
    """Merge a definition that upstream has into it, in place."""
    if len(existing) > 1 or existing[0].names != piece.names:
        log.problem(
            name,
            "upstream defines this more than once, or together with other names",
            "the merge replaces a definition that stands once and by itself: add another one instead",
        )
        return
    (target,) = existing
    if target.code == piece.code:
        log.changes.append(Change("keeps", name))
        return
    if after:
        log.problem(
            name,
            "upstream has it, so it stays where it is, but a marker says where it goes",
            "remove the marker",
        )
    old, new = target.statements[0], piece.statements[0]
    if isinstance(old, cst.ClassDef) and isinstance(new, cst.ClassDef):
        log.changes.append(Change("opens", name))
        target.statements[0] = _open_class(old, new, log, name)
    elif name == "__all__":
        try:
            target.statements, names = exports.union(target.statements, piece.statements)
        except ValueError as error:
            log.problem(name, str(error), "write it as one list of names, here and there")
        else:
            log.changes.extend(Change("exports", exported) for exported in names)
    else:
        log.changes.append(Change("replaces", name, upstream=fingerprint(target.code)))
        above = target.leading
        if comments := piece.leading[scopes.gap(piece.leading) :]:
            above = above[: len(above) - len(scopes.attached(above))] + comments
        target.statements = piece.statements
        target.leading = above
        target.fresh = scopes.is_block(old) != scopes.is_block(new)


def _open_class(old: cst.ClassDef, new: cst.ClassDef, log: Log, name: str) -> cst.ClassDef:
    """Merge the members of a class; everything else about it stays upstream's."""
    for what, mine, theirs in (
        ("bases", _header(new), _header(old)),
        ("decorators", _render(new.decorators), _render(old.decorators)),
    ):
        if mine and mine != theirs:
            log.problem(
                name,
                f"the overlay gives the class {what} that are not upstream's",
                f"leave them out: the {what} of a class that is opened stay upstream's",
            )
    if comment := scopes.comments(new):
        log.problem(
            name,
            f"`{comment}` belongs to no member, so it has no place to go",
            "put it above a member, or into the module docstring of the overlay's file",
        )
    members = _members(old)
    if len(members) == 1 and scopes.is_placeholder(members[0]):
        members = []
    merged = merge_scope(members, _members(new), log, within=name)
    if not merged:
        return old
    if isinstance(old.body, cst.IndentedBlock):
        return old.with_changes(body=old.body.with_changes(body=merged))
    return old.with_changes(body=cst.IndentedBlock(body=merged))


def _members(definition: cst.ClassDef) -> list[Statement]:
    if isinstance(definition.body, cst.IndentedBlock):
        return list(definition.body.body)  # type: ignore[arg-type]
    return [cst.SimpleStatementLine(body=[small]) for small in definition.body.body]  # type: ignore[list-item]


def _header(definition: cst.ClassDef) -> str:
    """Render what stands between the name of a class and its colon, laid out in one line."""
    arguments = [*definition.bases, *definition.keywords]
    if not arguments and definition.type_parameters is None:
        return ""
    return " ".join(
        _render([item for item in (definition.type_parameters, *arguments) if item is not None])
        .replace(",", " ")
        .split()
    )


def _render(nodes: Sequence[cst.CSTNode]) -> str:
    return "".join(cst.Module([]).code_for_node(node) for node in nodes)


def _place(
    merged: list[Piece],
    new: list[tuple[Piece, str | None]],
    known: dict[str, list[Piece]],
    log: Log,
    prefix: str,
) -> list[Piece]:
    """Put new definitions after the siblings that they name, else at the end, in the overlay's order."""
    targets = {name: found[-1] for name, found in known.items()}
    targets |= {name: piece for piece, _ in new for name in piece.names}
    followers: dict[Piece, list[Piece]] = {}
    last: list[Piece] = []
    lost: list[Piece] = []
    for piece, after in new:
        piece.fresh = True
        name = prefix + piece.name
        if after is None:
            last.append(piece)
        elif target := targets.get(after):
            followers.setdefault(target, []).append(piece)
        else:
            lost.append(piece)
            log.problem(
                name,
                f"its marker names `{after}`, which neither upstream nor the overlay defines here",
                "name a sibling that exists, or remove the marker to put it at the end of the scope",
            )

    def chain(piece: Piece) -> Iterator[Piece]:
        yield piece
        for follower in followers.pop(piece, ()):
            yield from chain(follower)

    placed = [follower for piece in (*merged, *last) for follower in chain(piece)]
    # What follows a definition that has no place has none either, and that is told already.
    for piece in lost:
        list(chain(piece))
    for piece in (piece for stranded in followers.values() for piece in stranded):
        log.problem(
            prefix + piece.name,
            "its marker and those of its siblings name each other in a circle",
            "let one of them name a definition of upstream",
        )
    return placed


def _space(ordered: list[Piece], *, depth: int) -> None:
    """Give every piece that has a new neighbour the blank lines that a formatter would give it."""
    for index, piece in enumerate(ordered):
        before = ordered[index - 1] if index else None
        if not piece.fresh and not (before and before.fresh):
            continue
        piece.leading = scopes.with_gap(piece.leading, _blank_lines(ordered, index, depth))


def _blank_lines(ordered: list[Piece], index: int, depth: int) -> int:
    if index == 0:
        return 0
    piece, before = ordered[index], ordered[index - 1]
    most = 1 if depth else 2
    if scopes.is_block(piece.statements[0]) or scopes.is_block(before.statements[-1]):
        return most
    own = scopes.gap(piece.leading)
    if scopes.is_string(before.statements[0]):
        return 1
    if not before.names:
        return max(1, min(own, most))
    if not piece.fresh:
        return own
    # Assignments stand as close as those around them do, unless there is a comment to set apart.
    neighbour = piece
    if index + 1 < len(ordered) and _follows_alike(ordered, index + 1):
        neighbour = ordered[index + 1]
    elif _follows_alike(ordered, index - 1):
        neighbour = before
    return max(bool(piece.leading[own:]), min(1, scopes.gap(neighbour.leading)))


def _follows_alike(ordered: list[Piece], index: int) -> bool:
    """Tell whether upstream has an assignment there, and another one before it."""
    pair = [ordered[index], next((p for p in reversed(ordered[:index]) if not p.fresh), None)]
    return all(
        piece is not None
        and piece.names
        and not piece.fresh
        and not scopes.is_block(piece.statements[-1])
        for piece in pair
    )
