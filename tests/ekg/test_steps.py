"""The phases one by one do what the whole job does."""

import numpy as np
import pytest
from keras import layers

import ekg
from ekg import steps
from ekg.errors import EkgError
from ekg.run.networks import Networks
from tests.helpers.digits import digits, network


def test_the_phases_one_by_one_end_as_the_whole_job_behind_its_first_epoch(tmp_path, monkeypatch):
    """The job begins with an epoch on a part of the data; searched from there, the phases find and
    train the same.
    """
    monkeypatch.setattr(steps, "BATCH_SIZE", 80)  # as many as the job's search takes together
    model = network(lambda x: layers.Dense(10, name="fc")(x))
    whole = ekg.prune(
        model,
        digits(),
        target_rate=0.5,
        epochs=2,
        verbose=False,
        bank={"num_teacher": 2},
        augment="flip",
        repair=False,
        search={"search_step": 0.4, "val_per_class": 4, "subset_per_class": 8},
        run_dir=tmp_path / "run",
    )
    data = ekg.make_data(model, digits(), augment="flip")
    searched = ekg.Supernet(Networks(model).load(tmp_path / "run" / "supernet_param.pkl"))
    result = ekg.search(
        searched, data, target_rate=0.5, search_step=0.4, val_per_class=4, search_batch_size=80
    )
    assert result.subnetwork == whole.subnetwork
    bank = ekg.build_bank(tmp_path / "bank", searched, result.history, data, num_teacher=2)
    assert bank.logits.shape == (120, 2, 10)
    smaller = ekg.fine_tune(ekg.slim(searched, result.subnetwork, data), data, bank, epochs=2)
    for one, other in zip(smaller.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_labels_alone_teach_without_a_bank_and_settings_are_checked():
    model = network(lambda x: layers.Dense(10, name="fc")(x))
    data, before = ekg.make_data(model, digits()), model.get_weights()
    assert ekg.fine_tune(model, data, epochs=1, learning_rate=0.1) is model
    assert not all((a == b).all() for a, b in zip(before, model.get_weights()))
    with pytest.raises(EkgError, match="`temperature` has no effect here: nothing is distilled"):
        ekg.fine_tune(model, data, epochs=1, temperature=2.0)
    with pytest.raises(EkgError, match="`rate` is no setting here"):
        ekg.fine_tune(model, data, epochs=1, rate=2.0)


def test_a_regression_of_several_numbers_needs_a_supernet_that_knows_of_no_classes():
    model = network(lambda x: layers.Dense(4, name="numbers")(x))
    images, _ = digits()
    data = ekg.make_data(model, (images, np.random.default_rng(0).normal(size=(120, 4))))
    settings = {"target_rate": 0.7, "search_step": 1.0, "val_per_class": 4, "search_batch_size": 20}
    with pytest.raises(
        EkgError, match="takes the output of 'own' for class logits, and the task is a regression"
    ):
        ekg.search(ekg.Supernet(model), data, **settings)
    supernet = ekg.Supernet(model, class_logits=False)
    subnetwork = ekg.search(supernet, data, **settings).subnetwork
    kernels = [own.get_layer("numbers").kernel.numpy() for own in (model, supernet.cut(subnetwork))]
    assert np.array_equal(kernels[0][subnetwork.kept(1)], kernels[1])
