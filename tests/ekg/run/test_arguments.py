import os
import shutil
import subprocess

import pytest

import op_utils
from ekg.run import arguments


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize("state", ["branch", "packed", "detached"])
def test_the_revision_is_that_of_the_checkout(state, tmp_path):
    def git(*command):
        return subprocess.run(
            ["git", "-C", str(tmp_path), *command],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ
            | {
                "GIT_AUTHOR_NAME": "a",
                "GIT_AUTHOR_EMAIL": "a",
                "GIT_COMMITTER_NAME": "a",
                "GIT_COMMITTER_EMAIL": "a",
            },
        ).stdout.strip()

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


def test_the_hash_of_the_code_is_of_every_source_file(tmp_path):
    """Workers compare it: a change in any folder of the sources is noticed, one beside them is
    not.
    """
    sources = (
        "op_utils.py",
        "ekg/io/files.py",
        "ekg/graph/calls.py",
        "nets/resnet.py",
        "dataloader/cifar.py",
    )
    for name in (*sources, "tests/test_op_utils.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one")
    hashes = [arguments.hash_code(tmp_path, op_utils.SOURCES)]
    for name in sources:
        (tmp_path / name).write_text("two")
        hashes.append(arguments.hash_code(tmp_path, op_utils.SOURCES))
    (tmp_path / "tests/test_op_utils.py").write_text("two")
    assert len(set(hashes)) == 6 and arguments.hash_code(tmp_path, op_utils.SOURCES) == hashes[-1]
