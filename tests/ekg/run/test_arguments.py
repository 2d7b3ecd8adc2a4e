import os
import shutil
import subprocess

import pytest

from ekg.run import arguments


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("state", ["branch", "packed", "detached"])
def test_the_revision_is_that_of_the_checkout(state, tmp_path):
    def git(*command):
        return subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True, text=True,  # noqa: S603, S607
                              env=os.environ | {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a", "GIT_COMMITTER_NAME": "a",
                                                "GIT_COMMITTER_EMAIL": "a"}).stdout.strip()
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "first")
    if state == "packed":
        git("pack-refs", "--all")
    elif state == "detached":
        git("checkout", "--quiet", "--detach")
    assert arguments._revision(tmp_path / ".git") == git("rev-parse", "HEAD")


def test_a_program_that_lies_in_no_checkout_has_no_revision(tmp_path):
    assert arguments._revision(tmp_path / ".git") is None
    assert set(arguments.origin()) == {"revision", "machine", "cores"}
