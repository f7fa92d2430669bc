"""Making the branches of a stack, and patches of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.stack import cli
from tools.stack.repository import Repository, of_folder
from tools.tests.conftest import write
from tools.tests.stacked import UPSTREAM, edit, make

AUTHOR = "--author=A. U. Thor <author@example.org>"
BRANCHES = ["feat/many", "feat/report", "fix/close"]


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    return make(tmp_path)[0].root


@pytest.fixture
def checkout(fork: Path, tmp_path: Path) -> Repository:
    """A clone with a commit after the release, a branch that is checked out and a file that is not tracked."""
    clone = of_folder(tmp_path / "upstream", "1.2.3", tmp_path)
    (clone.path / "untracked.txt").write_text("Mine.\n")
    return clone


def run(fork: Path, checkout: Repository, command: str, *options: str) -> int:
    """Run a command on a checkout."""
    return cli.main([command, f"--checkout={checkout.path}", AUTHOR, *options], root=fork)


def state(checkout: Repository) -> dict[str, object]:
    """Return what must not change when branches are made."""
    return {
        "head": checkout.git("rev-parse", "HEAD"),
        "on": checkout.git("symbolic-ref", "HEAD"),
        "status": checkout.git("status", "--porcelain"),
        "index": checkout.git("ls-files", "--stage"),
        "files": {
            path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in checkout.path.rglob("*")
            if path.is_file() and ".git" not in path.relative_to(checkout.path).parts
        },
    }


def test_build(fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(checkout)
    assert run(fork, checkout, "build") == 0
    assert state(checkout) == before
    told = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    heads = checkout.branches()
    assert told == {name: heads[name] for name in BRANCHES}
    assert heads.keys() == {"main", *BRANCHES}
    form = "--format=%D|%an <%ae> %ad|%cn <%ce> %cd|%s"
    log = checkout.git("log", form, "--date=raw", "fix/close").splitlines()
    who = "A. U. Thor <author@example.org> 1000000000 +0000"
    assert log[:-1] == [
        f"fix/close|{who}|{who}|fix: return nothing",
        f"feat/report|{who}|{who}|feat(store): report reads",
        f"feat/many|{who}|{who}|feat(store): read many keys",
    ]
    message = checkout.git("show", "--no-patch", "--format=%B", "feat/many")
    assert message.strip() == (
        "feat(store): read many keys\n\n## Summary\n\nBecause one call is enough.\n\n"
        "## For reviewers\n\nThere is one test."
    )
    changed = checkout.git("diff", "--name-status", "feat/many", "feat/report").splitlines()
    assert changed == [
        *("A\tchanges/9002.feature.md", "M\tdocs/guide.md", "M\tsrc/zarr/_plan.py"),
        *("A\tsrc/zarr/_report.py", "M\tsrc/zarr/store.py", "A\ttests/test_report.py"),
    ]
    assert (
        checkout.git("show", "feat/many:src/zarr/__init__.py") + "\n"
        == (UPSTREAM["src/zarr/__init__.py"])
    )


def test_twice_gives_the_same(fork: Path, checkout: Repository, tmp_path: Path) -> None:
    assert run(fork, checkout, "build") == 0
    heads = checkout.branches()
    # What is there already and the same needs no force.
    assert run(fork, checkout, "build") == 0
    assert checkout.branches() == heads
    other = of_folder(tmp_path / "upstream", "1.2.3", tmp_path / "other")
    assert run(fork, other, "build") == 0
    assert other.branches() == heads
    assert run(fork, other, "build", "--force", "--date=2026-01-02T03:04:05Z") == 0
    assert other.branches().keys() == heads.keys()
    assert other.branches()["fix/close"] != heads["fix/close"]


def test_author_of_the_checkout(fork: Path, checkout: Repository) -> None:
    checkout.git("config", "user.name", "Configured")
    checkout.git("config", "user.email", "c@example.org")
    assert cli.main(["build", f"--checkout={checkout.path}"], root=fork) == 0
    assert checkout.git("show", "--no-patch", "--format=%an <%ae>", "feat/many") == (
        "Configured <c@example.org>"
    )


def test_base(fork: Path, checkout: Repository) -> None:
    tree, parent = checkout.git("rev-parse", "HEAD^{tree}"), checkout.git("rev-parse", "HEAD")
    later = checkout.git(
        *(
            "-c",
            "user.name=n",
            "-c",
            "user.email=e",
            "commit-tree",
            tree,
            "-p",
            parent,
            "-m",
            "Later",
        )
    )
    assert run(fork, checkout, "build", f"--base={later}") == 0
    assert checkout.git("rev-parse", "feat/many^") == later
    edit(fork / "stack.toml", '"feat/many"', '"feat/other"')
    assert run(fork, checkout, "build", "--force") == 0
    assert checkout.git("rev-parse", "feat/other^") == checkout.git("rev-parse", "v1.2.3")


def test_executable_files_stay_so(fork: Path, checkout: Repository) -> None:
    checkout.git("update-index", "--chmod=+x", "src/zarr/store.py")
    checkout.git("-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=Mode")
    checkout.git("-c", "core.fileMode=true", "checkout", "--quiet", "--force", "main")
    assert run(fork, checkout, "build", "--base=main") == 0
    listed = checkout.git("ls-tree", "-r", "fix/close", "src/zarr").splitlines()
    modes = {line.split("\t")[1]: line[:6] for line in listed}
    assert modes["src/zarr/store.py"] == "100755"
    assert modes["src/zarr/_plan.py"] == "100644"


def refused(
    fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str], *options: str
) -> str:
    """Build in vain, and return what was said."""
    before = checkout.branches()
    assert run(fork, checkout, "build", *options) == 1
    assert checkout.branches() == before
    said = capsys.readouterr().err
    assert "->" in said
    return said


def test_a_work_tree_with_changes_is_not_touched(fork: Path, checkout: Repository) -> None:
    edit(checkout.path / "src/zarr/store.py", "    pass\n", "    ...\n")
    (checkout.path / "docs/guide.md").write_text("Staged.\n")
    checkout.git("add", "docs/guide.md")
    before = state(checkout)
    assert run(fork, checkout, "build") == 0
    assert state(checkout) == before
    assert checkout.git("show", "feat/many:src/zarr/store.py").endswith("    pass")


def test_unknown_base(fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`v9` names no commit" in refused(fork, checkout, capsys, "--base=v9")


def test_branch_exists(
    fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.git("branch", "feat/report")
    said = refused(fork, checkout, capsys)
    assert "feat/report\n    exists, and is another commit" in said
    assert "--force" in said
    assert run(fork, checkout, "build", "--force") == 0
    checkout.git("checkout", "--quiet", "feat/report")
    assert run(fork, checkout, "build") == 0
    said = refused(fork, checkout, capsys, "--force", "--date=2026-01-02T03:04:05Z")
    assert "feat/report\n    is checked out" in said


def test_branch_of_another_work_tree(
    fork: Path, checkout: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.git("worktree", "add", "--quiet", "-b", "fix/close", tmp_path / "second")
    assert "fix/close\n    is checked out" in refused(fork, checkout, capsys, "--force")


def test_branch_that_is_in_the_way(
    fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.git("branch", "feat")
    assert "`git update-ref --stdin` failed" in refused(fork, checkout, capsys)


def test_drift(fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    edit(checkout.path / "src/zarr/store.py", "    pass\n", "    return 1\n")
    who = ("-c", "user.name=n", "-c", "user.email=e")
    checkout.git(*who, "commit", "--quiet", "--all", "--message=Drift")
    said = refused(fork, checkout, capsys, "--base=main")
    assert "zarr/store.py::close\n    upstream's definition is not the one" in said
    assert run(fork, checkout, "build") == 0


def test_numbers(fork: Path, checkout: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--first-number=4200", "--number=report=77", "--number=fix/close=78")
    assert run(fork, checkout, "build", *options) == 0
    listed = checkout.git("ls-tree", "-r", "--name-only", "fix/close", "changes").splitlines()
    assert listed == [f"changes/{n}" for n in ("4200.feature.md", "77.feature.md", "78.misc.md")]
    assert "names no branch" in refused(fork, checkout, capsys, "--number=nope=1")
    with pytest.raises(SystemExit, match="2"):
        run(fork, checkout, "build", "--number=1")


def commit_all(checkout: Repository, message: str) -> str:
    """Commit what the work tree holds, and return the commit."""
    checkout.git("add", "--update")
    checkout.git("-c", "user.name=n", "-c", "user.email=e", "commit", "-q", f"--message={message}")
    return checkout.commit("HEAD")


def test_the_rest_goes_on_top_of_what_was_merged(fork: Path, checkout: Repository) -> None:
    """The procedure of CONTRIBUTING.md, after an edit in the review of the first pull request."""
    edit(
        fork / "stack.toml",
        'branch = "fix/close"\nseries = "local"',
        'branch = "fix/close"\nseries = "core"',
    )
    text = (fork / "stack.toml").read_text()
    other = """
