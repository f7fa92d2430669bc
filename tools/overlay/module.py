"""Merging one module of the overlay into upstream's, definition by definition."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tools.overlay.fingerprint import fingerprint
from tools.overlay.imports import add_imports, for_typing, imports_of, is_typing
from tools.overlay.pieces import (
    Piece,
    Scope,
    header,
    hidden_names,
    is_placeholder,
    is_string,
    members,
    module,
    qualified,
)
from tools.overlay.problems import Change, Log, Merged

_DIRECTIVE = re.compile(r"#\s*overlay\s*:")
_MARKER = re.compile(r"# overlay: after (\S+)")
EXPORTS = "__all__"


def merge_module(
    upstream: str | None,
    overlay: str,
    *,
    path: str,
    keep: Callable[[str], bool] = lambda name: True,
    forms: Sequence[str] = (),
) -> Merged:
    """Merge the text of a module.

    `upstream` is the module as released, `None` if there is none. The overlay's docstring is for its readers
    and is left out. `keep` tells by its qualified name whether a definition of the overlay is merged. `forms`
    are modules with other forms of definitions that are not kept, which are merged instead; the last counts.
    The text that comes back is not laid out yet: that is for `tidy`.
    """
    log = Log(path)
    parsed: list[Scope] = []
    for text, whose in (
        (upstream or "", "upstream's"),
        *((t, "the overlay's") for t in (overlay, *forms)),
    ):
        try:
            parsed.append(module(text))
        except SyntaxError as error:
            log.problem("", f"{whose} text is not Python: {error.msg}", f"see line {error.lineno}")
            return Merged(upstream or "", (), tuple(log.problems))
    theirs, mine, *others = parsed
    merge = _Merge(log, keep, {name: piece for scope in others for name, piece in qualified(scope)})
    sources = [
        [node for piece in scope.pieces for node in piece.nodes] for scope in (mine, *others)
    ]
    if upstream is None:
        text = add_imports("".join(merge.own(mine, "")), sources[1:], log)
        return Merged(text, (), tuple(log.problems))
    theirs = module(add_imports(upstream, sources, log))
    _refuse_what_is_lost(overlay, mine, theirs, log)
    definitions = Scope([piece for piece in mine.pieces if not _is_import(piece)])
    if definitions.pieces and is_string(definitions.pieces[0].nodes[0]):
        del definitions.pieces[0]
    merged = "".join(merge.scope(theirs, definitions, ""))
    return Merged(merged, tuple(log.changes), tuple(log.problems))


def _is_import(piece: Piece) -> bool:
    node = piece.nodes[0]
    return bool(imports_of(node)) or is_typing(node)


def _refuse_what_is_lost(overlay: str, mine: Scope, theirs: Scope, log: Log) -> None:
    """Refuse comments of the overlay that belong to no definition, and directives where none goes."""
    for piece in filter(_is_import, mine.pieces):
        node = piece.nodes[0]
        if is_typing(node) and (node.orelse or len(for_typing([node])) < len(node.body)):
            what = "the overlay's `if TYPE_CHECKING:` holds more than imports"
            log.problem("", what, "put the rest at module level")
    first = mine.pieces[0] if mine.pieces else None
    skip = first.end if first and is_string(first.nodes[0]) else 0
    leaves = list(_leaves(mine, theirs))
    for number, comment in _comments(overlay):
        if number < skip:
            continue
        inside = any(piece.head <= number < piece.end for piece in leaves)
        above = any(piece.start <= number < piece.head for piece in leaves)
        if _DIRECTIVE.match(comment) and not above:
            remedy = "put it above a definition of a module, or of a class that upstream has"
            log.problem("", f"`{comment}` stands where it directs nothing", remedy)
        elif not inside and not above:
            what = f"`{comment}` belongs to no definition, so it has no place to go"
            log.problem("", what, "put it above one, or into the docstring of the overlay's module")


def _leaves(mine: Scope, theirs: Scope) -> Iterator[Piece]:
    """Yield the overlay's definitions that are merged as a whole."""
    known = {piece.name: piece for piece in theirs.pieces if piece.names}
    for piece in mine.pieces:
        other = known.get(piece.name)
        opens = other and all(p.class_ for p in (piece, other))
        if other and opens and other.own != piece.own:
            yield from _leaves(members(piece), members(other))
        elif not _is_import(piece) and not is_placeholder(piece.nodes[0]):
            yield piece


