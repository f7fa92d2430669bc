"""The stack of this project."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.overlay.project import Project
from tools.sections import OTHER_RELEASE
from tools.stack import branches, cli, repository

if TYPE_CHECKING:
    from pathlib import Path


def test_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    with capsys.disabled():
        print("\n" + capsys.readouterr().out)


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
    assert len(heads[0]) == len(made.branches) + 1
    patches = branches.export(checkout, made, tmp_path / "patches", force=False)
    clean = repository.of_release(project, version, tmp_path / "clean")
    core = [patch for patch in patches if patch.parent.name == made.manifest.series[0].name]
    clean.git("-c", "user.name=n", "-c", "user.email=e", "am", "--quiet", *core)
    tip = made.branches[len(core) - 1].commit
    assert clean.git("rev-parse", "HEAD^{tree}") == checkout.git("rev-parse", f"{tip}^{{tree}}")


@pytest.mark.slow
def test_rebased_on_an_earlier_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rebase", "3.3.0"]) == 1
    told = capsys.readouterr().out
    assert "what is in docs/ is not compared: the release comes without\n" in told
    assert "    drifted: StorePath.get_sync: upstream's is sha256:" in told
    assert '        +    """Synchronous read' in told
