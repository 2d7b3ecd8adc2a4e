import numpy as np
import pytest

from ekg.data.dataset import Batches, TrainingBatches, batch_edges
from tests.helpers.models import make_data


@pytest.mark.parametrize(
    ("num_images", "batch_size", "pieces"),
    [(1270, 256, 1), (1270, 256, 4), (96, 96, 1), (97, 96, 1), (10, 4, 2)],
)
def test_an_epoch_in_even_batches_leaves_out_fewer_images_than_it_has_pieces(
    num_images, batch_size, pieces
):
    edges = batch_edges(num_images, batch_size, pieces)
    sizes = np.diff(edges)
    assert (
        num_images - edges[-1] < pieces
        and max(sizes) <= batch_size
        and max(sizes) - min(sizes) <= pieces
    )
    assert not (sizes % pieces).any() and len(sizes) == -(-num_images // batch_size)


def test_every_image_is_seen_once_in_an_epoch_of_even_batches():
    data = make_data(num_train=50)
    batches = TrainingBatches(data, 12, seed=3, phase="subset", even_pieces=1)
    epoch = list(batches.epoch(0))
    assert sorted(np.concatenate([batch["index"] for batch in epoch])) == list(range(50))
    assert len(epoch) == batches.num_steps == 5 and {len(batch["labels"]) for batch in epoch} == {
        10
    }


def test_two_phases_with_one_seed_see_different_orders_and_views():
    data = make_data()
    first, second = (
        next(TrainingBatches(data, 24, seed=0, num_views=1, phase=phase).epoch(0))
        for phase in ("baseline", "fine-tune")
    )
    assert (first["index"] != second["index"]).any() and (first["draws"] != second["draws"]).any()


def test_data_has_a_short_repr():
    data = make_data()
    assert repr(data.train) == "Split(96 images of 8x8x3)"
    batches = Batches(data.train, data.normalise, 8, np.arange(96))
    assert len(repr(batches)) < 600 and "array" not in repr(batches) and len(repr(data)) < 600
