"""Reading `stack.toml`, and finding out what belongs to which pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tools.stack.manifest import Compatible, Manifest, PullRequest, Series, StackError, load
from tools.stack.ownership import Leaf, assign, leaves

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
own = ["docs/picture.png"]

[[compatible]]
definition = "zarr/store.py::f"
fingerprint = "sha256:1"
why = "It says the same."

[[series]]
name = "core"
most-added-in-src = 40
most-added-in-tests = 50
most-added-by-branch = 30

[[series]]
name = "local"
most-added-in-src = 4
most-added-in-tests = 5
most-added-by-branch = 3

[[pull_request]]
branch = "feat/two"
series = "local"
title = "feat: add two"
text = "## Summary\\n\\nWhy.\\n\\n## For reviewers\\n\\nHow."

[[pull_request]]
branch = "feat/one"
series = "core"
title = "feat(store)!: add one"
most-added = 20
issues = [12]
text = '''

## Summary

Because.

## For reviewers

| a table that is wider | than a line may be | because it is a table and tables do not wrap |
- https://example.org/an/address/that/is/longer/than/a/line/may/be/and/cannot/be/broken
'''
definitions = ["zarr/store.py::Store.get_many"]
tests = ["tests/test_x.py"]
docs = ["docs/guide.md#Some heading"]
fragments = ["one.feature.md"]
upstream_tests = ["tests/test_store.py"]
"""


def read(folder: Path, text: str) -> Manifest:
    """Write `stack.toml` and read it."""
    (folder / "stack.toml").write_text(text)
    return load(folder / "stack.toml")


def test_load(tmp_path: Path) -> None:
    manifest = read(tmp_path, TEXT)
    first, second = manifest.pull_requests
    assert [request.branch for request in manifest.pull_requests] == ["feat/one", "feat/two"]
    assert (first.most_added, second.most_added) == (20, 3)
    assert first.message.startswith("feat(store)!: add one\n\n## Summary\n\nBecause.\n\n## For")
    assert second.message == ("feat: add two\n\n## Summary\n\nWhy.\n\n## For reviewers\n\nHow.\n")
    assert first.issues == (12,)
    assert list(first.selectors()) == [
        ("zarr/store.py::Store.get_many", "src/zarr/store.py::Store.get_many"),
        ("tests/test_x.py", "tests/test_x.py"),
        ("docs/guide.md#Some heading", "docs/guide.md#Some heading"),
        ("one.feature.md", "changes/one.feature.md"),
    ]
    assert manifest.series == (Series("core", 40, 50, 30), Series("local", 4, 5, 3))
    assert manifest.own == ("docs/picture.png",)
    assert manifest.compatible == (Compatible("zarr/store.py::f", "sha256:1", "It says the same."),)