[[pull_request]]
branch = "docs/more"
series = "local"
title = "docs: say more"
text = "## Summary\\n\\nMore.\\n\\n## For reviewers\\n\\nNothing."
docs = ["docs/more.md"]
fragments = ["more.doc.md"]
upstream_tests = ["tests/test_store.py"]
"""
    write(
        fork,
        {"stack.toml": text + other, "docs/more.md": "# More\n", "changes/more.doc.md": "More.\n"},
    )
    assert run(fork, checkout, "build") == 0
    old = checkout.branches()
    # Upstream squashes the first branch with an edit onto a main that has moved on meanwhile.
    edit(checkout.path / "docs/release-notes.md", "# Release notes", "# Release notes of zarr")
    commit_all(checkout, "docs: something else")
    checkout.git("merge", "--squash", "--quiet", "feat/many")
    edit(checkout.path / "src/zarr/store.py", "Read many keys.", "Read many keys at once.")
    commit_all(checkout, "feat(store): read many keys (#4200)")
    edit(checkout.path / "docs/guide.md", "Text.", "Text of today.")
    main = commit_all(checkout, "docs: say when")

    as_me = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.cleanup=whitespace")
    onto = ("rebase", "--quiet", "--update-refs", "--onto")
    checkout.git(*as_me, *onto, "main", "feat/many", "fix/close")
    checkout.git(*as_me, *onto, "fix/close", "fix/close@{1}", "docs/more")

    now = checkout.branches()
    parents = [checkout.commit(f"{name}^") for name in ("feat/report", "fix/close", "docs/more")]
    assert parents == [main, now["feat/report"], now["fix/close"]]
    for name in ("feat/report", "fix/close", "docs/more"):
        store = checkout.git("show", f"{name}:src/zarr/store.py")
        assert "Read many keys at once." in store
        assert "def report(" in store
        assert "of today" in checkout.git("show", f"{name}:docs/guide.md")
        assert "of zarr" in checkout.git("show", f"{name}:docs/release-notes.md")
        before, after = (
            checkout.git("show", "--no-patch", "--format=%B", commits[name])
            for commits in (old, now)
        )
        assert before == after
        assert checkout.changed(f"{name}^", name) == checkout.changed(f"{old[name]}^", old[name])
    assert "return None" in checkout.git("show", "fix/close:src/zarr/store.py")


def test_no_checkout(fork: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        assert cli.main(["build", f"--checkout={path}", AUTHOR], root=fork) == 1
        assert "is no checkout" in capsys.readouterr().err


def test_checkout_of_something_else(
    fork: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "something"
    other.mkdir()
    (other / "README").write_text("Else.\n")
    made = of_folder(other, "1.2.3", tmp_path / "made")
    assert "holds no src/zarr" in refused(fork, made, capsys)


def test_no_author(
    fork: Path,
    checkout: Repository,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for scope in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"GIT_CONFIG_{scope}", "/dev/null")
    assert cli.main(["build", f"--checkout={checkout.path}"], root=fork) == 1
    assert "git knows no user here" in capsys.readouterr().err
    assert "`me` is no author" in refused(fork, checkout, capsys, "--author=me")


def test_no_git(
    fork: Path,
    checkout: Repository,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(fork))
    assert run(fork, checkout, "build") == 1
    assert "git\n    cannot be found" in capsys.readouterr().err


def test_a_hook_does_not_lead_astray(
    fork: Path, checkout: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert run(fork, checkout, "build") == 0


def test_export_applies(
    fork: Path, checkout: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkout.branches()
    assert run(fork, checkout, "export", f"--into={tmp_path / 'patches'}") == 0
    assert checkout.branches() == before
    patches = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [patch.relative_to(tmp_path / "patches").as_posix() for patch in patches] == [
        *("core/0001-feat-store-read-many-keys.patch", "core/0002-feat-store-report-reads.patch"),
        "local/0001-fix-return-nothing.patch",
    ]
    clean = of_folder(tmp_path / "upstream", "1.2.3", tmp_path / "clean")
    who = ("-c", "user.name=n", "-c", "user.email=e")
    clean.git(*who, "am", "--quiet", *patches)
    assert run(fork, checkout, "build") == 0
    for back, name in enumerate(reversed(BRANCHES)):
        for what in ("^{tree}", ""):
            if what:
                there = checkout.git("rev-parse", name + what)
                assert clean.git("rev-parse", f"HEAD~{back}{what}") == there
        made, meant = (
            repository.git("show", "--no-patch", "--format=%B%an %ae %ad", ref)
            for repository, ref in ((clean, f"HEAD~{back}"), (checkout, name))
        )
        assert made == meant


def test_export_replaces_nothing(
    fork: Path, checkout: Repository, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "core/0009-old.patch"
    write(tmp_path, {"core/0009-old.patch": "Old.\n"})
    assert run(fork, checkout, "export", f"--into={tmp_path}") == 1
    assert "holds patches already" in capsys.readouterr().err
    assert old.exists()
    assert run(fork, checkout, "export", f"--into={tmp_path}", "--force") == 0
    assert not old.exists()
    assert len(list(tmp_path.glob("*/*.patch"))) == len(BRANCHES)


def test_checkout_of_a_release(fork: Path, tmp_path: Path) -> None:
    first = of_folder(tmp_path / "upstream", "1.2.3", tmp_path / "a")
    second = of_folder(tmp_path / "upstream", "1.2.3", tmp_path / "b")
    commit = first.git("rev-parse", "v1.2.3")
    assert second.git("rev-parse", "v1.2.3", "main").split() == [commit, commit]
    assert first.git("status", "--porcelain") == ""
    assert "src/zarr/_version.py" not in first.git("ls-files")
    assert of_folder(tmp_path / "gone", "1.2.3", tmp_path / "a") == first


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "check", "build", "export"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: python -m tools.stack {command}")


def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.stack", "fly"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "invalid choice: 'fly'" in done.stderr
