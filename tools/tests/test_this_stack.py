"""The stack of this project."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tools import suite
from tools.overlay.module import merge_module
from tools.overlay.project import Project
from tools.sections import OTHER_RELEASE
from tools.stack import branches, check, cli, repository
from tools.stack.cut import Stack
from tools.stack.leaves import is_module
from tools.stack.restrict import restrict_module
from tools.tests.checked import RUFF, untidy_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def stack() -> Stack:
    project = Project()
    return Stack(project, suite.unpacked(project))


def test_it_stands(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    stats = check.check(stack)
    with capsys.disabled():
        print("\n" + "\n".join(check.table(stack, stats)))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_any_part_of_a_module_is_tidy(stack: Stack, tmp_path: Path, share: float) -> None:
    """Whatever the cut, nothing is left to sort, to lay out or to remove from the imports."""
    for path, leaves in stack.leaves.items():
        names = [leaf.name for leaf in leaves]
        kept = names[: round(len(names) * share)]
        if not is_module(path) or not kept or not path.startswith("src/"):
            continue
        theirs = stack.upstream[path]
        upstream = theirs.decode() if theirs is not None else None
        text = restrict_module(stack.overlay[path].decode(), kept, upstream)
        if upstream is not None:
            merged = merge_module(upstream, text, path=path)
            assert merged.problems == ()
            text = merged.text
        assert "overlay:" not in text
        target = tmp_path / path.removeprefix("src/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    assert untidy_folder(tmp_path) == ""
    command = [
        RUFF,
        "check",
        "--isolated",
        "--no-cache",
        "--select=F401,TC001,TC002,TC003,TC004,TC005",
        "--target-version=py312",
    ]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_built_on_another_release(tmp_path: Path) -> None:
    """Twice, in checkouts of their own: the same commits, and patches that make the same of a third."""
    project, version = Project(), OTHER_RELEASE
    heads: list[dict[str, str]] = []
    for name in ("first", "second"):
        checkout = repository.of_release(project, version, tmp_path / name)
        base = checkout.commit(f"v{version}")
        made = branches.commits(project, checkout, base, checkout.nobody(base))
        branches.build(checkout, made, force=False)
        heads.append(checkout.branches())
    assert heads[0] == heads[1]
    assert len(heads[0]) == len(made) + 1
    patches = branches.export(checkout, made, tmp_path / "patches", force=False)
    clean = repository.of_release(project, version, tmp_path / "clean")
    clean.git("-c", "user.name=n", "-c", "user.email=e", "am", "--quiet", *patches)
    assert clean.git("rev-parse", "HEAD^{tree}") == checkout.git(
        "rev-parse", f"{made[-1].commit}^{{tree}}"
    )


@pytest.mark.slow
def test_rebased_on_an_earlier_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rebase", "3.3.0"]) == 1
    told = capsys.readouterr().out
    assert "what is in docs/ is not compared: the release comes without\n" in told
    assert "    drifted: FusedCodecPipeline.read: upstream's is sha256:" in told
    assert "        +        assert isinstance(self.array_bytes_codec," in told
