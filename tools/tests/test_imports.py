"""Adding imports, which ruff sorts in."""

from __future__ import annotations

import pytest

from tools.tests.checked import attempt, merge, problem

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

X = os, np, One


def f(x: Iterator[Codec]) -> Store | Any: ...
'''


def using(statement: str, use: str) -> str:
    """Return an overlay that imports something and uses it at runtime."""
    return f"{statement}\n\n\ndef new() -> None:\n    {use}\n"


@pytest.mark.parametrize(
    ("statement", "use", "old", "new"),
    [
        ("from zarr.core import Two", "Two", "F401\n", "F401\n    Two,\n"),
        ("from zarr.core import LIMIT", "LIMIT", "    One", "    LIMIT,\n    One"),
        ("from typing import cast", "cast", "Any\n", "Any, cast\n"),
        ("import asyncio", "asyncio", "import os", "import asyncio\nimport os"),
        ("from abc import ABC", "ABC", "import os", "import os\nfrom abc import ABC"),
        ("import zarr", "zarr", "from zarr.core", "import zarr\nfrom zarr.core"),
        (
            "from zarr.registry import f as g",
            "g",
            "\n)\n",
            "\n)\nfrom zarr.registry import f as g\n",
        ),
        ("import fsspec", "fsspec", "import numpy", "import fsspec\nimport numpy"),
        ("from .near import g", "g", "\n)\n", "\n)\n\nfrom .near import g\n"),
        ("import os.path", "os.path", "import os\n", "import os\nimport os.path\n"),
        ("import os", "os", "", ""),
    ],
)
def test_runtime(statement: str, use: str, old: str, new: str) -> None:
    merged = merge(UPSTREAM, using(statement, use))
    assert merged == UPSTREAM.replace(old, new, 1) + f"\n\ndef new() -> None:\n    {use}\n"


@pytest.mark.parametrize(
    ("statement", "use", "old", "new"),
    [
        ("from zarr.abc import Metadata", "Metadata", "Codec, Store", "Codec, Metadata, Store"),
        ("import attrs", "attrs.A", "Iterator\n", "Iterator\n\n    import attrs\n"),
        ("from typing import Any", "Any", "", ""),
        ("import numpy as np", "np.A", "", ""),
    ],
)
def test_typing(statement: str, use: str, old: str, new: str) -> None:
    definition = f"def new() -> {use}: ...\n"
    overlay = f"from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    {statement}\n\n\n"
    merged = merge(UPSTREAM, overlay + definition)
    assert merged == UPSTREAM.replace(old, new, 1) + f"\n\n{definition}"


def test_no_block_for_typing_yet() -> None:
    upstream = (
        '"""Doc."""\n\nfrom __future__ import annotations\n\nfrom zarr import a\n\n\ndef f(): a\n'
    )
    overlay = (
        "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import x\n\n\n"
        "def g() -> x.A: ...\n"
    )
    assert merge(upstream, overlay) == (
        '"""Doc."""\n\nfrom __future__ import annotations\n\nfrom typing import TYPE_CHECKING\n\n'
        "from zarr import a\n\nif TYPE_CHECKING:\n    import x\n\n\n"
        "def f():\n    a\n\n\ndef g() -> x.A: ...\n"
    )


@pytest.mark.parametrize("upstream", ["", "X = 1\n", "class A: ...\n", '"""Doc."""\n', "# C.\n"])
def test_no_imports_yet(upstream: str) -> None:
    overlay = (
        "from __future__ import annotations\nimport os\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import c\n\ndef g() -> c.A: os.sep\n"
    )
    merged = merge(upstream, overlay)
    assert (
        "import os\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import c\n" in merged
    )
    compile(merged, "m.py", "exec")


@pytest.mark.parametrize(
    ("names", "left"),
    [("Store", "Codec"), ("Codec, Store", None)],
)
def test_from_typing_to_runtime(names: str, left: str | None) -> None:
    merged = merge(UPSTREAM, using(f"from zarr.abc import {names}", f"print({names})"))
    assert f"\nfrom zarr.abc import {names}\nfrom zarr.core" in merged
    assert ("    from zarr.abc import" in merged) == (left is not None)
    assert left is None or f"    from zarr.abc import {left}\n" in merged


def test_what_nothing_uses_is_left_out() -> None:
    assert merge(UPSTREAM, "import sys\n\n\ndef new() -> None: ...\n") == (
        f"{UPSTREAM}\n\ndef new() -> None: ...\n"
    )


def test_imports_are_found_where_upstream_has_them() -> None:
    upstream = "try:\n    import x\nexcept ImportError:\n    x = None\n"
    assert merge(upstream, "import x\n") == upstream


def test_second_run_of_imports() -> None:
    upstream = "import os\n\nif os.name:\n    X = 1\n\nfrom zarr.b import c\n\nc()\n"
    merged = merge(upstream, using("from zarr.a import b\nimport abc", "print(abc, b)"))
    assert merged.startswith(
        "import abc\nimport os\n\nif os.name:\n    X = 1\n\nfrom zarr.a import b\nfrom zarr.b import c\n"
    )


def test_packages_go_together() -> None:
    assert not attempt("import zarr.core\n", "import zarr.abc\n").problems


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ("from elsewhere import One\n", "`from zarr.core import One`"),
        ("import elsewhere as np\n", "`import numpy as np`"),
        ("from elsewhere import X\n", "a definition of `X`"),
        ("import sys  # noqa: F401\n", "`# noqa: F401`"),
        ("# Why.\nimport sys\n", "`# Why.`"),
        ("if TYPE_CHECKING:\n    Y = 1\n", "more than imports"),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    a = None\n", "more than imports"),
    ],
)
def test_refused(overlay: str, says: str) -> None:
    assert says in problem(UPSTREAM, overlay)
