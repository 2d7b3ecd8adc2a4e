"""What holds of every search step, every choice of teachers and every stop of a memory bank."""

from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import ekg
from ekg.data.dataset import Batches
from ekg.devices.compute import Compute
from ekg.distil import bank, bank_files
from ekg.errors import EkgError
from ekg.searching import proposals
from ekg.searching.criteria import CRITERIA, CriterionContext
from ekg.searching.history import HistoryEntry
from ekg.searching.objective import Objective
from tests.conftest import make_data, make_tiny_resnet
from tests.helpers import random_subnetwork

GIVEN = hypothesis.settings(max_examples=150, deadline=None, derandomize=True)


@GIVEN
@hypothesis.given(size=st.integers(2, 4096), writers=st.integers(1, 60), step=st.floats(1e-4, 1.0))
def test_every_step_removes_as_many_channels_as_it_should(size, writers, step):
    group, kept, counts = ekg.ChannelGroup("g", size, ("w",) * writers, ()), size, [size]
    delta = max(Fraction(1, size), Fraction(str(step)) / writers)
    while kept > 1 and len(counts) < 40:
        times = len(counts) - 1
        kept = proposals.next_kept(1 - times * delta, group, step)
        counts.append(kept)
        # Kept are the ranks below max(w·C, 1): in whole numbers the last of them is the one before
        # that bound.
        width = Fraction(max(1 - (times + 1) * delta, 0))
        assert (
            kept == 1
            or (kept - 1) * width.denominator < width.numerator * size <= kept * width.denominator
        )
    assert all(after < before for before, after in zip(counts, counts[1:]))


def test_steps_of_one_channel_reach_the_end_in_a_wide_group():
    """The former widths of nine digits took nothing from the 2 048th part of a group."""
    group, count = ekg.ChannelGroup("g", 2048, ("w",) * 2048, ()), 2048
    for times in range(2047):
        count = proposals.next_kept(1 - times * Fraction(1, 2048), group, 0.2)
        assert count == 2047 - times


@GIVEN
@hypothesis.given(
    losses=st.lists(st.floats(0, 10), min_size=2, max_size=40), num_teacher=st.integers(1, 8)
)
def test_teachers_are_distinct_sorted_and_never_the_last(losses, num_teacher):
    teachers = bank.select_teachers(losses, num_teacher)
    assert len(set(teachers)) == len(teachers) == min(num_teacher, len(losses) - 1)
    assert len(losses) - 1 not in teachers
    assert [losses[step] for step in teachers] == sorted(losses[step] for step in teachers)
    assert losses[teachers[0]] == min(losses[:-1])


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(supernet, teachers, data, bytes of a bank that was built at once with batches of 10)."""
    supernet, data = ekg.Supernet(make_tiny_resnet()), make_data()
    teachers = [
        HistoryEntry(step, None, random_subnetwork(supernet, step), 1, 0.5 + step, 0, 0, 1, 0)
        for step in range(2)
    ]
    folder = tmp_path_factory.mktemp("bank")
    bank.build_bank(folder, supernet, teachers, Batches(data.train, data.normalise, 10))
    return supernet, teachers, data, (folder / bank_files.ARRAY_FILE).read_bytes()


@pytest.mark.parametrize("stop", [1, 3, 7])
@pytest.mark.parametrize("batch_size", [10, 7, 96])
def test_a_stopped_bank_resumes_to_the_same_file_or_is_refused(
    taught, tmp_path, monkeypatch, stop, batch_size
):
    supernet, teachers, data, expected = taught
    monkeypatch.setattr(bank_files, "BLOCK_ROWS", 20)

    class Stop(Exception):
        pass

    class Bar:
        count = 0

        def update(self, _):
            self.count += 1
            if self.count > stop:
                raise Stop

    with pytest.raises(Stop):
        bank.build_bank(
            tmp_path, supernet, teachers, Batches(data.train, data.normalise, 10), progress=Bar()
        )
    batches = Batches(data.train, data.normalise, batch_size)
    if batch_size == 10:
        bank.build_bank(tmp_path, supernet, teachers, batches)
        assert (tmp_path / bank_files.ARRAY_FILE).read_bytes() == expected
    else:
        with pytest.raises(EkgError, match="its batch_size differ"):
            bank.build_bank(tmp_path, supernet, teachers, batches)


def test_a_bank_gives_every_image_its_own_row_in_any_order(taught, tmp_path):
    supernet, teachers, data, _ = taught
    order = np.random.default_rng(0).permutation(len(data.train))
    batches = Batches(data.train, data.normalise, 10, order)
    bank.build_bank(tmp_path, supernet, teachers, batches)
    memory_bank = bank.open_bank(tmp_path, batches)
    for indices in batches.indices[:3]:
        logits = supernet.logits(data.normalise(data.train.images[indices]), teachers[1].subnetwork)
        np.testing.assert_allclose(memory_bank.rows(indices)[:, 1], logits, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- scores


def test_float16_scores_rank_as_float32_for_any_number_of_images(tiny_data, monkeypatch):
    """The gradients of a mean over many images would vanish in float16; the sum is divided
    behind.
    """
    monkeypatch.setattr(Batches, "num_images", property(lambda self: 10**7))
    scores = []
    for dtype in ("float32", "float16"):
        supernet = ekg.Supernet(make_tiny_resnet())
        objective = Objective(
            supernet, Batches(tiny_data.test, tiny_data.normalise, 22), compute=Compute(dtype=dtype)
        )
        objective.add_knowledge(supernet.whole())
        scores.append(CRITERIA["ekg"](CriterionContext(objective, supernet.whole())))
    ranks = [np.argsort(np.argsort(values)) for values in scores]
    assert np.corrcoef(*ranks)[0, 1] > 0.98
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.3, atol=0.02 * scores[0].max())


def test_l1_scores_the_weights_that_the_subnetwork_has(tiny_resnet, tiny_data):
    """Rows of input channels that are gone count nothing: by hand on the block's second
    convolution.
    """
    supernet = ekg.Supernet(tiny_resnet)
    half = supernet.whole().with_widths({"a1": 0.5})
    objective = Objective(supernet, Batches(tiny_data.test, tiny_data.normalise, 22))
    objective.add_knowledge(supernet.whole())
    group = [group.name for group in supernet.groups].index("a1")
    kept = half.kept(group)
    stem = np.abs(tiny_resnet.get_layer("stem").kernel.numpy()).sum(axis=(0, 1, 2))
    a2 = np.abs(tiny_resnet.get_layer("a2").kernel.numpy()[:, :, kept]).sum(axis=(0, 1, 2))
    scores = supernet.layout.by_group(CRITERIA["l1"](CriterionContext(objective, half)))[0]
    np.testing.assert_allclose(scores, stem + a2, rtol=1e-5)
