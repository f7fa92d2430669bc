"""Merging documents."""

from __future__ import annotations

import pytest

from tools.overlay.markdown import headings, merge_document
from tools.overlay.problems import Change

UPSTREAM = """\
---
# not a heading
title: x
---
# Stores

Intro.

## Remote { #remote }

Text.

```python
# not a heading either
```

### Options

None.

## Local
Text.
#not-a-heading
"""


def merge(upstream: str, overlay: str) -> str:
    merged = merge_document(upstream, overlay, path="docs/stores.md")
    assert merged.problems == ()
    again = merge_document(merged.text, overlay, path="docs/stores.md")
    assert (again.text, again.problems) == (merged.text, ())
    assert {change.action for change in again.changes} == {"keeps"}
    return merged.text


def problem(overlay: str, upstream: str = UPSTREAM) -> str:
    (found,) = merge_document(upstream, overlay, path="docs/stores.md").problems
    return str(found)


def test_headings() -> None:
    found = [(h.level, h.text) for h in headings(UPSTREAM.splitlines(keepends=True))]
    assert found == [(1, "Stores"), (2, "Remote"), (3, "Options"), (2, "Local")]


@pytest.mark.parametrize("fence", ["```", "~~~~", "   ```"])
def test_headings_in_fences(fence: str) -> None:
    text = f"{fence}md\n# a\n~~~\n```x\n# b\n{fence.strip()}\n# c\n"
    assert [h.text for h in headings(text.splitlines())] == ["c"]


@pytest.mark.parametrize(
    ("after", "heading", "before"),
    [
        ("Remote", "## New", "## Local\n"),
        ("Remote", "#### New", "## Local\n"),
        ("Options", "### New", "## Local\n"),
    ],
)
def test_after_a_section_and_those_below_it(after: str, heading: str, before: str) -> None:
    overlay = f"<!-- overlay: after {after} -->\n\n{heading}\n\nBody.\n\n##### Below\nMore.\n"
    section = f"{heading}\n\nBody.\n\n##### Below\nMore.\n\n"
    assert merge(UPSTREAM, overlay) == UPSTREAM.replace(before, section + before)


@pytest.mark.parametrize("marker", ["<!-- overlay: after Local -->\n", "", "<!-- Notes. -->\n\n"])
def test_at_the_end(marker: str) -> None:
    merged = merge(UPSTREAM, f"{marker}## New\n\nBody.")
    assert merged == UPSTREAM + "\n## New\n\nBody.\n"


def test_title_stays_alone() -> None:
    merged = merge("# Stores", "<!-- overlay: after Stores -->\n## New\n")
    assert merged == "# Stores\n\n## New\n"


def test_sections_keep_their_order() -> None:
    overlay = "".join(
        f"<!-- overlay: after {after} -->\n## {name}\n\n"
        for after, name in [
            ("Remote", "A"),
            ("Remote", "B"),
            ("A", "C"),
            ("Local", "D"),
            ("Remote", "E"),
        ]
    )
    merged = merge(UPSTREAM, overlay)
    order = [h.text for h in headings(merged.splitlines())]
    assert order == ["Stores", "Remote", "Options", "A", "C", "B", "E", "Local", "D"]


def test_replaced() -> None:
    overlay = "## Remote\n\nAll new.\n"
    merged = merge_document(UPSTREAM, overlay, path="docs/stores.md")
    (change,) = merged.changes
    assert (change.action, change.name) == ("replaces", "Remote")
    assert (change.upstream or "").startswith("sha256:")
    before, after = UPSTREAM.split("## Remote")[0], UPSTREAM[UPSTREAM.index("## Local") :]
    assert merged.text == f"{before}## Remote\n\nAll new.\n\n{after}"


def test_changes() -> None:
    overlay = "<!-- overlay: after Remote -->\n## New\n"
    merged = merge_document(UPSTREAM, overlay, path="docs/stores.md")
    assert merged.changes == (Change("adds", "New", after="Remote"),)


@pytest.mark.parametrize(
    ("overlay", "says"),
    [
        ("<!-- overlay: after Nowhere -->\n## New\n", "no section"),
        ("<!-- overlay: after New -->\n## New\n", "no section"),
        ("<!-- overlay: before Local -->\n## New\n", "says nothing known"),
        ("## New\n\n<!-- overlay: after Local -->\nText.\n", "above a heading"),
        ("Text.\n\n## New\n", "before the first heading"),
    ],
)
def test_refused(overlay: str, says: str) -> None:
    assert says in problem(overlay)


def test_would_take_over_what_follows() -> None:
    upstream = "# A\n\n## B\n\n### C\n\n### D\n"
    assert "would come to belong to it" in problem("<!-- overlay: after C -->\n## New\n", upstream)


def test_heading_that_stands_twice() -> None:
    upstream = "# A\n\n## B\n\n# C\n\n## B\n"
    assert "several sections" in problem("<!-- overlay: after B -->\n## New\n", upstream)
    assert "more than once" in problem("## B\n\nNew.\n", upstream)
