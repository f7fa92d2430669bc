"""Adding, replacing and opening definitions."""

from __future__ import annotations

import ast
from textwrap import dedent, indent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.overlay.problems import Change
from tools.tests.checked import attempt, formatted, merge, problem

UPSTREAM = '''\
"""Upstream's docstring."""

import os

LIMIT = 1
NAMES = ["a", "b"]  # kept


def first() -> None:
    """Do one thing."""


# Above second.
def second(x: int) -> int:
    # Inside second.
    return x


class Store:
    """A store."""

    size: int = 0
    """How large it is."""
    name = "store"

    def get(self) -> None:
        pass

    # Above put.
    def put(self) -> None:
        pass


last = os.name
'''


def without(text: str, *spans: str) -> str:
    """Remove each of the spans, which must stand there once."""
    for span in spans:
        assert text.count(span) == 1, span
        text = text.replace(span, "")
    return text


class TestAdded:
    @pytest.mark.parametrize(
        ("overlay", "span"),
        [
            ("def new() -> None: ...\n", "\n\ndef new() -> None: ...\n"),
            (
                "# overlay: after first\ndef new() -> None: ...\n",
                "\n\ndef new() -> None: ...\n",
            ),
            (
                "# overlay: after first\n# A comment.\n@os.register\nasync def new() -> None: ...\n",
                "\n\n# A comment.\n@os.register\nasync def new() -> None: ...\n",
            ),
            (
                "# A comment.\n# overlay: after first\nclass New:\n    x = 1\n",
                "\n\n# A comment.\nclass New:\n    x = 1\n",
            ),
            ("# overlay: after LIMIT\nNEW = 2\n", "NEW = 2\n"),
            ("# overlay: after LIMIT\nNEW: int = 2\n", "NEW: int = 2\n"),
            ("# overlay: after LIMIT\ntype New = int | None\n", "\ntype New = int | None\n"),
            ("# overlay: after NAMES\nNEW = 2\n", "NEW = 2\n"),
            ("# overlay: after NAMES\n# Why.\nNEW = 2\n", "\n# Why.\nNEW = 2\n"),
        ],
    )
    def test_module(self, overlay: str, span: str) -> None:
        assert without(merge(UPSTREAM, overlay), span) == UPSTREAM

    @pytest.mark.parametrize(
        ("member", "span"),
        [
            ("def new(self) -> None: ...", "\n    def new(self) -> None: ...\n"),
            (
                "# overlay: after get\n    def new(self) -> None: ...",
                "\n    def new(self) -> None: ...\n",
            ),
            ("# overlay: after size\n    new: int", "    new: int\n"),
            (
                '# overlay: after name\n    new: int\n    """Of what."""',
                '\n    new: int\n    """Of what."""\n',
            ),
            (
                "# overlay: after put\n    class New:\n        x = 1\n",
                "\n    class New:\n        x = 1\n",
            ),
        ],
    )
    def test_class(self, member: str, span: str) -> None:
        assert without(merge(UPSTREAM, f"class Store:\n    {member}\n"), span) == UPSTREAM

    def test_end_of_scope(self) -> None:
        merged = merge(UPSTREAM, "class Store:\n    def new(self) -> None: ...\ndef new(): ...\n")
        assert merged.index("def put") < merged.index("def new(self)") < merged.index("last")
        assert merged.endswith("last = os.name\n\n\ndef new(): ...\n")

    @pytest.mark.parametrize(
        ("upstream", "overlay", "merged"),
        [
            # Among those that are there, not behind the last function.
            ("A = 1\n\n\ndef f(): ...\n", "B = 2\n", "A = 1\nB = 2\n\n\ndef f(): ...\n"),
            (
                "A = 1\n\n\ndef f(): ...\n\n\nC = f()\n",
                "type B = int\n",
                "A = 1\n\ntype B = int\n\n\ndef f(): ...\n\n\nC = f()\n",
            ),
            # Behind the imports where there is none.
            (
                "import os\n\n\ndef f():\n    os.sep\n",
                'A = 1\n"""Of what."""\n\nB = 2\n',
                'import os\n\nA = 1\n"""Of what."""\n\nB = 2\n\n\ndef f():\n    os.sep\n',
            ),
            ("def f(): ...\n\n\nf()\n", "A = 1\n", "A = 1\n\n\ndef f(): ...\n\n\nf()\n"),
            # Behind what it is made of.
            ("def f(): ...\n\n\ndef g(): ...\n", "A = f()\n", None),
            ("B = 1\n\n\ndef f(): ...\n\n\ndef g(): ...\n", "A = f()\n", None),
            (
                "def f(): ...\n",
                "A = C()\n\n\nclass C: ...\n",
                "def f(): ...\n\n\nclass C: ...\n\n\nA = C()\n",
            ),
        ],
    )
    def test_constants(self, upstream: str, overlay: str, merged: str | None) -> None:
        behind = upstream.replace("def f(): ...\n", "def f(): ...\n\n\nA = f()\n")
        assert merge(upstream, overlay) == (behind if merged is None else merged)

    def test_constants_of_a_class(self) -> None:
        upstream = 'class A:\n    """Doc."""\n\n    x = 1\n\n    def f(self): ...\n'
        overlay = "class A:\n    y: int = 2\n"
        assert merge(upstream, overlay) == upstream.replace("x = 1\n", "x = 1\n    y: int = 2\n")

    def test_siblings_keep_their_order(self) -> None:
        overlay = """\
            # overlay: after first
            def one(): ...
            # overlay: after first
            def two(): ...
            # overlay: after one
            def one_and_a_half(): ...
            # overlay: after three
            def four(): ...
            def three(): ...
            """
        merged = merge(UPSTREAM, overlay)
        order = ["def first", "def one(", "def one_and", "def two", "def second", "def three"]
        places = [merged.index(name) for name in [*order, "def four"]]
        assert places == sorted(places)

    def test_overloads_are_one_definition(self) -> None:
        overlay = """\
            from typing import overload


            # overlay: after first
            @overload
            def new(x: int) -> int: ...
            @overload
            def new(x: str) -> str: ...
            def new(x):
                return x
            """
        merged = merge(UPSTREAM, overlay)
        span = merged[merged.index("\n\n@overload") : merged.index("\n\n# Above second.")]
        assert span.count("def new(") == 3
        assert without(merged, span, "from typing import overload\n") == UPSTREAM

    @pytest.mark.parametrize(
        "definition",
        [
            "type New[T: int, *Ts, **P] = dict[T, tuple[*Ts]]",
            "def new[T](x: T) -> T:\n    return x",
            "class New[T]:\n    def get(self) -> T: ...",
            "async def new():\n    async for x in y:\n        yield f'{x!r:>{w}} {'nested'}'",
            "new = '''\n  kept\nas it is\n'''",
        ],
    )
    def test_syntax(self, definition: str) -> None:
        tidy = definition.replace("'''", '"""').replace("f'{x!r:>{w}} {'nested'}'", 'f"{x!r:>{w}}"')
        assert tidy in merge(UPSTREAM, tidy + "\n")

    def test_empty_module(self) -> None:
        assert merge("", "import os\n\nX = os.name\n") == "import os\n\nX = os.name\n"

    def test_placeholder_makes_room(self) -> None:
        overlay = "class A:\n    def new(self) -> None: ...\n"
        assert merge("class A:\n    pass\n", overlay) == overlay

    def test_placeholder_on_the_same_line(self) -> None:
        merged = merge("class A(int): ...\n", "class A:\n    def new(self) -> None: ...\n")
        assert merged == "class A(int):\n    def new(self) -> None: ...\n"


