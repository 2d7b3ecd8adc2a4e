import numpy as np
import pytest
import tensorflow as tf

from ekg.errors import EkgError
from ekg.train.checkpoints import Checkpoints


@pytest.fixture
def weights():
    return tf.Variable(np.zeros(1000, np.float32))


def save(folder, weights, count):
    """Saves so many checkpoints; the weights of number n are n."""
    checkpoints = Checkpoints(folder, weights=weights)
    for number in range(1, count + 1):
        weights.assign(np.full(1000, number, np.float32))
        checkpoints.save({"epoch": number, "totals": {"loss": 0.1 * number}})
    return checkpoints


def restore(folder, weights):
    weights.assign(np.zeros(1000, np.float32))
    position = Checkpoints(folder, weights=weights).restore()
    return position, float(weights[0]) if (weights == weights[0]).numpy().all() else None


def test_the_last_of_two_is_restored(tmp_path, weights):
    assert restore(tmp_path, weights) == (None, 0.0)
    save(tmp_path, weights, 4)
    assert restore(tmp_path, weights) == ({"epoch": 4, "totals": {"loss": 0.4}}, 4.0)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [
        "ckpt-3.index",
        "ckpt-4.index",
    ]
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["ckpt-3.json", "ckpt-4.json"]


def test_saving_continues_after_a_restored_one(tmp_path, weights):
    save(tmp_path, weights, 3)
    checkpoints = Checkpoints(tmp_path, weights=weights)
    checkpoints.restore()
    checkpoints.save({"epoch": 9})
    assert restore(tmp_path, weights) == ({"epoch": 9}, 3.0)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [
        "ckpt-3.index",
        "ckpt-4.index",
    ]


@pytest.mark.parametrize("name", ["ckpt-3.index", "ckpt-3.data-00000-of-00001", "ckpt-3.json"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_one_is_noticed_and_the_one_before_is_used(tmp_path, weights, caplog, name, cut):
    save(tmp_path, weights, 3)
    whole = (tmp_path / name).read_bytes()
    for offset in np.linspace(0, len(whole) - 2, 50).astype(int):
        caplog.clear()
        damaged = (
            whole[:offset]
            if cut
            else whole[:offset] + bytes([whole[offset] ^ 8]) + whole[offset + 1 :]
        )
        (tmp_path / name).write_bytes(damaged)
        position, value = restore(tmp_path, weights)
        assert (position["epoch"], value) == (2, 2.0)
        assert "ckpt-3: this checkpoint is damaged; ckpt-2 is used instead" in caplog.text
    checkpoints = Checkpoints(tmp_path, weights=weights)
    checkpoints.restore()
    checkpoints.save({"epoch": 7})
    assert restore(tmp_path, weights)[0] == {"epoch": 7}


def test_damage_to_all_of_them_is_reported(tmp_path, weights):
    save(tmp_path, weights, 2)
    for path in tmp_path.glob("*.index"):
        path.write_bytes(b"")
    with pytest.raises(
        EkgError,
        match="every checkpoint there is damaged; put them back, or start this phase again",
    ):
        restore(tmp_path, weights)


def test_one_that_was_not_finished_does_not_count(tmp_path, weights):
    save(tmp_path, weights, 2)
    (tmp_path / "ckpt-2.json").unlink()  # killed between the checkpoint and its checksums
    assert restore(tmp_path, weights) == ({"epoch": 1, "totals": {"loss": 0.1}}, 1.0)
    checkpoints = Checkpoints(tmp_path, weights=weights)
    checkpoints.restore()
    checkpoints.save({"epoch": 5})
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [
        "ckpt-1.index",
        "ckpt-3.index",
    ]
    assert restore(tmp_path, weights) == ({"epoch": 5}, 1.0)
