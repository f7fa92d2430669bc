"""Reading `stack.toml`, and finding out what belongs to which pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.stack.leaves import Leaf, leaves
from tools.stack.manifest import Compatible, Manifest, PullRequest, StackError, load
from tools.stack.ownership import assign

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """\
most-added-lines = 40
own = ["docs/picture.png"]

[[compatible]]
definition = "zarr/store.py::f"
fingerprint = "sha256:1"
why = "It says the same."

[[pull_request]]
branch = "feat/one"
title = "One"
issues = [12]
text = '''

Why.
'''
definitions = ["zarr/store.py::Store.get_many"]
tests = ["tests/test_x.py"]
docs = ["docs/guide.md#Some heading"]
fragments = ["12.feature.md"]
upstream_tests = ["tests/test_store.py"]

[[pull_request]]
branch = "feat/two"
title = "Two"
text = "Why."
"""


def read(folder: Path, text: str) -> Manifest:
    """Write `stack.toml` and read it."""
    (folder / "stack.toml").write_text(text)
    return load(folder / "stack.toml")


def test_load(tmp_path: Path) -> None:
    manifest = read(tmp_path, TEXT)
    first, second = manifest.pull_requests
    assert first.message == "One\n\nWhy.\n"
    assert first.issues == (12,)
    assert list(first.selectors()) == [
        ("zarr/store.py::Store.get_many", "src/zarr/store.py::Store.get_many"),
        ("tests/test_x.py", "tests/test_x.py"),
        ("docs/guide.md#Some heading", "docs/guide.md#Some heading"),
        ("12.feature.md", "changes/12.feature.md"),
    ]
    assert second == PullRequest("feat/two", "Two", "Why.")
    assert (manifest.most_added_lines, manifest.own) == (40, ("docs/picture.png",))
    assert manifest.compatible == (Compatible("zarr/store.py::f", "sha256:1", "It says the same."),)


def test_every_problem_is_told(tmp_path: Path) -> None:
    text = TEXT
    for old, new in [
        ("most-added-lines = 40", 'most-lines = 40\nmost-added-lines = "many"'),
        ("issues = [12]", 'issues = ["12"]\nreviewer = "me"'),
        ('title = "Two"', "title = 2"),
        ("feat/two", "feat/one"),
        ('"zarr/store.py::Store', '"src/zarr/store.py::Store'),
        ("12.feature.md", "feature.md"),
        ('why = "It says the same."', 'because = "It says the same."'),
        ('"tests/test_x.py"', '"test_x.py"'),
        ('["docs/picture.png"]', '"docs/picture.png"'),
    ]:
        assert text.count(old) == 1
        text = text.replace(old, new)
    with pytest.raises(StackError) as caught:
        read(tmp_path, text)
    assert sorted((p.where, p.what) for p in caught.value.problems) == [
        ("stack.toml, compatible", "`because` is not known"),
        ("stack.toml, compatible", "`why` is not given as text"),
        ("stack.toml, feat/one", "`feature.md` under `fragments` has another form"),
        ("stack.toml, feat/one", "`issues` is not a list of numbers"),
        ("stack.toml, feat/one", "`reviewer` is not known"),
        (
            "stack.toml, feat/one",
            "`src/zarr/store.py::Store.get_many` under `definitions` has another form",
        ),
        ("stack.toml, feat/one", "`test_x.py` under `tests` has another form"),
        ("stack.toml, feat/one", "`title` is not given as text"),
        ("stack.toml, feat/one", "two pull requests have this branch"),
        ("stack.toml, top level", "`most-added-lines` is not given"),
        ("stack.toml, top level", "`most-lines` is not known"),
        ("stack.toml, top level", "`own` is not a list of strings"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("most-added-lines = ", "is not TOML"),
        ("most-added-lines = 1\n", "names no pull request"),
        ("most-added-lines = 1\ncompatible = 1\n", "`compatible` is no list"),
        ("most-added-lines = 1\npull_request = 1\n", "names no pull request"),
        (TEXT.replace("feat/one", "feat one"), "no name for a branch"),
        (TEXT.replace("Why.\n'''", "Why.\n---\n'''"), "the text has a line that ends"),
        (TEXT.replace("feat/one", "-b"), "no name for a branch"),
        (TEXT.replace('"Two"', '"Two\\nlines"'), "more than one line"),
        (TEXT.replace("most-added-lines = 40", "most-added-lines = 0"), "is not given"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(StackError, match=says):
        read(tmp_path, text)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="there is none"):
        load(tmp_path / "stack.toml")


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
    manifest = Manifest(
        tuple(
            PullRequest(
                f"b{number}",
                "t",
                "t",
                definitions=tuple(n for n in names if n.startswith("zarr/")),
                docs=tuple(n for n in names if n.startswith("docs/")),
            )
            for number, names in enumerate(named)
        ),
        1,
        own,
    )
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


def test_what_belongs_to_none_is_told_once() -> None:
    with pytest.raises(StackError) as caught:
        owners(["zarr/s.py::c"])
    assert [problem.where for problem in caught.value.problems] == [
        *("src/zarr/s.py::Store", "src/zarr/s.py::F", "docs/a.md"),
    ]


@pytest.mark.parametrize(
    ("named", "own", "where", "what"),
    [
        ([["zarr/s.py"]], (), "docs/a.md", "belongs to no pull request"),
        ([["zarr/s.py", "docs/a.md#One"]], (), "docs/a.md#Two", "belongs to no pull request"),
        ([["zarr/s.py::Store"]], ("docs/a.md",), "src/zarr/s.py::F", "belongs to no"),
        (
            [["zarr/s.py", "docs/a.md"], ["zarr/s.py"]],
            (),
            "b1",
            "it names `zarr/s.py` and so does b0",
        ),
        ([["zarr/s.py", "zarr/s.py", "docs/a.md"]], (), "b0", "twice"),
        ([["zarr/s.py", "zarr/t.py", "docs/a.md"]], (), "b0", "names nothing that the fork has"),
        ([["zarr/s.py", "zarr/s.py::gone", "docs/a.md"]], (), "b0", "names nothing that the"),
        ([["zarr/s.py", "docs/a.md"]], ("docs/b.md",), "own", "names nothing that the fork has"),
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
            "names nothing that is not named more closely",
        ),
        (
            [["zarr/s.py::Store.get"], ["zarr/s.py", "docs/a.md"]],
            (),
            "src/zarr/s.py::Store.get",
            "`Store`, which encloses it, to b1, which comes later",
        ),
        (
            [["zarr/s.py", "docs/a.md#Within one"], ["docs/a.md"]],
            (),
            "docs/a.md#Within one",
            "which comes later",
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