class TestReplaced:
    def test_in_place(self) -> None:
        overlay = "def second(y: str) -> str:\n    return y\n"
        old = "def second(x: int) -> int:\n    # Inside second.\n    return x\n"
        assert merge_replacing(UPSTREAM, overlay) == UPSTREAM.replace(old, overlay)

    def test_comment_above_is_replaced_by_a_comment(self) -> None:
        merged = merge_replacing(UPSTREAM, "# New.\ndef second() -> None: ...\n")
        assert "# New.\ndef second() -> None: ...\n" in merged
        assert "# Above second." not in merged

    def test_method_of_nested_class(self) -> None:
        upstream = "class A:\n    class B:\n        def f(self): ...\n\n        y = 1\n"
        overlay = "class A:\n    class B:\n        def f(self, x): ...\n"
        assert merge_replacing(upstream, overlay) == upstream.replace("(self)", "(self, x)")

    def test_overloads_as_a_whole(self) -> None:
        upstream = """\
            class A:
                @overload
                def f(self, x: int): ...
                @overload
                def f(self, x: str): ...
                def f(self, x): ...

                @property
                def p(self): ...
                @p.setter
                def p(self, x): ...

                def g(self): ...
            """
        merged = merge_replacing(
            upstream, "class A:\n    def f(self, z): ...\n    @property\n    def p(self): ...\n"
        )
        assert (
            merged
            == "class A:\n    def f(self, z): ...\n\n    @property\n    def p(self): ...\n\n    def g(self): ...\n"
        )

    def test_assignment(self) -> None:
        merged = merge_replacing(UPSTREAM, "LIMIT: int = 2\n")
        assert merged == UPSTREAM.replace("LIMIT = 1", "LIMIT: int = 2")

    def test_assignment_by_a_function(self) -> None:
        merged = merge_replacing(UPSTREAM, "def LIMIT() -> int: ...\n")
        assert merged == UPSTREAM.replace("LIMIT = 1\n", "\ndef LIMIT() -> int: ...\n\n\n")

    def test_fingerprint_is_of_upstreams(self) -> None:
        def upstreams(text: str) -> str | None:
            (change,) = attempt(text, "def f(): ...\n").changes
            assert change.action == "replaces"
            return change.upstream

        plain = upstreams("@d\ndef f(x=1):\n    return x\n")
        assert upstreams("# C.\n@d\ndef f(\n    x=1,\n):  # c\n\n    return (x)\n") == plain
        assert upstreams("def f(x=1):\n    return x\n") != plain
        assert upstreams("@d\ndef f(x=2):\n    return x\n") != plain

    def test_same_text_is_no_replacement(self) -> None:
        merged = attempt(UPSTREAM, "def first() -> None:\n    '''Do one thing.'''\n")
        assert [change.action for change in merged.changes] == ["replaces"]
        merged = attempt(UPSTREAM, 'def first() -> None:\n    """Do one thing."""\n')
        assert merged.changes == (Change("keeps", "first"),)
        assert merged.text == UPSTREAM