def test_every_problem_is_told(tmp_path: Path) -> None:
    text = TEXT
    for old, new in [
        ("most-added-in-src = 40", 'most-lines = 40\nmost-added-in-src = "many"'),
        ("issues = [12]", 'issues = ["12"]\nreviewer = "me"'),
        ('title = "feat: add two"', "title = 2"),
        ("feat/two", "feat/one"),
        ('"zarr/store.py::Store', '"src/zarr/store.py::Store'),
        ("one.feature.md", "feature.md"),
        ('why = "It says the same."', 'because = "It says the same."'),
        ('"tests/test_x.py"', '"test_x.py"'),
        ('["docs/picture.png"]', '"docs/picture.png"'),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    with pytest.raises(StackError) as caught:
        read(tmp_path, text)
    assert sorted(
        (p.where.removeprefix("stack.toml, "), p.what) for p in caught.value.problems
    ) == [
        ("compatible", "`because` is not known"),
        ("compatible", "`why` is not given, or is something else"),
        ("feat/one", "`feature.md` under `fragments` has another form"),
        ("feat/one", "`issues` lists something else"),
        ("feat/one", "`reviewer` is not known"),
        ("feat/one", "`src/zarr/store.py::Store.get_many` under `definitions` has another form"),
        ("feat/one", "`test_x.py` under `tests` has another form"),
        ("feat/one", "`title` is not given, or is something else"),
        ("feat/one", "two tables under `pull_request` have this name"),
        ("series core", "`most-added-in-src` is not given, or is something else"),
        ("series core", "`most-lines` is not known"),
        ("top level", "`own` lists something else"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (TEXT, "own = ", "cannot be read"),
        (TEXT, "", "names no pull_request"),
        (TEXT, "", "names no series"),
        (TEXT, "compatible = 1\n", "`compatible` lists something else"),
        ("feat/one", "feat one", "no name for a branch"),
        ("feat/one", "-b", "no name for a branch"),
        ("Because.", "Because.\n---\nSo.", "a line that ends the message of a patch"),
        ("feat: add two", "Add two", "no Conventional Commit"),
        ("feat: add two", "feat: add two\\nlines", "no Conventional Commit"),
        ("feat: add two", f"feat: {'a' * 67}", "at most 72 characters"),
        ("\\n\\n## For reviewers", "", "the text lacks ## Summary or ## For reviewers"),
        ("Because.", f"Because {'of it ' * 12}", "a line has more than 72 characters"),
        ('series = "local"', 'series = "remote"', "`remote` is no series"),
        ('name = "local"', 'name = "core"', "two tables under `series` have this name"),
        ("most-added = 20", "most-added = 0", "`most-added` is not given"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(StackError, match=re.escape(says)):
        read(tmp_path, TEXT.replace(old, new))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="cannot be read"):
        load(tmp_path / "stack.toml")


def test_fragment_paths(tmp_path: Path) -> None:
    listed = '["one.feature.md", "4112.misc.2.md", "+b.feature.md"]'
    manifest = read(tmp_path, TEXT.replace('["one.feature.md"]', listed))
    assert manifest.pull_requests[0].fragment_paths(7) == {
        "changes/one.feature.md": "changes/7.feature.md",
        "changes/4112.misc.2.md": "changes/7.misc.md",
        "changes/+b.feature.md": "changes/7.feature.1.md",
    }


def test_number(tmp_path: Path) -> None:
    manifest = read(tmp_path, TEXT)
    assert [manifest.number(name) for name in ("feat/one", "one", "two")] == [0, 0, 1]
    with pytest.raises(StackError, match=r"names no branch\n.*name one of feat/one, feat/two"):
        manifest.number("three")
    again = read(tmp_path, TEXT.replace("feat/two", "fix/one"))
    with pytest.raises(StackError, match="more than one branch"):
        again.number("one")


MODULE = b"""\
from a import b, c

__all__ = ["F", "c"]

class Store:
    x: int

    def get(self): ...

    class Inner:
        y = 1


class F:
    def g(self): ...
"""


def test_leaves_of_a_module_that_upstream_has() -> None:
    upstream = b"class Store:\n    class Inner: ...\n"
    found = leaves("src/zarr/s.py", MODULE, upstream)
    assert [leaf.name for leaf in found] == [
        "c",
        "Store.x",
        "Store.get",
        "Store.Inner.y",
        "F",
        "F.g",
    ]
    assert list(found[3].selectors()) == [
        "src/zarr/s.py::Store.Inner.y",
        "src/zarr/s.py::Store.Inner",
        "src/zarr/s.py::Store",
        "src/zarr/s.py",
    ]


def test_leaves_of_a_new_module() -> None:
    found = leaves("src/zarr/s.py", MODULE, None)
    assert [leaf.name for leaf in found][:3] == ["c", "Store", "Store.x"]
    assert leaves("src/zarr/s.py", b'"""Nothing yet."""\n', None) == [Leaf("src/zarr/s.py")]


DOCUMENT = b"""\
<!-- overlay: after There -->
## One
text
### Within one
```
# no heading
```
<!-- overlay: after Elsewhere -->
### Two
### Three
#### Within three
"""


def test_leaves_of_a_document() -> None:
    found = leaves("docs/a.md", DOCUMENT, b"# There\n")
    assert [(leaf.name, leaf.above) for leaf in found] == [
        ("One", ()),
        ("Within one", ("One",)),
        ("Two", ()),
        ("Three", ()),
        ("Within three", ("Three",)),
    ]
    assert str(found[1]) == "docs/a.md#Within one"


def test_a_fragment_is_a_whole() -> None:
    assert leaves("changes/1.feature.md", b"# Not a heading\n", None) == [
        Leaf("changes/1.feature.md")
    ]


def owners(*named: list[str], own: tuple[str, ...] = ()) -> dict[str, int]:
    """Assign what `MODULE` and `DOCUMENT` hold to pull requests that name this."""
    requests = [
        PullRequest(
            *(f"b{number}", "s", "t", "t", 1),
            definitions=tuple(n for n in names if n.startswith("zarr/")),
            docs=tuple(n for n in names if n.startswith("docs/")),
        )
        for number, names in enumerate(named)
    ]
    manifest = Manifest((Series("s", 1, 1, 1),), tuple(requests), own)
    found = [*leaves("src/zarr/s.py", MODULE, None), *leaves("docs/a.md", DOCUMENT, b"")]
    return {str(leaf): index for leaf, index in assign(manifest, found).items()}


def test_the_closest_name_counts() -> None:
    found = owners(
        ["zarr/s.py::Store", "zarr/s.py::F"],
        ["zarr/s.py::Store.get", "docs/a.md"],
        ["zarr/s.py", "docs/a.md#Within one"],
    )
    assert found == {
        "src/zarr/s.py::c": 2,
        "src/zarr/s.py::Store": 0,
        "src/zarr/s.py::Store.x": 0,
        "src/zarr/s.py::Store.get": 1,
        "src/zarr/s.py::Store.Inner": 0,
        "src/zarr/s.py::Store.Inner.y": 0,
        "src/zarr/s.py::F": 0,
        "src/zarr/s.py::F.g": 0,
        "docs/a.md#One": 1,
        "docs/a.md#Within one": 2,
        "docs/a.md#Two": 1,
        "docs/a.md#Three": 1,
        "docs/a.md#Within three": 1,
    }


def test_own_files_belong_to_none() -> None:
    assert set(owners(["zarr/s.py"], own=("docs/a.md",)).values()) == {0}


@pytest.mark.parametrize(
    ("named", "own", "where", "what"),
    [
        ([["zarr/s.py"]], (), "docs/a.md#One", "belongs to no pull request"),
        ([["zarr/s.py", "docs/a.md#One"]], (), "docs/a.md#Two", "belongs to no pull request"),
        ([["zarr/s.py::Store"]], ("docs/a.md",), "src/zarr/s.py::F", "belongs to no"),
        (
            [["zarr/s.py", "docs/a.md"], ["zarr/s.py"]],
            (),
            "b1",
            "`zarr/s.py` belongs to b0 and to b1",
        ),
        ([["zarr/s.py", "zarr/s.py", "docs/a.md"]], (), "b0", "belongs to b0 and to b0"),
        ([["zarr/s.py", "zarr/t.py", "docs/a.md"]], (), "b0", "names nothing"),
        ([["zarr/s.py", "zarr/s.py::gone", "docs/a.md"]], (), "b0", "names nothing"),
        ([["zarr/s.py", "docs/a.md"]], ("docs/b.md",), "own", "names nothing"),
        (
            [["zarr/s.py", "docs/a.md", "docs/a.md#Three"], ["docs/a.md#Within three"]],
            (),
            "",
            "",
        ),
        (
            [
                ["zarr/s.py", "docs/a.md", "docs/a.md#One", "docs/a.md#Two", "docs/a.md#Three"],
                ["docs/a.md#Within one", "docs/a.md#Within three"],
            ],
            (),
            "b0",
            "nothing that is not named more closely",
        ),
        (
            [["zarr/s.py::Store.get"], ["zarr/s.py", "docs/a.md"]],
            (),
            "src/zarr/s.py::Store.get",
            "which does not have `Store`, which encloses it, of b1",
        ),
        (
            [["zarr/s.py", "docs/a.md#Within one"], ["docs/a.md"]],
            (),
            "docs/a.md#Within one",
            "which encloses it, of b1",
        ),
    ],
)
def test_what_is_not_assigned(
    named: list[list[str]], own: tuple[str, ...], where: str, what: str
) -> None:
    if not what:
        assert owners(*named, own=own)
        return
    with pytest.raises(StackError) as caught:
        owners(*named, own=own)
    assert any(where in p.where and what in p.what for p in caught.value.problems)
