"""Merging a package, its lock, and the command line."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from tools.overlay import upstream
from tools.overlay.cli import main
from tools.overlay.problems import OverlayError
from tools.overlay.project import Project
from tools.overlay.tree import files, materialise, plan, versioned
from tools.tests.conftest import OVERLAY, RELEASE, SETTINGS, write

if TYPE_CHECKING:
    from pathlib import Path


type Output = pytest.CaptureFixture[str]


def problems(project: Project, release: Path) -> list[str]:
    with pytest.raises(OverlayError) as caught:
        project.plan(project.release(release))
    for found in caught.value.problems:
        assert found.where
        assert found.what
        assert found.remedy
        assert str(found) in str(caught.value)
    return [str(found) for found in caught.value.problems]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


class TestMerge:
    def test_tree(self, project: Project, release: Path, tmp_path: Path, capsys: Output) -> None:
        into = tmp_path / "into"
        arguments = ["merge", "--upstream", str(release), "--into", str(into)]
        assert main(arguments, root=project.root) == 0
        write(into, {"zarr/__pycache__/x.pyc": "", "zarr/.hypothesis/x": ""})
        assert list(files(into, "zarr")) == sorted({*RELEASE, *OVERLAY})
        for path in ("zarr/__init__.py", "zarr/py.typed", "zarr/untouched.py"):
            assert (into / path).read_bytes() == (release / path).read_bytes()
        assert (into / "zarr/_reads.py").read_text() == OVERLAY["zarr/_reads.py"]
        assert (into / "zarr/store.py").read_text() == (
            "class Store:\n    def get(self): ...\n\n    def get_many(self): ...\n\n"
            "    def put(self, value): ...\n\n\ndef f(): ...\n"
        )
        assert "1.2.3+fork.7" in capsys.readouterr().out

    def test_version(self, project: Project, release: Path) -> None:
        merged = project.plan(project.release(release))
        names: dict[str, object] = {}
        exec(merged.parts["zarr/_version.py"].content, names)  # noqa: S102
        assert names["__version__"] == names["version"] == "1.2.3+fork.7" == project.version
        assert names["__version_tuple__"] == names["version_tuple"] == (1, 2, 3, "fork.7")

    def test_version_in_a_repository_ends_in_the_time_of_the_commit(
        self, project: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def git(*arguments: str) -> None:
            author = ("-c", "user.name=x", "-c", "user.email=x@example.org")
            subprocess.run(["git", *author, *arguments], cwd=project.root, check=True)

        git("init", "--quiet")
        assert Project(project.root).version == "1.2.3+fork.7"  # nothing is committed
        monkeypatch.setenv("GIT_COMMITTER_DATE", "2026-01-31T23:59:58-01:00")
        git("commit", "--quiet", "--allow-empty", "--message", "first")
        assert Project(project.root).version == "1.2.3+fork.7.20260201005958"
        monkeypatch.setenv("PATH", "")
        assert Project(project.root).version == "1.2.3+fork.7"

    def test_version_of_a_source_distribution_is_its_own(self, project: Project) -> None:
        write(
            project.root,
            {"PKG-INFO": "Metadata-Version: 2.4\nName: zarr\nVersion: 1.2.3+fork.7.2026\n"},
        )
        assert Project(project.root).version == "1.2.3+fork.7.2026"

    def test_version_is_written_in_another_way(self) -> None:
        with pytest.raises(OverlayError, match="versioned"):
            versioned("version = '1'\n", "1.2")

    def test_update_tells_what_changed(
        self, project: Project, release: Path, tmp_path: Path, capsys: Output
    ) -> None:
        into = tmp_path / "into"
        arguments = ["merge", "--upstream", str(release), "--into", str(into)]
        main(arguments, root=project.root)
        (into / "zarr/__pycache__").mkdir()
        (into / "zarr/__pycache__/x.pyc").touch()
        capsys.readouterr()
        assert main(arguments, root=project.root) == 0
        assert capsys.readouterr().out.startswith("nothing changed\n")

        (project.overlay / "zarr/_reads.py").rename(project.overlay / "zarr/_other.py")
        edit(project.overlay / "zarr/store.py", "(self, value)", "(self, new)")
        assert main(arguments, root=project.root) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:-1] == ["- zarr/_reads.py", "+ zarr/_other.py", "~ zarr/store.py"]
        assert not (into / "zarr/_reads.py").exists()

    def test_never_over_what_it_did_not_write(
        self, project: Project, release: Path, capsys: Output
    ) -> None:
        before = {path: (release / path).read_bytes() for path in RELEASE}
        arguments = ["merge", "--upstream", str(release), "--into", str(release)]
        assert main(arguments, root=project.root) == 1
        assert "not merged by this tool" in capsys.readouterr().err
        assert {path: (release / path).read_bytes() for path in RELEASE} == before

    def test_merged_tree_merges_again(
        self, project: Project, release: Path, tmp_path: Path
    ) -> None:
        first = plan(release, project.overlay, version=project.version)
        materialise(first, release, tmp_path / "into")
        second = plan(tmp_path / "into", project.overlay, version=project.version)
        assert second.problems == ()
        assert {path: part.content for path, part in second.parts.items()} == {
            path: part.content for path, part in first.parts.items()
        }

    def test_merged_tree_is_not_the_release(
        self, project: Project, release: Path, tmp_path: Path
    ) -> None:
        into = tmp_path / "into"
        materialise(project.plan(project.release(release)), release, into)
        with pytest.raises(OverlayError, match=r"holds zarr 1\.2\.3\+fork\.7"):
            project.release(into)

    def test_file_that_does_not_merge(self, project: Project, release: Path) -> None:
        write(project.overlay, {"zarr/py.typed": "x"})
        (found,) = problems(project, release)
        assert found.startswith("zarr/py.typed\n")


class TestLock:
    def test_text(self, project: Project) -> None:
        table = tomllib.loads(project.lock_file.read_text())
        assert table["upstream"] == "1.2.3"
        assert table["opened"] == ["zarr/store.py", "zarr/store.py::Store"]
        assert list(table["replaced"]) == ["zarr/store.py::Store.put"]
        assert table["replaced"]["zarr/store.py::Store.put"].startswith("sha256:")
        assert project.load_lock().text() == project.lock_file.read_text()

    def test_drift(self, project: Project, release: Path) -> None:
        edit(release / "zarr/store.py", "def put(self)", "def put(self, key)")
        (found,) = problems(project, release)
        assert found.startswith("zarr/store.py::Store.put\n")
        assert "not the one that was replaced" in found

    def test_layout_is_no_drift(self, project: Project, release: Path) -> None:
        edit(release / "zarr/store.py", "def put(self): ...", "def put(\n  self\n  ):\n        ...")
        project.plan(project.release(release))

    def test_replaced_definition_is_gone(self, project: Project, release: Path) -> None:
        edit(release / "zarr/store.py", "def put", "def put_one")
        (found,) = problems(project, release)
        assert "upstream no longer has it" in found

    def test_opened_class_is_gone(self, project: Project, release: Path) -> None:
        edit(release / "zarr/store.py", "class Store", "class BaseStore")
        found = problems(project, release)
        assert any(
            text.startswith("zarr/store.py::Store\n") and "no longer has it" in text
            for text in found
        )

    def test_opened_module_is_gone(self, project: Project, release: Path) -> None:
        (release / "zarr/store.py").rename(release / "zarr/stores.py")
        found = problems(project, release)
        assert any(
            text.startswith("zarr/store.py\n") and "no longer has it" in text for text in found
        )

    def test_replaced_without_an_entry(self, project: Project, release: Path) -> None:
        with (project.overlay / "zarr/store.py").open("a") as file:
            file.write("def f(x): ...\n")
        (found,) = problems(project, release)
        assert found.startswith("zarr/store.py::f\n")
        assert "the lock does not know" in found

    def test_entry_that_is_no_longer_replaced(self, project: Project, release: Path) -> None:
        edit(project.overlay / "zarr/store.py", "    def put(self, value): ...\n", "")
        (found,) = problems(project, release)
        assert found.startswith("zarr/store.py::Store.put\n")
        assert "no longer replaces" in found

    def test_another_release(self, project: Project, release: Path) -> None:
        edit(release / "zarr/_version.py", "'1.2.3'", "'1.2.4'")
        with pytest.raises(OverlayError, match=r"holds zarr 1\.2\.4"):
            project.release(release)

    def test_lock_of_another_release(self, project: Project, release: Path) -> None:
        edit(project.lock_file, '"1.2.3"', '"1.2.2"')
        (found,) = problems(project, release)
        assert found.startswith("overlay.lock\n")
        assert "1.2.2" in found
        assert "1.2.3" in found

    @pytest.mark.parametrize("text", [None, "not = [toml", 'upstream = "1.2.3"\n'])
    def test_unreadable(self, project: Project, release: Path, text: str | None) -> None:
        project.lock_file.unlink()
        if text is not None:
            project.lock_file.write_text(text)
        (found,) = problems(project, release)
        assert found.startswith("overlay.lock\n")

    def test_no_release_is_pinned(self, project: Project) -> None:
        write(project.root, {"pyproject.toml": SETTINGS.replace("zarr==", "zarr>=")})
        with pytest.raises(OverlayError, match="does not name one release"):
            assert Project(project.root).pinned

    def test_all_problems_at_once(self, project: Project, release: Path) -> None:
        edit(release / "zarr/store.py", "def put(self)", "def put(self, key)")
        edit(project.overlay / "zarr/store.py", "after get", "after nothing")
        write(project.overlay, {"zarr/__init__.py": "print()\n"})
        assert len(problems(project, release)) == 3

    def test_rewriting(self, project: Project, release: Path, capsys: Output) -> None:
        text = project.lock_file.read_text()
        edit(release / "zarr/store.py", "def put(self)", "def put(self, key)")
        with (project.overlay / "zarr/store.py").open("a") as file:
            file.write("def f(x): ...\n")
        arguments = ["lock", "--upstream", str(release)]
        assert main(arguments, root=project.root) == 0
        assert capsys.readouterr().out.splitlines() == [
            "~ zarr/store.py::Store.put",
            "+ zarr/store.py::f",
        ]
        project.plan(project.release(release))
        edit(release / "zarr/store.py", "def put(self, key)", "def put(self)")
        edit(project.overlay / "zarr/store.py", "def f(x): ...\n", "")
        assert main(arguments, root=project.root) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "- zarr/store.py::f"
        assert project.lock_file.read_text() == text

    def test_written_anew(
        self, project: Project, release: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = project.lock_file.read_text()
        project.lock_file.unlink()
        for kind in ("sdist", "wheel"):
            (release / kind).write_text(kind)
        monkeypatch.setattr(upstream, "fetch", lambda _, kind, into: release / kind)
        assert main(["lock", "--upstream", str(release)], root=project.root) == 0
        digests = [upstream.digest(release / kind) for kind in ("sdist", "wheel")]
        expected = text.replace('"0"', f'"{digests[0]}"').replace('"1"', f'"{digests[1]}"')
        assert project.lock_file.read_text() == expected


def test_show(project: Project, release: Path, capsys: Output) -> None:
    assert main(["show", "--upstream", str(release)], root=project.root) == 0
    assert capsys.readouterr().out.splitlines() == [
        "zarr/store.py",
        "    opens     Store",
        "    adds      Store.get_many    after get",
        "    replaces  Store.put",
        "zarr/_reads.py",
        "    new, 1 line",
    ]


def test_without_ruff(
    project: Project, release: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setitem(sys.modules, "ruff", None)
    assert main(["show", "--upstream", str(release)], root=project.root) == 0
    assert main(["merge", "--upstream", str(release)], root=project.root) == 1
    assert (
        "install the release that pyproject.toml requires for building" in capsys.readouterr().err
    )
    assert not project.merged.exists()


def test_documents(project: Project, release: Path, tmp_path: Path, capsys: Output) -> None:
    source, wheel = tmp_path / "sdist", tmp_path / "wheel"
    write(source / "src", RELEASE)
    write(source, {"docs/guide.md": "# Guide\n\n## Stores\n"})
    write(wheel, RELEASE)
    overlay = "<!-- overlay: after Stores -->\n## Reads\n"
    write(project.root, {"docs/guide.md": overlay, "docs/new.md": "# New\n"})

    def run(command: str, upstream: Path) -> str:
        assert main([command, "--upstream", str(upstream)], root=project.root) == 0
        return capsys.readouterr().out

    run("lock", source)
    assert "docs/guide.md" in project.load_lock().opened
    project.plan(project.release(source))
    assert "docs/guide.md\n    adds      Reads    after Stores\n" in run("show", source)
    # A wheel comes without documents: what the lock says of them stays.
    text = project.lock_file.read_text()
    run("lock", wheel)
    project.plan(project.release(wheel))
    assert project.lock_file.read_text() == text