def merge_replacing(upstream: str, overlay: str) -> str:
    """Merge, and check that something was replaced."""
    upstream = dedent(upstream)
    assert any(change.upstream for change in attempt(upstream, overlay).changes)
    return merge(upstream, overlay)


class TestOpened:
    def test_head_stays_upstreams(self) -> None:
        upstream = '@d\nclass A[T](B, metaclass=C):\n    """Doc."""\n'
        merged = merge(upstream, "class A:\n    def f(self): ...\n")
        assert merged == upstream + "\n    def f(self): ...\n"
        merged = merge(upstream, "@d\nclass A[T](B, metaclass=C):\n    def f(self): ...\n")
        assert merged == upstream + "\n    def f(self): ...\n"

    @pytest.mark.parametrize("head", ["class A(B)", "@d\nclass A", "class A[T]", "class A(m=1)"])
    def test_another_head(self, head: str) -> None:
        assert "not upstream's" in problem("class A: ...\n", f"{head}:\n    x = 1\n")

    def test_docstring(self) -> None:
        found = problem(UPSTREAM, 'class Store:\n    """Mine."""\n    x = 1\n')
        assert "zarr/module.py::Store\n" in found
        assert "docstring" in found

    def test_placeholder(self) -> None:
        assert merge(UPSTREAM, "class Store: ...\n") == UPSTREAM
        assert merge(UPSTREAM, "class Store:\n    pass\n") == UPSTREAM

    def test_changes(self) -> None:
        overlay = "class Store:\n    # overlay: after get\n    def new(self): ...\n    name = 1\n"
        opened, added, replaced = sorted(attempt(UPSTREAM, overlay).changes, key=lambda c: c.name)
        assert opened == Change("opens", "Store")
        assert replaced.name == "Store.new" or added.name == "Store.name"
        assert {c.action for c in (added, replaced)} == {"adds", "replaces"}

    def test_docstring_of_the_module_is_for_the_overlay(self) -> None:
        assert merge(UPSTREAM, '# Comment.\n"""Says what is touched."""\n') == UPSTREAM


