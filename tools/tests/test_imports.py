"""Adding imports."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.overlay.module import merge_module
from tools.tests.checked import attempt, formatted, merge, problem, untidy

if TYPE_CHECKING:
    from collections.abc import Iterable

UPSTREAM = '''\
"""Upstream's docstring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from zarr.core import (
    One,
    Three,  # noqa: F401
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc import Codec, Store

X = 1
'''


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        ("from zarr.core import Two", "Three,", "Three,  # noqa: F401\n    Two,"),
        ("from zarr.core import LIMIT", "    One", "    LIMIT,\n    One"),
        ("from typing import Literal", "Any", "Any, Literal"),
        ("import asyncio", "import os", "import asyncio\nimport os"),
        ("import sys", "import os", "import os\nimport sys"),
        ("from abc import ABC", "import os", "import os\nfrom abc import ABC"),
        ("import zarr", "from zarr.core", "import zarr\nfrom zarr.core"),
        ("from zarr.registry import f", "\n)\n", "\n)\nfrom zarr.registry import f\n"),
        ("import fsspec", "import numpy", "import fsspec\nimport numpy"),
        ("from numpy import nan", "as np", "as np\nfrom numpy import nan"),
        ("import numpy.typing as npt", "as np", "as np\nimport numpy.typing as npt"),
        ("from .near import f", "\n)\n", "\n)\n\nfrom .near import f\n"),
        ("import os, os.path", "import os", "import os\nimport os.path"),
    ],
)
def test_runtime(statement: str, old: str, new: str) -> None:
    expected = UPSTREAM.replace("Three,  # noqa: F401", new, 1) if old == "Three," else None
    assert merge(UPSTREAM, statement + "\n") == (expected or UPSTREAM.replace(old, new, 1))


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        ("from zarr.abc import Metadata", "Codec, Store", "Codec, Metadata, Store"),
        (
            "from types import CodeType",
            "import Iterator",
            "import Iterator\n    from types import CodeType",
        ),
        (
            "from zarr.a import b",
            "    from zarr.abc",
            "    from zarr.a import b\n    from zarr.abc",
        ),
        ("import attrs", "import Iterator\n", "import Iterator\n\n    import attrs\n"),
        ("from typing import Any", "", ""),
        ("import numpy as np", "", ""),
    ],
)
def test_typing(statement: str, old: str, new: str) -> None:
    overlay = f"from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    {statement}\n"
    assert merge(UPSTREAM, overlay) == UPSTREAM.replace(old, new, 1)


def test_no_block_for_typing_yet() -> None:
    upstream = '"""Doc."""\n\nfrom zarr import a\n\n\ndef f(): ...\n'
    overlay = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import x\n    import y\n"
    assert merge(upstream, overlay) == (
        '"""Doc."""\n\nfrom typing import TYPE_CHECKING\n\nfrom zarr import a\n\n'
        "if TYPE_CHECKING:\n    import x\n    import y\n\n\ndef f(): ...\n"
    )


@pytest.mark.parametrize("upstream", ["", "X = 1\n", "class A: ...\n", '"""Doc."""\n', "# C.\n"])
def test_no_imports_yet(upstream: str) -> None:
    overlay = (
        "import b\nimport os\n\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import c\n"
    )
    assert "import os" in merge(upstream, overlay)


class TestFromTypingToRuntime:
    def test_moves(self) -> None:
        merged = merge(UPSTREAM, "from zarr.abc import Store\n")
        assert "    from zarr.abc import Codec\n" in merged
        assert "\nfrom zarr.abc import Store\nfrom zarr.core" in merged

    def test_moves_the_last_of_a_section(self) -> None:
        merged = merge(UPSTREAM, "from collections.abc import Iterator\n")
        assert "if TYPE_CHECKING:\n    from zarr.abc import Codec, Store\n" in merged

    def test_moves_the_last_of_all(self) -> None:
        merged = merge(
            UPSTREAM, "from zarr.abc import Store, Codec\nfrom collections.abc import Iterator\n"
        )
        assert "TYPE_CHECKING" not in merged
        assert "\nfrom typing import Any\n" in merged

    def test_condition_is_used_elsewhere(self) -> None:
        upstream = UPSTREAM.replace("X = 1", "X = TYPE_CHECKING").replace(", Store", "")
        merged = merge(
            upstream, "from zarr.abc import Codec\nfrom collections.abc import Iterator\n"
        )
        assert "\nfrom typing import TYPE_CHECKING, Any\n" in merged


def test_imports_are_found_where_upstream_has_them() -> None:
    upstream = "try:\n    import x\nexcept ImportError:\n    x = None\n"
    assert merge(upstream, "import x\n") == upstream


def test_second_run_of_imports() -> None:
    upstream = "import os\n\nif os.name:\n    X = 1\n\nfrom zarr.b import c\n"
    assert merge(upstream, "from zarr.a import b\nimport abc\n") == (
        "import abc\nimport os\n\nif os.name:\n    X = 1\n\nfrom zarr.a import b\nfrom zarr.b import c\n"
    )


@pytest.mark.parametrize("spare", [0, -1])
def test_grows_over_the_line(spare: int) -> None:
    names = [f"name_{i:06}" for i in range(4)]
    name = "z" * (100 - len(f"from zarr.core import {', '.join(names)}, ") - spare)
    merged = merge(f"from zarr.core import {', '.join(names)}\n", f"from zarr.core import {name}\n")
    assert (len(merged.splitlines()) == 1) == (spare == 0)
    assert merged.endswith(f", {name}\n" if spare == 0 else f"    {name},\n)\n")


@pytest.mark.parametrize("spare", [0, -1])
def test_grows_over_the_line_in_the_block_for_typing(spare: int) -> None:
    name = "z" * (100 - len("    from zarr.abc import Codec, Store, ") - spare)
    merged = merge(UPSTREAM, f"if TYPE_CHECKING:\n    from zarr.abc import {name}\n")
    assert ("from zarr.abc import (\n" in merged) == (spare < 0)


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ("from elsewhere import One\n", "`from zarr.core import One`"),
        ("import elsewhere as np\n", "`import numpy as np`"),
        ("from elsewhere import X\n", "a definition of `X`"),
        ("import sys  # noqa: F401\n", "`import sys  # noqa: F401`"),
        ("# Why.\nimport sys\n", "`# Why.`"),
        ("if TYPE_CHECKING:\n    Y = 1\n", "more than imports"),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    a = None\n", "more than imports"),
    ],
)
def test_refused(overlay: str, says: str) -> None:
    assert says in problem(UPSTREAM, overlay)


def test_laid_out_in_no_known_way() -> None:
    assert "not laid out" in problem("from a import (b,\n  c)\n", "from a import d\n")


def test_packages_go_together() -> None:
    assert not attempt("import zarr.core\n", "import zarr.abc\n").problems


# --- against ruff -------------------------------------------------------------------------------------------

_MODULES = st.sampled_from(
    ["os", "os.path", "typing", "numpy", "fsspec.asyn", "zarr", "zarr.abc.store", "zarr.core", "re"]
)
_NAMES = st.sampled_from(
    ["a", "B", "b", "Bc", "BC", "int8", "int16", "Int8", "_x", "X", "zarr_2", "zarr_10", "a_" * 12]
)


@st.composite
def statements(draw: st.DrawFn) -> str:
    module = draw(_MODULES)
    if draw(st.booleans()):
        return f"import {module}" + draw(
            st.sampled_from(["", " as alias_of_" + module.replace(".", "")])
        )
    names = draw(st.lists(_NAMES, min_size=1, max_size=6, unique=True))
    own = module.replace(".", "")
    return f"from {module} import {', '.join(f'{name}_{own}' for name in names)}"


def _module(runtime: Iterable[str], typing: Iterable[str]) -> str:
    block = "".join(f"    {line}\n" for line in typing)
    flag = "from typing import TYPE_CHECKING\n" if block else ""
    return (
        "".join(f"{line}\n" for line in runtime)
        + flag
        + (f"if TYPE_CHECKING:\n{block}" if block else "")
    )


def _imported(text: str) -> set[str]:
    nodes = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return {
        f"{getattr(node, 'module', '')}:{alias.name}:{alias.asname}"
        for node in nodes
        for alias in node.names
    }


@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(*[st.lists(statements(), max_size=5, unique=True) for _ in range(4)])
def test_sorted_as_ruff_sorts(
    runtime: list[str], typing: list[str], more: list[str], more_typing: list[str]
) -> None:
    upstream = formatted(_module(runtime, typing) + "\n\ndef f(): ...\n")
    overlay = _module(more, more_typing)
    merged = merge_module(upstream, overlay, path="m.py")
    assert merged.problems == ()
    assert untidy(merged.text) == ""
    assert _imported(merged.text) - {"typing:TYPE_CHECKING:None"} == (
        _imported(upstream) | _imported(overlay)
    ) - {"typing:TYPE_CHECKING:None"}
