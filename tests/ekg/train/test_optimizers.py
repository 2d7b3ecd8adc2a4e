"""Fine-tuning with an optimizer of the user's own ends with the weights of Keras' own fit."""

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import ekg
from ekg.distil.settings import FineTuneSettings
from ekg.train import loop
from ekg.train.optimizers import Recipe
from tests.helpers.models import randomise_

EPOCHS = 3
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(5, 3, activation="relu", name="conv")(inputs)
    return randomise_(
        keras.Model(inputs, layers.Dense(3, name="fc")(layers.Flatten()(x)), name="net")
    )


def examples():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 4, 4, 3)).astype(np.float32), rng.integers(0, 3, 32)


def no_decay_of_biases():
    optimizer = optimizers.AdamW(0.02, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


OPTIMIZERS = {
    "adamw": no_decay_of_biases,
    "clipped": lambda: optimizers.RMSprop(0.01, clipnorm=0.1),
    "mean": lambda: optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    "scheduled": lambda: optimizers.Lion(optimizers.schedules.CosineDecay(0.02, EPOCHS)),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_weights_equal_those_of_keras_fit(name):
    tuned, fitted, (x, y), given = make(), make(), examples(), OPTIMIZERS[name]()
    tuning = {} if name == "scheduled" else {"decay_points": ()}
    ekg.fine_tune(
        tuned,
        ekg.make_data(tuned, (x, y)),
        epochs=EPOCHS,
        batch_size=len(x),
        optimizer=given,
        **tuning,
    )
    assert not given.built  # the user's own is as it was
    fitted.compile(OPTIMIZERS[name](), LOGITS)
    fitted.fit(x, y, batch_size=len(x), epochs=EPOCHS, shuffle=False, verbose=0)
    for variable, expected in zip(tuned.weights, fitted.weights):
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=2e-5)


def test_a_stopped_training_resumes_with_the_optimizers_state(tmp_path, monkeypatch):
    (x, y), options = (
        examples(),
        {"epochs": EPOCHS, "batch_size": 16, "schedule": lambda epoch: 0.02 / (1 + epoch)},
    )

    def tune(folder, model):
        return ekg.fine_tune(
            model,
            ekg.make_data(model, (x, y)),
            folder=tmp_path / folder,
            optimizer=optimizers.AdamW(),
            **options,
        )

    whole, original = tune("whole", make()), loop.Checkpoints.save

    def save(self, position):
        original(self, position)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save)
        with pytest.raises(KeyboardInterrupt):
            tune("stopped", make())
    for weight, expected in zip(tune("stopped", make()).get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(weight, expected)


def test_schedules_count_steps_or_epochs():
    settings = FineTuneSettings(train_epoch=10)
    steps, _ = Recipe.take(
        {"schedule": optimizers.schedules.PiecewiseConstantDecay([4], [0.5, 0.1])}
    )
    assert [steps.make_schedule(settings, 5)(step / 5) for step in (0, 4, 5)] == pytest.approx(
        [0.5, 0.5, 0.1]
    )
    epochs, _ = Recipe.take({"schedule": lambda epoch: epoch / 2})
    assert epochs.make_schedule(settings, 5)(3.2) == pytest.approx(1.6)
    own, _ = Recipe.take({"optimizer": optimizers.Adam(0.4)})
    assert [own.make_schedule(settings, 5)(epoch) for epoch in (0, 3, 9)] == pytest.approx(
        [0.4, 0.08, 0.0032]
    )
    assert own.decay(settings) == 0 and own.num_slots() == 2
    assert (
        Recipe.take({"optimizer": optimizers.Adam(), "weight_decay": 0.1})[0].decay(settings) == 0.1
    )
    published = Recipe()
    assert (
        published.make_schedule(settings, 5)(0) == settings.learning_rate
        and published.num_slots() == 1
    )
    assert published.decay(settings) == settings.weight_decay


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"optimizer": "adam"},
            "`optimizer` must be a keras.optimizers.Optimizer; received 'adam'",
        ),
        (
            {"optimizer": optimizers.LossScaleOptimizer(optimizers.SGD())},
            "`optimizer` is a LossScaleOptimizer",
        ),
        (
            {"optimizer": optimizers.Adam(), "learning_rate": 0.1},
            "`learning_rate` has no effect here",
        ),
        ({"schedule": lambda epoch: 0.1, "decay_points": ()}, "`decay_points` has no effect here"),
        ({"schedule": 0.1}, "`schedule` must be a keras.optimizers.schedules"),
    ],
)
def test_settings_without_effect_and_unbuildable_optimizers_are_refused(given, message):
    with pytest.raises(ekg.EkgError, match=message):
        Recipe.take(given)


def test_a_schedule_must_give_a_rate():
    recipe, _ = Recipe.take({"schedule": lambda epoch: -1.0})
    with pytest.raises(ekg.EkgError, match="`schedule` gives the learning rate -1 at epoch 0"):
        recipe.make_schedule(FineTuneSettings(), 5)(0)