class TestExports:
    def test_union_is_sorted(self) -> None:
        upstream = '__all__ = ["CONST", "Class2", "Class10", "function"]\n'
        merged = merge(upstream, '__all__ = ["Class9", "a", "CONST", "ZZ", "_x"]\n')
        assert (
            merged
            == '__all__ = ["CONST", "ZZ", "Class2", "Class9", "Class10", "_x", "a", "function"]\n'
        )

    def test_one_to_a_line(self) -> None:
        upstream = '__all__ = [\n    "a",\n    # Above c.\n    "c",  # beside c\n]\n'
        assert merge(upstream, '__all__ = ["b", "d"]\n') == (
            '__all__ = [\n    "a",\n    "b",\n    # Above c.\n    "c",  # beside c\n    "d",\n]\n'
        )

    def test_too_long_for_a_line(self) -> None:
        names = [f'"name_{i:06}"' for i in range(6)]
        upstream = f"__all__ = [{', '.join(names)}]\n"
        merged = merge(upstream, '__all__ = ["zzzzzzzzz"]\n')
        assert merged.splitlines() == [
            "__all__ = [",
            *(f"    {n}," for n in names),
            '    "zzzzzzzzz",',
            "]",
        ]

    def test_nothing_new(self) -> None:
        upstream = '__all__ = ["a"]\n'
        assert merge(upstream, '__all__ = ("a",)\n') == upstream

    def test_upstream_has_none(self) -> None:
        assert merge("X = 1\n", '__all__ = ["a"]\n') == 'X = 1\n__all__ = ["a"]\n'

    @pytest.mark.parametrize("other", ['["a", *b]', '["a"] + b', "b"])
    def test_not_a_list_of_names(self, other: str) -> None:
        assert "__all__" in problem(f"__all__ = {other}\n", '__all__ = ["c"]\n')
        assert "__all__" in problem('__all__ = ["c"]\n', f"__all__ = {other}\n")


