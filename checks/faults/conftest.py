"""Runs all collected cells, many at once, before the first test."""

from __future__ import annotations

from pathlib import Path

import pytest

from checks.faults import runner, table
from checks.faults.cells import Cell, quick

FOUND = pytest.StashKey[table.Found]()
"""The outcomes of the cells."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--stock-python", type=Path, required=True, help="an interpreter that imports the release"
    )
    group.addoption(
        "--whole", action="store_true", help="run every cell instead of a quick selection"
    )
    group.addoption(
        "--table", type=Path, help="run every cell, and write the outcomes to this file"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--whole") and not config.getoption("--table"):
        left_out = [item for item in items if (cell := _cell(item)) and not quick(cell)]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Run the cells here: in a fixture, their time would count as that of one test."""
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