def _comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield the index of the line of each comment, and its text."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0] - 1, token.string


@dataclass(slots=True)
class _Merge:
    """The merge of one module."""

    log: Log
    keep: Callable[[str], bool]
    forms: Mapping[str, Piece]
    gone: set[str] = field(default_factory=set)
    """Names at the top of the overlay's module that are left out."""

    def _chosen(self, piece: Piece, name: str) -> Piece | None:
        """Return the form in which a definition of the overlay is merged, `None` if it is not."""
        return piece if self.keep(name) else self.forms.get(name)

    # --- a scope that is the overlay's alone ------------------------------------------------------

    def own(self, scope: Scope, within: str) -> list[str]:
        """Return the lines of a scope that upstream lacks, without what is not kept."""
        if not within:
            self.gone = {
                name
                for piece in scope.pieces
                for name in piece.names
                if name != EXPORTS and not self._chosen(piece, piece.name)
            }
        lines: list[str] = []
        for piece in scope.pieces:
            if not piece.names:
                if _is_import(piece):
                    lines += piece.above + _closed_up(piece.own)
                elif within or not self.gone & piece.uses():
                    lines += piece.above + piece.own
            elif not within and piece.name == EXPORTS:
                lines += self._exported(piece, scope)
            elif chosen := self._chosen(piece, within + piece.name):
                lines += piece.above if chosen is piece else ["\n", "\n", *_notes(chosen)]
                lines += self._lines(chosen, within + piece.name)
        return lines + scope.tail

    def _lines(self, piece: Piece, name: str) -> list[str]:
        """Return the lines of a definition of the overlay, without members that are not kept."""
        if not piece.class_:
            return piece.own
        body = self.own(members(piece), f"{name}.")
        indent = " " * (piece.class_.col_offset + 4)
        return header(piece) + (body if any(map(str.strip, body)) else [f"{indent}...\n"])

    def _exported(self, piece: Piece, scope: Scope) -> list[str]:
        """Return the lines of `__all__` without the names that are not there."""
        names = exported(piece)
        here = {name for other in scope.pieces for name in other.names}
        kept = [n for n in names if n not in self.gone and (n in here or self.keep(n))]
        if kept == names:
            return piece.above + piece.own
        listed = ", ".join(f'"{name}"' for name in kept)
        return [*piece.above, f"{EXPORTS} = [{listed}]\n"] if kept else []

    # --- a scope that upstream has ----------------------------------------------------------------

    def scope(self, theirs: Scope, mine: Scope, within: str) -> list[str]:
        """Return the lines of a merged module or class."""
        known: dict[str, list[Piece]] = {}
        for piece in theirs.pieces:
            for name in piece.names:
                known.setdefault(name, []).append(piece)
        hidden = hidden_names(theirs)
        instead: dict[Piece, list[str]] = {}
        new: list[tuple[Piece, str | None]] = []
        seen: set[str] = set()
        for piece in mine.pieces:
            name = within + piece.name
            after = self._markers(piece, name or within)
            if not piece.names:
                self._refuse_statement(piece, within)
            elif again := seen.intersection(piece.names):
                what = f"the overlay defines `{again.pop()}` twice here"
                self.log.problem(name, what, "keep one of the two")
            elif existing := list(dict.fromkeys(p for n in piece.names for p in known.get(n, ()))):
                if replaced := self._existing(existing, piece, after, name):
                    instead[existing[0]] = replaced
            elif clash := [hidden[n] for n in piece.names if n in hidden]:
                what = f"upstream binds this name by {clash[0]}, which cannot be merged into"
                self.log.problem(name, what, "choose another name")
            else:
                self.log.changes.append(Change("adds", name, after=after))
                new.append((piece, after))
            seen.update(piece.names)
        added = {piece for piece, _ in new}
        pieces = theirs.pieces
        if new and len(pieces) == 1 and within and is_placeholder(pieces[0].nodes[0]):
            pieces = []
        lines: list[str] = []
        before: Piece | None = None
        for piece in self._place(pieces, new, known, within):
            if piece not in added:
                lines += instead.get(piece) or piece.above + piece.own
            elif chosen := self._chosen(piece, within + piece.name):
                lines += ["\n"] * _gap(chosen, before, first=before not in added)
                lines += _notes(chosen) + self._lines(chosen, within + piece.name)
                lines += ["\n"] * (2 if piece.is_block else 0)
            before = piece
        return lines + theirs.tail

    def _markers(self, piece: Piece, name: str) -> str | None:
        """Return the sibling that the marker above a definition names."""
        found: list[str] = []
        for line in map(str.strip, piece.above):
            if match := _MARKER.fullmatch(line):
                found.append(match[1])
            elif _DIRECTIVE.match(line):
                what = f"`{line}` says nothing known"
                self.log.problem(name.rstrip("."), what, "write `# overlay: after <name>`")
        if len(found) > 1:
            self.log.problem(name, "two markers say where it goes", "keep one of the two")
        return found[0] if found else None

    def _refuse_statement(self, piece: Piece, within: str) -> None:
        """Refuse what is no definition, a placeholder excepted."""
        node, name = piece.nodes[0], within.rstrip(".")
        code = "a docstring or bare string" if is_string(node) else f"`{piece.own[0].strip()}`"
        if not is_placeholder(node):
            what = f"{code} defines nothing, so it cannot be merged"
            self.log.problem(name, what, "make it part of a definition, or remove it")

    def _existing(
        self, existing: list[Piece], piece: Piece, after: str | None, name: str
    ) -> list[str]:
        """Return the lines that take the place of a definition of upstream's."""
        target = existing[0]
        if len(existing) > 1 or target.names != piece.names:
            what = "upstream defines this more than once, or together with other names"
            self.log.problem(name, what, "add a definition with another name instead")
            return []
        if target.own == piece.own:
            self.log.changes.append(Change("keeps", name))
            return []
        if after:
            what = "upstream has it, so it stays where it is, but a marker says where it goes"
            self.log.problem(name, what, "remove the marker")
        if all(p.class_ for p in (target, piece)):
            return target.above + self._open_class(target, piece, name)
        if name == EXPORTS:
            return target.above + self._union(target, piece)
        self.log.changes.append(Change("replaces", name, upstream=fingerprint(target.nodes)))
        chosen = self._chosen(piece, name)
        if chosen is None:
            return []
        above = target.above
        if notes := _notes(chosen):
            while above and above[-1].strip():
                above.pop()
        return above + notes + chosen.own

    def _open_class(self, target: Piece, piece: Piece, name: str) -> list[str]:
        """Merge the members of a class; everything else about it stays upstream's."""
        self.log.changes.append(Change("opens", name))
        for what, mine, theirs in zip(
            ("bases", "decorators"), _head(piece), _head(target), strict=True
        ):
            if mine and mine != theirs:
                said = f"the overlay gives the class {what} that are not upstream's"
                self.log.problem(name, said, "leave them out: they stay upstream's")
        body = self.scope(members(target), members(piece), f"{name}.")
        return header(target) + body if any(map(str.strip, body)) else target.own

    def _union(self, target: Piece, piece: Piece) -> list[str]:
        """Add the names that the overlay exports; ruff sorts them in."""
        try:
            known, wanted = exported(target), exported(piece)
        except ValueError as error:
            self.log.problem(EXPORTS, str(error), "write it as one list of names, here and there")
            return []
        missing = [name for name in wanted if name not in known]
        self.log.changes.extend(Change("exports", name) for name in missing)
        items = [f'"{name}",' for name in missing if self.keep(name)]
        value = _listed(target)
        opening, at = value.lineno - 1 - target.head, value.col_offset + 1
        line = target.own[opening]
        if value.elts and value.elts[0].lineno > value.lineno:
            new = [line, *(f"    {item}\n" for item in items)]
        else:
            new = [line[:at] + " ".join(items) + line[at:]]
        return [*target.own[:opening], *new, *target.own[opening + 1 :]]

    def _place(
        self,
        theirs: Sequence[Piece],
        new: Sequence[tuple[Piece, str | None]],
        known: Mapping[str, Sequence[Piece]],
        within: str,
    ) -> list[Piece]:
        """Put new definitions behind the siblings that they name, or where a person would put them."""
        targets = {name: found[-1] for name, found in known.items()}
        targets |= {name: piece for piece, _ in new for name in piece.names}
        followers: dict[Piece | None, list[Piece]] = {}
        last: list[Piece] = []
        lost: list[Piece] = []
        for piece, after in new:
            if after is None and piece.is_block:
                last.append(piece)
            elif after is None:
                followers.setdefault(_among_constants(piece, theirs, targets), []).append(piece)
            elif target := targets.get(after):
                followers.setdefault(target, []).append(piece)
            else:
                lost.append(piece)
                what = f"its marker names `{after}`, which neither upstream nor the overlay defines"
                self.log.problem(within + piece.name, what, "name a sibling that exists")

        def chain(piece: Piece) -> Iterator[Piece]:
            yield piece
            for follower in followers.pop(piece, ()):
                yield from chain(follower)

        first = followers.pop(None, [])
        placed = [other for piece in (*first, *theirs, *last) for other in chain(piece)]
        # What follows a definition that has no place has none either, and that is told already.
        for piece in lost:
            list(chain(piece))
        for piece in (piece for stranded in followers.values() for piece in stranded):
            what = "its marker and those of its siblings name each other in a circle"
            self.log.problem(within + piece.name, what, "let one name a definition of upstream")
        return placed