class TestRefused:
    @pytest.mark.parametrize(
        ("overlay", "says"),
        [
            ("# overlay: after nowhere\ndef new(): ...\n", "`nowhere`"),
            ("# overlay: after Store.get\ndef new(): ...\n", "`Store.get`"),
            (
                "# overlay: after nowhere\ndef new(): ...\n# overlay: after new\ndef newer(): ...\n",
                "`nowhere`",
            ),
            ("# overlay: before first\ndef new(): ...\n", "`# overlay: before first`"),
            ("# overlay: after\ndef new(): ...\n", "says nothing known"),
            ("# overlay: after first\n# overlay: after second\ndef new(): ...\n", "two markers"),
            ("# overlay: after first\ndef second(): ...\n", "remove the marker"),
            ("# overlay: after first\nclass Store:\n    x = 1\n", "remove the marker"),
            ("# overlay: after last\nclass New:\n    # overlay: after x\n    y = 1\n", "directs"),
            ("# overlay: after b\ndef a(): ...\n# overlay: after b\ndef b(): ...\n", "circle"),
            ("def new(): ...\nX = 1\ndef new(): ...\n", "twice"),
            ("os.remove('x')\n", "`os.remove('x')` defines nothing"),
            ("for x in y:\n    pass\n", "defines nothing"),
            ("if x:\n    y = 1\n", "defines nothing"),
            ("LIMIT += 1\n", "defines nothing"),
            ("X = 1\n# Trailing.\n", "`# Trailing.`"),
            ("def os(): ...\n", "binds this name by an import"),
            ("# Above.\nclass Store:\n    x = 1\n", "`# Above.`"),
            ("class Store:  # Beside.\n    x = 1\n", "`# Beside.`"),
            ("class Store:\n    x = 1\n    # Below.\n", "`# Below.`"),
            ("class Store:\n    ...  # Beside.\n", "# Beside."),
            ("def f(:\n", "not Python"),
        ],
    )
    def test_overlay(self, overlay: str, says: str) -> None:
        found = attempt(UPSTREAM, overlay).problems
        assert any(says in str(problem) for problem in found)

    @pytest.mark.parametrize(
        "upstream",
        [
            "if x:\n    def f(): ...\n",
            "try:\n    import x\nexcept ImportError:\n    class f: ...\n",
            "if x:\n    pass\nelse:\n    with y:\n        f = 1\n",
            "try:\n    from x import f\nfinally:\n    pass\n",
            "def f(): ...\nx = 1\ndef f(): ...\n",
            "f = g = 1\n",
            "f, g = 1, 2\n",
        ],
    )
    def test_not_one_definition(self, upstream: str) -> None:
        assert "zarr/module.py::f\n" in problem(upstream, "def f(x): ...\n")

    def test_every_problem_is_reported(self) -> None:
        overlay = (
            "# overlay: after nowhere\ndef a(): ...\nclass Store:\n    '''D.'''\n    pass\ndel x\n"
        )
        assert len(attempt(UPSTREAM, overlay).problems) == 3


# --- any module, any additions ------------------------------------------------------------------------------

_COMMENT = st.sampled_from(["", "# A comment.\n", "# Two lines.\n# Of comment.\n"])
_SHAPES = st.sampled_from(
    [
        "{name} = 1\n",
        "{name}: int = 1\n",
        '{name}: int\n"""Doc."""\n',
        "type {name} = int\n",
        "{name} = [\n    1,\n    2,\n]\n",
        "def {name}(): ...\n",
        "@decorated\nasync def {name}():\n    pass\n    # End.\n",
        "class {name}:\n    x = 1\n\n    def f(self): ...\n",
        "@overload\ndef {name}(): ...\n@overload\ndef {name}(): ...\ndef {name}(): ...\n",
    ]
)


@st.composite
def scopes(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """Draw a scope, an overlay for it, and the code that the overlay adds."""

    def definition(name: str) -> str:
        return draw(_SHAPES).format(name=name)

    theirs = [f"u{i}" for i in range(draw(st.integers(1, 5)))]
    mine = [f"o{i}" for i in range(draw(st.integers(1, 4)))]
    upstream = "\n".join(draw(_COMMENT) + definition(name) for name in theirs)
    if draw(st.booleans()):
        upstream = '"""Doc."""\n' + upstream
    added: list[str] = []
    overlay = ""
    for i, name in enumerate(mine):
        after = draw(st.none() | st.sampled_from([*theirs, *mine[:i]]))
        marker = f"# overlay: after {after}\n" if after else ""
        added.append(definition(name))
        overlay += marker + draw(_COMMENT) + added[-1]
    return upstream, overlay, added


@settings(max_examples=25, derandomize=True)
@given(scopes(), st.booleans())
def test_nothing_else_changes(scope: tuple[str, str, list[str]], in_class: bool) -> None:
    upstream, overlay, added = scope
    if in_class:
        upstream, overlay = ("class A:\n" + indent(text, "    ") for text in (upstream, overlay))
    upstream = formatted(upstream)
    merged = merge(upstream, overlay)
    rest = iter(line for line in merged.splitlines() if line)
    assert all(line in rest for line in upstream.splitlines() if line), "a line of upstream is gone"
    found = {ast.dump(node) for node in ast.walk(ast.parse(merged))}
    assert found.issuperset(ast.dump(node) for code in added for node in ast.parse(code).body)
