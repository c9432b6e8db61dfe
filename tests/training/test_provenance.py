"""The commit that a run records: kvlab's, and nobody else's."""

import subprocess

import pytest

from training.endurance.provenance import git_commit


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Somebody's repository, with sources in a folder of it."""
    root = tmp_path / "repository"
    (root / "vendored").mkdir(parents=True)
    (root / "vendored" / "model.py").write_text("a = 1\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "x")
    return root


def test_the_commit_is_that_of_the_folders_own_repository(repository, tmp_path, monkeypatch):
    head = git(repository, "rev-parse", "HEAD")
    assert git_commit(repository) == head
    git(repository, "worktree", "add", "--quiet", str(tmp_path / "tree"), "-b", "other")
    assert git_commit(tmp_path / "tree") == head
    (tmp_path / "link").symlink_to(repository)
    assert git_commit(tmp_path / "link") == head
    (repository / "new.txt").write_text("not tracked")
    assert git_commit(repository) == head
    (repository / "vendored" / "model.py").write_text("a = 2\n")
    assert git_commit(repository) == f"{head}+changes"
    assert git_commit(tmp_path / "tree") == head


def test_a_repository_around_the_folder_or_in_the_environment_is_not_its_own(
    repository, tmp_path, monkeypatch
):
    assert git_commit(repository / "vendored") is None
    (tmp_path / "plain").mkdir()
    assert git_commit(tmp_path / "plain") is None
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    assert git_commit(tmp_path / "plain") is None
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "plain"))
    assert git_commit(tmp_path / "plain") is None
    other = tmp_path / "other"
    other.mkdir()
    with monkeypatch.context() as without:
        without.delenv("GIT_DIR")
        without.delenv("GIT_WORK_TREE")
        git(other, "init", "--quiet")
        git(other, "commit", "--quiet", "--allow-empty", "-m", "y")
        theirs = git(other, "rev-parse", "HEAD")
    assert git_commit(other) == theirs