def _among_constants(
    piece: Piece, theirs: Sequence[Piece], targets: Mapping[str, Piece]
) -> Piece | None:
    """Return what a constant without a marker follows: the constants at the top, or what it is made of."""
    top: Piece | None = None
    for other in theirs:
        if other.is_block:
            break
        top = other
    order = {other: number for number, other in enumerate(theirs)}
    made_of = [targets[name] for name in _evaluated(piece) if name in targets]
    made_of = [other for other in made_of if other is not piece]
    fresh = [other for other in made_of if other not in order]
    if fresh:
        return fresh[-1]
    behind = [other for other in made_of if order[other] > order.get(top, -1)] if top else made_of
    return max(behind, key=order.__getitem__) if behind else top


def _evaluated(piece: Piece) -> list[str]:
    """Return the names that the value of an assignment is made of, other than in annotations."""
    values = [n.value for n in piece.nodes if isinstance(n, ast.Assign | ast.AnnAssign) and n.value]
    return [n.id for value in values for n in ast.walk(value) if isinstance(n, ast.Name)]


def _notes(piece: Piece) -> list[str]:
    """Return the comments above a definition, markers aside."""
    lines = [line for line in piece.above if not _DIRECTIVE.match(line.strip())]
    marked = len(lines) < len(piece.above)
    while lines and not lines[0].strip():
        lines.pop(0)
    while marked and lines and not lines[-1].strip():
        lines.pop()
    return lines


