"""A hash of what a definition says, blind to how it is laid out.

`ast.dump` will not do: what it writes for the same code differs between Python 3.12 and 3.13.
"""

import ast
import hashlib
from collections.abc import Sequence


def fingerprint(code: Sequence[ast.stmt]) -> str:
    """Hash the syntax tree of some code. Comments and layout do not count; docstrings do."""
    canonical = "\n".join(map(_canonical, code))
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _canonical(node: object) -> str:
    """Write a tree down without what differs between interpreters, and without contexts."""
    if isinstance(node, ast.JoinedStr):
        # Python 3.12 leaves empty strings in format specifications.
        node = ast.JoinedStr([part for part in node.values if not _is_empty(part)])
    if isinstance(node, ast.AST):
        fields = (
            f"{name}={_canonical(value)}"
            for name, value in ast.iter_fields(node)
            if name != "ctx" and (value not in (None, []) or _is_value(node, name))
        )
        return f"{type(node).__name__}({', '.join(fields)})"
    if isinstance(node, list):
        return f"[{', '.join(map(_canonical, node))}]"
    return repr(node)


def _is_value(node: ast.AST, name: str) -> bool:
    """Tell the field that says `None` where the code does."""
    return isinstance(node, ast.Constant) and name == "value"


def _is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == ""
