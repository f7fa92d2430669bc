"""The hash of a definition."""

from __future__ import annotations

import ast

import pytest

from tools.overlay import fingerprint as hashing

CODE = '''\
@decorated
async def get[T: int](self, key: str, /, *, default=-1.5e300, **rest) -> T | None:
    """Docstring."""
    if (value := self.values.get(f"{key!r:>{width}}", b"\\x00")) is not ...:
        return [v async for v in value if not v][::2]
    match rest:
        case {"a": 1j, **other} | [_, *other]:
            raise ValueError from None
'''


def fingerprint(code: str) -> str:
    return hashing.fingerprint(ast.parse(code).body)


def test_same_under_every_interpreter() -> None:
    # Written down from Python 3.12; what another interpreter makes of it must not differ.
    expected = "sha256:1d93f581652e62bc19907b7a1787ab103edcaa6f2ae048b2032a6c6b096a99f9"
    assert fingerprint(CODE) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("decorated", "decorated  # a comment"),
        ("key: str,", "key : str   ,"),
        ('b"\\x00"', "b'\\0'"),
        ("    match rest:", "\n\n    # A comment.\n    match (rest):"),
        ("raise ValueError", "raise (ValueError)"),
    ],
)
def test_blind_to_layout(old: str, new: str) -> None:
    assert old in CODE
    assert fingerprint(CODE.replace(old, new)) == fingerprint(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@decorated\n", ""),
        ("async def", "def"),
        ("[T: int]", "[T]"),
        ("str, /,", "str,"),
        ("Docstring.", "Docstring!"),
        ("!r", "!s"),
        ("-1.5e300", "1.5e300"),
        ("::2", ":2"),
        (" from None", ""),
        ("**other", "**others"),
        ("is not ...", "is not None"),
        ("from None", "from ..."),
        ('{"a": 1j', '{"": 1j'),
        ("::2]", "::2], ''"),
    ],
)
def test_sees_everything_else(old: str, new: str) -> None:
    assert old in CODE
    assert fingerprint(CODE.replace(old, new)) != fingerprint(CODE)