def _closed_up(imports: list[str]) -> list[str]:
    """Take out the commas that keep a list of names on lines of their own, which may not be needed."""
    text = "".join(imports)
    return imports if "#" in text else [re.sub(r",\s*\)", ")", text)]


def _gap(piece: Piece, before: Piece | None, *, first: bool) -> int:
    """Return how many blank lines go above a new definition: ruff adds what is lacking."""
    if piece.is_block:
        return 2
    if not first:
        return bool(piece.above and not piece.above[0].strip())
    alike = before is not None and before.names and piece.is_alias == before.is_alias
    return not alike or len(piece.nodes) > 1 or bool(_notes(piece))


def _head(piece: Piece) -> tuple[str, str]:
    """Return what a class says of its bases, and its decorators."""
    node = piece.class_
    if node is None:
        return "", ""
    bases = [*node.type_params, *node.bases, *node.keywords]
    return " ".join(map(ast.unparse, bases)), " ".join(map(ast.unparse, node.decorator_list))


def exported(piece: Piece) -> list[str]:
    """Return the names in an assignment of `__all__`; it is a `ValueError` if that is no list of strings."""
    return [str(ast.literal_eval(item)) for item in _listed(piece).elts]


def _listed(piece: Piece) -> ast.List | ast.Tuple:
    node = piece.nodes[0]
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if isinstance(value, ast.List | ast.Tuple) and all(
        isinstance(item, ast.Constant) for item in value.elts
    ):
        return value
    raise ValueError("`__all__` is not a plain list of names")
