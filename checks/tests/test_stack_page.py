"""The page about the stack lists what is in `stack.toml`."""

from __future__ import annotations

import tomllib

from tools.environment import ROOT


def test_every_pull_request_is_listed_in_its_series() -> None:
    stack = tomllib.loads((ROOT / "stack.toml").read_text())
    page = (ROOT / "docs" / "stack.md").read_text()
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if row.startswith("| ")][1:]
    listed, series = [], ""
    for row in rows:
        if len(row) == 3:
            series = row.pop(0)
        listed.append((series, row[0]))
    assert listed == [(each["series"], each["title"]) for each in stack["pull_request"]]
