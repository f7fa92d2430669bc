"""Runs the cells that are collected, many at once, before the first of their tests looks."""

from __future__ import annotations

from pathlib import Path

import pytest

from checks.faults import runner, table
from checks.faults.cells import Cell, quick

FOUND = pytest.StashKey[table.Found]()
"""What came of the cells."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--stock-python", type=Path, required=True, help="an interpreter that imports the release"
    )
    group.addoption("--whole", action="store_true", help="try every cell, not a quick selection")
    group.addoption("--table", type=Path, help="write what came of every cell to this file")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--whole") and not config.getoption("--table"):
        left_out = [item for item in items if (cell := _cell(item)) and not quick(cell)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Read, here and not in a fixture: there it would count as the time of one test."""
    config = session.config
    cells = [cell for item in session.items if (cell := _cell(item))]
    if not cells or config.getoption("collectonly"):
        return
    print(f"\nreading {len(cells)} cells on each side ...", flush=True)
    found = runner.run(cells, stock=config.getoption("--stock-python"))
    config.stash[FOUND] = found
    if target := config.getoption("--table"):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(table.markdown(found))


def _cell(item: pytest.Item) -> Cell | None:
    cell = getattr(item, "callspec", None) and item.callspec.params.get("cell")  # type: ignore[attr-defined]
    return cell if isinstance(cell, Cell) else None
