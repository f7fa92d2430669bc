"""Leaving out of a file what belongs to later pull requests."""

from __future__ import annotations

import subprocess
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tools.overlay.module import merge_module
from tools.stack.leaves import leaves
from tools.stack.restrict import restrict_document, restrict_module
from tools.stack.uses import uses
from tools.tests.checked import RUFF, untidy

if TYPE_CHECKING:
    from collections.abc import Collection

LINT = (
    "check", "--isolated", "--no-cache", "--target-version=py312", "--select=F,TC",
    "--stdin-filename=m.py", "-",
)  # fmt: skip


def new(text: str, *kept: str) -> str:
    """Restrict a module that upstream lacks, and see to it that nothing is left to tidy up."""
    text = dedent(text)
    assert untidy(text) == "", "the test's own text must be tidy"
    made = restrict_module(text, kept, None)
    assert untidy(made) == ""
    assert linted(made) == ""
    return made


def linted(text: str) -> str:
    """Return what is imported and not used, or used and not there, or should be for typing only."""
    done = subprocess.run([RUFF, *LINT], input=text, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode else ""


def opened(upstream: str, overlay: str, *kept: str) -> str:
    """Restrict a module of the overlay and merge it into upstream's."""
    cut = restrict_module(dedent(overlay), kept, dedent(upstream))
    merged = merge_module(dedent(upstream), cut, path="zarr/module.py")
    assert merged.problems == ()
    assert untidy(merged.text) == ""
    return merged.text


NEW = '''\
"""What it is for."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

import numpy as np

from zarr.a import one, three, two

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.b import Thing

__all__ = ["First", "second"]

LIMIT = 3
"""How many."""

OTHER = os.sep


class First:
    """The first."""

    field: int
    """A field."""
    other: Thing

    def method(self, values: Sequence[int]) -> None:
        one(values)

    def later(self) -> object:
        return cast("Iterable[int]", two(np))


# What comes first.
def second() -> int:
    return LIMIT


def third() -> object:
    return three(sys)
'''


def test_everything_stays() -> None:
    names = [leaf.name for leaf in leaves("src/zarr/m.py", NEW.encode(), None)]
    assert new(NEW, *names) == NEW


def test_new_module() -> None:
    assert new(NEW, "First", "First.field", "First.method") == dedent('''\
        """What it is for."""

        from __future__ import annotations

        from typing import TYPE_CHECKING

        from zarr.a import one

        if TYPE_CHECKING:
            from collections.abc import Sequence

        __all__ = ["First"]


        class First:
            """The first."""

            field: int
            """A field."""

            def method(self, values: Sequence[int]) -> None:
                one(values)
        ''')


def test_no_import_is_left() -> None:
    assert new(NEW, "LIMIT", "second") == dedent('''\
        """What it is for."""

        from __future__ import annotations

        __all__ = ["second"]

        LIMIT = 3
        """How many."""


        # What comes first.
        def second() -> int:
            return LIMIT
        ''')


def test_nothing_exported_is_left() -> None:
    made = new(NEW, "third")
    assert "__all__" not in made
    assert "from zarr.a import three\n" in made


def test_every_prefix_is_tidy() -> None:
    names = [leaf.name for leaf in leaves("src/zarr/m.py", NEW.encode(), None)]
    for count in range(1, len(names)):
        new(NEW, *names[:count])
    for count in range(1, len(names)):
        kept = names[count:]
        if "First" not in kept:
            kept = [name for name in kept if not name.startswith("First.")]
        if "second" not in kept or "LIMIT" in kept:
            new(NEW, *kept)


def test_runtime_import_that_is_left_for_typing() -> None:
    text = '''\
        """Docs."""

        from __future__ import annotations

        from collections.abc import Iterable, Iterator

        from zarr.a import Thing
        from zarr.b import Other, Some


        def first(things: Thing, others: Other) -> Iterator[Some]:
            yield Some()


        def later(things: object) -> bool:
            return isinstance(things, Thing | Other | Iterable | Iterator)
    '''
    # `Other` may stay, because its module is needed anyway.
    assert new(text, "first") == dedent('''\
        """Docs."""

        from __future__ import annotations

        from typing import TYPE_CHECKING

        from zarr.b import Other, Some

        if TYPE_CHECKING:
            from collections.abc import Iterator

            from zarr.a import Thing


        def first(things: Thing, others: Other) -> Iterator[Some]:
            yield Some()
        ''')


def test_annotations_that_are_evaluated_keep_their_imports() -> None:
    text = """\
        from zarr.a import Thing


        def first(things: Thing) -> None: ...


        def later() -> object:
            return Thing()
    """
    made = restrict_module(dedent(text), ["first"], None)
    assert made.startswith("from zarr.a import Thing\n\n\ndef first")


def test_long_imports_are_laid_out_anew() -> None:
    names = [f"a_rather_long_name_{number}" for number in range(6)]
    lines = "".join(f"    {name},\n" for name in names)
    body = "".join(
        f"\n\ndef f{number}():\n    return {name}\n" for number, name in enumerate(names)
    )
    made = new(f"from zarr.module import (\n{lines})\n{body}", "f1", "f3")
    assert made.startswith(f"from zarr.module import {names[1]}, {names[3]}\n\n\ndef f1")


def test_import_of_a_function_is_its_own() -> None:
    text = """\
        from __future__ import annotations

        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from zarr.a import Thing


        def first(things: object) -> bool:
            from zarr.a import Thing

            return isinstance(things, Thing)


        def later(things: Thing) -> None: ...
    """
    assert "TYPE_CHECKING" not in new(text, "first")
    assert new(text, "first", "later") == dedent(text)


def test_import_that_nothing_uses_stays() -> None:
    text = "from zarr.a import a  # noqa: F401\nfrom zarr.b import b\n\nX = 1\nY = b\n"
    assert new(text, "X") == "from zarr.a import a  # noqa: F401\n\nX = 1\n"


def test_statements_go_with_what_they_use() -> None:
    text = """\
        import pytest

        from zarr.a import register

        pytest.importorskip("fsspec")

        FIRST = 1
        LATER = 2

        register(FIRST)

        if LATER:
            register(LATER)
    """
    assert new(text, "FIRST").endswith("FIRST = 1\n\nregister(FIRST)\n")
    assert new(text, "FIRST", "LATER") == dedent(text)


def test_functions_of_one_name_stay_together() -> None:
    text = """\
        from typing import overload


        def before() -> None: ...


        @overload
        def f(x: int) -> int: ...
        @overload
        def f(x: str) -> str: ...
        def f(x: object) -> object:
            return x


        def after() -> None: ...
    """
    made = new(text, "f", "after")
    assert made == dedent(text).replace("def before() -> None: ...\n\n\n", "")
    assert new(text, "after") == "def after() -> None: ...\n"


UPSTREAM = '''\
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

A = 1
B = 2


class Store:
    """A store."""

    def get(self): ...

    def put(self, values: "Sequence"): ...


def f(): ...


def g(): ...
'''
OVERLAY = '''\
"""Why."""

from zarr.x import one, two

if TYPE_CHECKING:
    from zarr.y import Y


class Store:
    # overlay: after get
    def get_many(self): ...

    # overlay: after get_many
    def get_more(self): ...

    # overlay: after get_more
    # A comment.
    def get_most(self, y: "Y"): ...

    # overlay: after get
    def get_least(self): ...

    def put(self, value):
        return one(value)


# overlay: after f
def f_one(): ...


# overlay: after f_one
def f_two():
    return two


# overlay: after f_two
def f_three(): ...


def last(): ...


# overlay: after last
def very_last(): ...
'''


def order(text: str) -> list[str]:
    """Return the names of the functions of a module, in their order."""
    return [line.split("def ")[1].split("(")[0] for line in text.splitlines() if "def " in line]


def test_order_is_that_of_the_whole() -> None:
    names = [leaf.name for leaf in leaves("src/zarr/m.py", OVERLAY.encode(), UPSTREAM.encode())]
    whole = order(opened(UPSTREAM, OVERLAY, *names))
    assert whole == [
        *("get", "get_many", "get_more", "get_most", "get_least", "put"),
        *("f", "f_one", "f_two", "f_three", "g", "last", "very_last"),
    ]
    for left_out in names:
        kept = [name for name in names if name != left_out]
        gone = {left_out.rpartition(".")[2]} - {"put"}
        made = opened(UPSTREAM, OVERLAY, *kept)
        assert order(made) == [name for name in whole if name not in gone]
        assert "overlay" not in made
        for also in names:
            rest = [name for name in kept if name != also]
            both = gone | ({also.rpartition(".")[2]} - {"put"})
            if rest:
                made = opened(UPSTREAM, OVERLAY, *rest)
                assert order(made) == [name for name in whole if name not in both]


def test_replaced_definition_of_later_stays_upstreams() -> None:
    made = opened(UPSTREAM, OVERLAY, "Store.get_most", "f_three")
    assert "one" not in made
    assert made == dedent('''\
        from typing import TYPE_CHECKING

        if TYPE_CHECKING:
            from collections.abc import Sequence

            from zarr.y import Y

        A = 1
        B = 2


        class Store:
            """A store."""

            def get(self): ...

            # A comment.
            def get_most(self, y: "Y"): ...

            def put(self, values: "Sequence"): ...


        def f(): ...


        def f_three(): ...


        def g(): ...
        ''')


def test_class_of_upstream_without_members_is_left_out() -> None:
    cut = restrict_module(OVERLAY, ["last"], UPSTREAM)
    assert "class" not in cut
    assert "import" not in cut.replace("import TYPE_CHECKING", "")


def test_exports_of_an_opened_module() -> None:
    upstream = 'from zarr.a import A\n\n__all__ = ["A"]\n'
    overlay = (
        'from zarr.b import B\nfrom zarr.c import C\n\n__all__ = ["B", "C", "d"]\n\n\n'
        "def d(): ...\n"
    )
    assert opened(upstream, overlay, "C") == (
        'from zarr.a import A\nfrom zarr.c import C\n\n__all__ = ["A", "C"]\n'
    )
    assert opened(upstream, overlay, "d") == (
        'from zarr.a import A\n\n__all__ = ["A", "d"]\n\n\ndef d(): ...\n'
    )


DOCUMENT = """\
<!-- What this adds. -->
<!-- overlay: after There -->
## One
Text.

### Within one
More.

<!-- overlay: after One -->
## Two
Text.
"""


@pytest.mark.parametrize(
    ("kept", "made"),
    [
        (["One"], "<!-- overlay: after There -->\n## One\nText.\n"),
        (["Two"], "<!-- overlay: after There -->\n## Two\nText.\n"),
        (
            ["One", "Two"],
            (
                "<!-- overlay: after There -->\n## One\nText.\n\n"
                "<!-- overlay: after One -->\n## Two\nText.\n"
            ),
        ),
    ],
)
def test_document(kept: Collection[str], made: str) -> None:
    cut = restrict_document(DOCUMENT, kept, theirs=["There"])
    assert cut == "<!-- What this adds. -->\n" + made


def test_whole_document() -> None:
    kept = ["One", "Within one", "Two"]
    assert restrict_document(DOCUMENT, kept, theirs=["There"]) == DOCUMENT


def test_what_a_function_binds_is_its_own() -> None:
    code = dedent("""\
        def f(a: T = default, *b, c, **d):
            from m import e
            import g.h
            i = j = a + b
            for k in c:
                with d as l: ...
            def n(o): return o, p
            class Q(R): ...
            s = lambda t: (t, u, i)
            return e, g, i, j, k, l, n, Q, s, [v for v in w], x
        def another():
            return i
    """)
    assert uses(code, postponed=True).at_runtime == {
        *("default", "p", "R", "u", "v", "w", "x", "i"),
    }


def test_uses() -> None:
    code = dedent("""\
        type Alias[T: Bound] = Aliased[T]
        x: Annotated = value

        @decorator
        async def f[T: Also](a: Param = default, *args: "Quoted | list['Deep']") -> Result:
            y: Local = cast("Cast[Inner]", "NotOne")
            z = cast(Plain, a)
            return module.attribute

        class C(Base): ...
        __all__ = ["exported"]
    """)
    found = uses(code, postponed=True)
    assert found.at_runtime >= {"value", "decorator", "default", "cast", "module", "Base", "Plain"}
    assert found.for_typing >= {"Aliased", "Bound", "Annotated", "Also", "Param", "Quoted", "Deep"}
    assert found.for_typing >= {"Result", "Local", "Cast", "Inner"}
    assert "exported" in found.at_runtime
    assert not {"NotOne", "attribute"} & found.all
    assert not found.at_runtime & {"Annotated", "Param", "Result", "Local", "Cast", "Bound"}
    evaluated = uses(code, postponed=False)
    assert evaluated.at_runtime >= {"Annotated", "Param", "Result", "Local"}
    assert {"Quoted", "Deep", "Cast", "Aliased"} <= evaluated.for_typing - evaluated.at_runtime
