"""The phases one by one do what the whole job does."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg import phases
from ekg.distil.bank import MemoryBank
from ekg.distil.settings import FineTuneSettings
from ekg.errors import EkgError
from ekg.graph import cutting
from ekg.io import parameters
from tests.helpers.digits import digits, network


def read(model, path):
    """Returns the network in a parameter file, of the structure of another one."""
    copy = cutting.copy(model)
    parameters.assign_params_(copy, parameters.load_params(path), path)
    return copy


def test_the_phases_called_one_by_one_equal_the_whole_job_after_its_first_epoch(tmp_path):
    """The job begins with an epoch on a part of the data; searched from there, the phases find and
    train the same.
    """
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
    searched = ekg.Supernet(read(model, tmp_path / "run" / "supernet_param.pkl"))
    result = ekg.search(
        searched, data, target_rate=0.5, search_step=0.4, val_per_class=4, search_batch_size=80
    )
    assert result.subnetwork == whole.subnetwork
    together = {"search_batch_size": 80}  # as many as the job's search takes together
    bank = ekg.build_bank(
        tmp_path / "bank", searched, result.history, data, num_teacher=2, **together
    )
    assert bank.logits.shape == (120, 2, 10)
    smaller = ekg.slim(searched, result.subnetwork, data, **together)
    ekg.fine_tune(smaller, data, bank, epochs=2, **together)
    for one, other in zip(smaller.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_every_image_is_taught_by_its_own_row_of_the_bank():
    model = network(lambda x: layers.Dense(10, name="fc")(x))
    data = ekg.make_data(model, digits())
    bank = MemoryBank(np.arange(120, dtype=np.float32)[:, None, None] + np.zeros((120, 2, 10)))
    training = phases.fine_tuning(
        tf.distribute.get_strategy(), model, data, FineTuneSettings(batch_size=32), knowledge=bank
    )
    pixels = {image.tobytes(): number for number, image in enumerate(digits()[0])}
    assert len(pixels) == 120
    for batch in training.batches.epoch(0):
        numbers = [pixels[image.tobytes()] for image in np.asarray(batch["images"])]
        assert batch["bank"].shape == (len(numbers), 2, 10)
        assert batch["bank"][:, 1, 9].tolist() == numbers


def test_labels_alone_teach_without_a_bank_and_settings_are_checked():
    model = network(lambda x: layers.Dense(10, name="fc")(x))
    data, before = ekg.make_data(model, digits()), model.get_weights()
    assert ekg.fine_tune(model, data, epochs=1, learning_rate=0.1) is model
    assert not all((a == b).all() for a, b in zip(before, model.get_weights()))
    with pytest.raises(EkgError, match="`temperature` has no effect here: nothing is distilled"):
        ekg.fine_tune(model, data, epochs=1, temperature=2.0)
    with pytest.raises(EkgError, match="`rate` is no setting here"):
        ekg.fine_tune(model, data, epochs=1, rate=2.0)
    with pytest.raises(EkgError, match="`bank` and `teacher` exclude each other; leave one out"):
        ekg.fine_tune(model, data, object(), teacher=model, epochs=1)
    with pytest.raises(EkgError, match="`teacher` must be a keras.Model; received str"):
        ekg.fine_tune(model, data, teacher="the unpruned network", epochs=1)


def test_a_live_teacher_teaches_as_in_the_whole_job(tmp_path):
    model = network(lambda x: layers.Dense(10, name="fc")(x))
    whole = ekg.prune(
        model,
        digits(),
        target_rate=0.7,
        epochs=1,
        verbose=False,
        repair=False,
        fine_tune={"finetune_teacher": "single"},
        search={"search_step": 1.0, "val_per_class": 4, "subset_per_class": 8},
        run_dir=tmp_path / "run",
    )
    data = ekg.make_data(model, digits())
    searched = ekg.Supernet(read(model, tmp_path / "run" / "supernet_param.pkl"))
    tuned = ekg.slim(searched, whole.subnetwork, data, search_batch_size=80)
    ekg.fine_tune(tuned, data, teacher=model, epochs=1, search_batch_size=80)
    cut = searched.cut(whole.subnetwork)
    trained = read(cut, tmp_path / "run" / "trained_param.pkl")
    for one, other in zip(tuned.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_regression_of_several_numbers_needs_a_supernet_without_classes():
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
