"""Networks of several outputs, and outputs without labels: every one counts, by its labels or by
what it was.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import ekg
from ekg import tasks
from ekg.data import augment
from ekg.errors import EkgError
from ekg.graph.calls import Graph
from ekg.graph.heads import without_head
from ekg.io import files
from ekg.searching.objective import Objective
from ekg.tasks.imitation import Imitation
from ekg.tasks.output_choice import choose_outputs
from ekg.tasks.outputs import Outputs, Part, weight_of
from ekg.tasks.weighted import Weighted
from tests.helpers.comparisons import log_softmax
from tests.helpers.digits import digits, network, softmax
from tests.helpers.models import conv_bn, make_data, randomise_

RNG = np.random.default_rng(0)
IMAGES, CLASSES = digits(80)
NUMBERS = IMAGES.sum((1, 2)).astype(np.float32)  # [80, 1], of a scale of its own
SHORT = {
    "verbose": False,
    "run": {"runtimes": ()},
    "bank": {"num_teacher": 2},
    "epochs": 1,
    "target_rate": 0.7,
    "search": {"search_step": 1.0, "val_per_class": 3, "subset_per_class": 4},
    "fine_tune": {"batch_size": 40},
}


def early_and_late(as_dict=False, squash="softmax"):
    """A network whose first output is written before its last layers, and whose second one has a
    hidden layer of its own.
    """
    inputs = keras.Input((8, 8, 1))
    x = conv_bn(inputs, 6, "one")
    position = layers.Dense(1, name="position")(
        layers.Dense(4, activation="relu", name="hidden")(layers.GlobalAveragePooling2D()(x))
    )
    x = layers.GlobalAveragePooling2D()(conv_bn(x, 8, "two"))
    classes = layers.Dense(10, activation=squash, name="classes")(x)
    outputs = {"position": position, "classes": classes} if as_dict else [position, classes]
    return randomise_(keras.Model(inputs, outputs, name="two"))


def three(inputs=(8, 8, 1)):
    """A network of a softmax layer, of sigmoids, and of a map of logits."""
    image = keras.Input(inputs)
    features = conv_bn(image, 6, "one")
    pooled = layers.GlobalAveragePooling2D()(features)
    logits = layers.Dense(10, name="fc")(pooled)
    return randomise_(
        keras.Model(
            image,
            {
                "classes": layers.Softmax(name="shares")(logits),
                "tags": layers.Dense(3, activation="sigmoid", name="tags")(pooled),
                "map": layers.Conv2D(2, 1, name="map")(features),
            },
            name="three",
        )
    )


# ---------------------------------------------------------------- formulas


def test_several_outputs_are_the_weighted_sum_of_their_tasks():
    sizes, batch = {"a": 4, "b": 2, "c": 3}, 5
    labels = {
        "a": RNG.integers(0, 4, batch).astype(np.int32),
        "b": RNG.normal(size=(batch, 2)).astype(np.float32),
        "c": RNG.integers(0, 2, (batch, 3)).astype(np.float32),
    }
    z, t = (
        {name: RNG.normal(0, 2, (batch, size)).astype(np.float32) for name, size in sizes.items()}
        for _ in range(2)
    )
    own = {"a": tasks.Classification(2), "b": tasks.Regression(0), "c": tasks.MultiLabel(1)}
    weights = {"a": 1.0, "b": 0.25, "c": 1.0}
    task = Outputs(
        parts=tuple(
            Part(
                name,
                own[name],
                (sizes[name],),
                labels[name].shape[1:],
                labels[name].dtype.name,
                weights[name],
            )
            for name in sizes
        )
    )
    flat = {
        name: np.concatenate(
            [values[name].reshape(batch, -1).astype(np.float32) for name in sizes], 1
        )
        for name, values in (("y", labels), ("z", z), ("t", t))
    }
    np.testing.assert_array_equal(task.of([z["b"], z["c"], z["a"]]), flat["z"])
    for method, first, others in (
        ("loss", "y", ()),
        ("label_loss", "y", ()),
        ("distance", "t", ()),
        ("divergence", "t", (3.0,)),
    ):
        values = getattr(task, method)(flat[first], flat["z"], *others).numpy()
        expected = sum(
            weights[name]
            * getattr(own[name], method)(
                (labels if first == "y" else t)[name], z[name], *others
            ).numpy()
            for name in sizes
        )
        np.testing.assert_allclose(values, expected, rtol=1e-5, err_msg=method)
    measured = {name: values.numpy() for name, values in task.measure(flat["y"], flat["z"]).items()}
    assert tuple(measured) == task.metrics == ("a/top1", "a/top5", "b/mae", "c/accuracy")
    np.testing.assert_allclose(measured["b/mae"], np.abs(labels["b"] - z["b"]).mean(1), rtol=1e-6)
    np.testing.assert_array_equal(measured["a/top1"], z["a"].argmax(1) == labels["a"])
    smoothed = task.loss(flat["y"], flat["z"], 0.1) - task.loss(flat["y"], flat["z"])
    alone = sum(
        own[name].loss(labels[name], z[name], 0.1) - own[name].loss(labels[name], z[name])
        for name in "ac"
    )
    np.testing.assert_allclose(
        smoothed, alone, rtol=1e-4, atol=1e-5
    )  # numbers have no classes to smooth
    np.testing.assert_array_equal(task.strata(flat["y"]), labels["a"])


def test_views_move_the_maps_among_several_outputs_and_leave_the_rest():
    """Labels, and the bank's rows of two teachers; the unpruned network sees to what has no
    labels.
    """
    model = three()
    maps, tags = RNG.integers(0, 2, (80, 8, 8)).astype(np.int32), RNG.integers(0, 2, (80, 3))
    data = ekg.make_data(model, (IMAGES, {"map": maps, "tags": tags}), augment="flip")
    draws = np.full((80, 1, augment.NUM_DRAWS), 0.25, np.float32)
    draws[::2] = 0.75  # mirrored
    rows = RNG.normal(size=(80, 2, 10 + 8 * 8 * 2 + 3)).astype(np.float32)  # classes, map, tags
    batch = {"images": IMAGES, "labels": data.train.labels, "draws": draws, "bank": rows}
    named = {
        name: own.numpy() for name, own in data.task.named(data.fine_tune_labels(batch, 0)).items()
    }
    mirrored = np.arange(80)[:, None, None] % 2 == 0
    np.testing.assert_array_equal(named["map"], np.where(mirrored, maps[:, :, ::-1], maps))
    np.testing.assert_array_equal(named["tags"], tags)
    assert data.moves_knowledge
    moved, map_rows = (
        data.fine_tune_knowledge(batch, 0).numpy(),
        rows[..., 10:-3].reshape(80, 2, 8, 8, 2),
    )
    expected = np.where(mirrored[..., None, None], map_rows[:, :, :, ::-1], map_rows)
    np.testing.assert_array_equal(moved[..., 10:-3].reshape(expected.shape), expected)
    np.testing.assert_array_equal(moved[..., :10], rows[..., :10])
    np.testing.assert_array_equal(moved[..., -3:], rows[..., -3:])


def test_a_function_of_labels_gets_the_labels_of_every_output_by_name():
    def shifted(images, labels, seed):
        is_shifted = tf.random.stateless_uniform([len(images)], seed) < 0.5
        return images, {
            **labels,
            "position": labels["position"] + 9 * tf.cast(is_shifted, tf.float32)[:, None],
        }

    data = ekg.make_data(early_and_late(), (IMAGES, [NUMBERS, CLASSES]), augment=shifted)
    draws = RNG.random((80, 1, augment.NUM_DRAWS), np.float32)
    labels = data.fine_tune_labels(
        {"images": IMAGES, "labels": data.train.labels, "draws": draws}, 0
    )
    named = data.task.named(labels)
    np.testing.assert_array_equal(named["classes"], CLASSES)
    steps = np.round((named["position"] - NUMBERS) / 9, 3)
    assert set(np.unique(steps)) == {0, 1}
    with pytest.raises(
        EkgError, match="must return labels as it gets them, a dict of .'position', 'classes'."
    ):
        ekg.make_data(
            early_and_late(),
            (IMAGES, [NUMBERS, CLASSES]),
            augment=lambda images, labels, seed: (images, 1),
        )


def test_weights_of_examples_count_in_the_losses_of_all_labelled_outputs():
    weights = RNG.uniform(0, 2, 80).astype(np.float32)
    plain, weighed = (
        ekg.make_data(early_and_late(), (IMAGES, {"position": NUMBERS, "classes": CLASSES}, *more))
        for more in ((), (weights,))
    )
    outputs = RNG.normal(size=(80, 11)).astype(np.float32)
    expected = weights * plain.task.loss(plain.train.labels, outputs).numpy()
    np.testing.assert_allclose(
        weighed.task.loss(weighed.train.labels, outputs), expected, rtol=1e-4
    )
    assert [part.weight for part in weighed.task.parts] == [
        part.weight for part in plain.task.parts
    ]
    np.testing.assert_array_equal(weighed.strata, plain.strata)  # the classes decide in both
    single = ekg.make_data(early_and_late(), (IMAGES, [None, CLASSES]), class_weight={3: 5.0})
    factors = np.where(CLASSES == 3, 5, 1)
    whole = ekg.make_data(early_and_late(), (IMAGES, [None, CLASSES]))
    single_loss, loss = (
        data.task.label_loss(data.train.labels, outputs).numpy() for data in (single, whole)
    )
    np.testing.assert_allclose(single_loss, factors * loss, rtol=1e-4)


@pytest.mark.parametrize("weights", ["list", "dict", "batches"])
def test_weights_by_output_count_as_in_evaluate(weights):
    own = early_and_late()
    own.compile("sgd", ["mse", "sparse_categorical_crossentropy"])
    by_output = [RNG.uniform(0, 2, 80).astype(np.float32), np.arange(80.0, dtype=np.float32) % 2]
    _, *expected = own.evaluate(
        IMAGES, [NUMBERS, CLASSES], sample_weight=by_output, batch_size=80, verbose=0
    )
    data = (IMAGES, [NUMBERS, CLASSES], by_output)
    if weights == "dict":
        data = (IMAGES, [NUMBERS, CLASSES], dict(zip(("position", "classes"), by_output)))
    if weights == "batches":
        data = tf.data.Dataset.from_tensor_slices((IMAGES, *map(tuple, data[1:]))).batch(16)
    made = ekg.make_data(own, data)
    outputs = own(IMAGES)
    columns = made.train.labels[:, made.task.columns(0)], made.train.labels[:, made.task.columns(1)]
    logits = without_head(own, 1)[0](IMAGES)[1]
    losses = [
        made.task.parts[number].task.loss(
            tf.reshape(columns[number], [80, *made.task.parts[number].label_shape]), output
        )
        for number, output in enumerate([outputs[0], logits])
    ]
    np.testing.assert_allclose([tf.reduce_mean(loss) for loss in losses], expected, rtol=1e-4)
    only = ekg.make_data(own, (IMAGES, [NUMBERS, CLASSES], {"classes": by_output[1]}))
    assert [isinstance(part.task, Weighted) for part in only.task.parts] == [False, True]


def test_loss_weights_that_are_not_read_are_named(caplog):
    own = early_and_late()
    own.compile("sgd", ["mse", "sparse_categorical_crossentropy"], loss_weights=[1.0, 0.0])
    ekg.make_data(own, (IMAGES, [NUMBERS, CLASSES]))
    assert caplog.text.count("loss_weights that the network was compiled with are not read") == 1


def test_the_scale_of_an_output_uses_its_weights_or_without_labels_its_own_values():
    numbers = (30 * RNG.normal(size=(80, 2))).astype(np.float32)
    expected = tasks.Regression().scale(numbers)
    assert expected == pytest.approx(numbers.var(axis=0).mean(), rel=1e-4) and expected > 100
    assert Imitation(0, tasks.Regression()).scale(numbers) == expected
    weighed = Weighted(0, tasks.Regression())
    labels = weighed.prepare_labels(numbers, (2,), weights=np.full(80, 0.5))
    assert weighed.scale(labels) == pytest.approx(expected)


def test_low_variance_labels_are_scaled_in_the_search_and_not_in_training():
    """A weight above 1 would be a higher learning rate than the network was trained with."""
    small = ekg.make_data(early_and_late(), (IMAGES, [NUMBERS / 100, CLASSES])).task
    large = ekg.make_data(early_and_late(), (IMAGES, [NUMBERS * 100, CLASSES])).task
    assert (
        small.parts[0].weight == pytest.approx(1e4 / NUMBERS.var(), rel=1e-3)
        and small.parts[0].weight > 1
    )
    assert [part.weight for part in small.in_training().parts] == [1.0, 1.0]
    assert large.in_training() == large and large.parts[0].weight < 1


def test_labels_of_several_outputs_are_checked_one_by_one():
    parts = (
        Part("a", tasks.Classification(0), (4,), (), "int32"),
        Part("b", tasks.Regression(1), (2,), (2,), "float32"),
    )
    task, good = Outputs(parts=parts), np.array([[3, 0.5, 0.5], [0, 1, 1]], np.float32)
    task.check_labels(good, (6,))
    with pytest.raises(EkgError, match=r"output 'a' must be in \[0, 3\], .* received 1 to 4"):
        task.check_labels(good + np.array([1, 0, 0], np.float32), (6,))
    with pytest.raises(EkgError, match="float32 of shape .examples, 3. is needed"):
        task.check_labels(good[:, :2], (6,))


def test_the_regression_loss_of_the_mean_is_one():
    labels = (1000 * RNG.normal(size=(300, 3))).astype(np.float32)
    guess = np.broadcast_to(labels.mean(0), labels.shape)
    expected = 1 / np.square(labels - guess).mean()
    assert weight_of(tasks.Regression(), labels) == pytest.approx(expected, rel=1e-4)
    assert weight_of(Imitation(0, tasks.Regression()), labels) == pytest.approx(expected, rel=1e-4)
    assert weight_of(tasks.Regression(), np.ones((5, 2), np.float32)) == 1
    assert weight_of(tasks.Classification(), np.arange(5)) == weight_of(Imitation(0), labels) == 1


@pytest.mark.parametrize("kind", [tasks.Classification(), tasks.MultiLabel(), tasks.Regression()])
def test_an_output_without_labels_is_compared_with_the_unpruned_one(kind):
    t, z = (RNG.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    task = Imitation(1, kind, may_be_logits=isinstance(kind, tasks.Regression))
    expected = {
        "classification": lambda: (np.exp(log_softmax(t)) * (log_softmax(t) - log_softmax(z))).sum(
            1
        ),
        "multi-label classification": lambda: np.mean(
            [
                s * np.log(s / q) + (1 - s) * np.log((1 - s) / (1 - q))
                for s, q in [[1 / (1 + np.exp(-v.astype(float))) for v in (t, z)]]
            ][0],
            axis=1,
        ),
        "regression": lambda: np.square(t - z).mean(1),
    }[kind.name]()
    np.testing.assert_allclose(task.loss(t, z), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(task.loss(t, t), 0, atol=1e-6)
    np.testing.assert_array_equal(task.label_loss(t, z), 0)  # a teacher trains it
    np.testing.assert_array_equal(task.distance(t, z), kind.distance(t, z))
    measured = {name: values.numpy().mean() for name, values in task.measure(t, z).items()}
    assert tuple(measured) == task.metrics
    if kind.name == "regression":
        assert measured["difference"] == pytest.approx(np.abs(t - z).mean())
    same = (t > 0) == (z > 0) if kind.name.startswith("multi") else t.argmax(1) == z.argmax(1)
    assert measured["agreement"] == pytest.approx(same.mean())
    assert len(task.given(t)) == 0 and not task.has_labels


def test_rarely_predicted_classes_are_no_separate_strata():
    classes = np.repeat([0, 1, 2, 3], [40, 55, 2, 50])
    logits = np.eye(4, dtype=np.float32)[classes]
    np.testing.assert_array_equal(Imitation(0).strata(logits), np.where(classes == 2, 1, classes))


# ---------------------------------------------------------------- what was meant


def chosen(model, task="auto", labels=None, may_lose=()):
    choices, by_output = choose_outputs(model, Graph(model), task, labels, may_lose)
    return {choice.name: choice.task for choice in choices}, by_output


def test_labels_and_tasks_go_by_the_names_of_outputs():
    model = early_and_late()
    expected = {"position": tasks.Regression(0), "classes": tasks.Classification(1)}
    for labels in (
        [NUMBERS, CLASSES],
        (NUMBERS, CLASSES),
        {"classes": CLASSES, "position": NUMBERS},
        {1: CLASSES, 0: NUMBERS},
    ):
        found, by_output = chosen(model, labels=labels)
        assert found == expected and by_output[0] is NUMBERS and by_output[1] is CLASSES
    assert chosen(early_and_late(as_dict=True), labels={"position": NUMBERS, "classes": CLASSES})[
        0
    ] == {
        "classes": tasks.Classification(0),
        "position": tasks.Regression(1),
    }  # as Keras flattens a dict
    half = {"position": Imitation(0, tasks.Regression()), "classes": tasks.Classification(1)}
    for task, labels in (
        ("auto", [None, CLASSES]),
        ("auto", {"classes": CLASSES}),
        (tasks.Classification(1), CLASSES),
        ({"classes": "classification"}, CLASSES),
        ([None, "classification"], {"classes": CLASSES}),
    ):
        assert chosen(model, task, labels)[0] == half
    assert chosen(model, labels=CLASSES, may_lose=["position"])[0] == {
        "classes": tasks.Classification(1)
    }
    assert chosen(model, labels=[NUMBERS, CLASSES], may_lose=1)[0] == {
        "position": tasks.Regression(0)
    }
    assert chosen(model)[0] == {
        "position": Imitation(0, tasks.Regression()),
        "classes": Imitation(1),
    }
    assert chosen(model, {"classes": "regression"})[0]["classes"] == Imitation(
        1, tasks.Regression()
    )


def test_an_output_without_labels_keeps_the_kind_it_was_compiled_for():
    model = early_and_late(squash=None)
    numbers = Imitation(1, tasks.Regression(), may_be_logits=True)
    assert chosen(model)[0]["classes"] == numbers
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for loss, kind in (
        ({"classes": sparse, "position": "mse"}, Imitation(1)),
        (["mse", "sparse_categorical_crossentropy"], Imitation(1)),
        (["mse", "mse"], Imitation(1, tasks.Regression())),
        (
            ["mse", keras.losses.BinaryCrossentropy(from_logits=True)],
            Imitation(1, tasks.MultiLabel()),
        ),
    ):
        model.compile("sgd", loss)
        assert chosen(model)[0]["classes"] == kind


def test_probabilities_that_other_layers_read_are_treated_as_numbers():
    """A softmax in the midst of the network cannot be taken off."""
    inputs = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(conv_bn(conv_bn(inputs, 6, "one"), 8, "two"))
    shares = layers.Dense(8, activation="softmax", name="attention")(x)
    classes = layers.Dense(10, activation="softmax", name="classes")(layers.Multiply()([x, shares]))
    model = randomise_(keras.Model(inputs, [classes, shares], name="attends"))
    data = ekg.make_data(model, (IMAGES, [CLASSES, None]))
    assert data.task.parts[1].task == Imitation(1, tasks.Regression()) and data.task.logits == (0,)
    expected = model.predict(IMAGES, verbose=0)[1]
    np.testing.assert_allclose(data.train.labels[:, 1:], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": CLASSES},
            "labels of one output, and the network has the outputs .'position', 'classes'.; say "
            "which",
        ),
        ({"labels": [CLASSES]}, "`data` has 1 entries, and `model` 'two' has 2 outputs"),
        (
            {"labels": {"boxes": CLASSES}},
            "`data`: `model` 'two' has no output 'boxes'; it has .'position', 'classes'.",
        ),
        ({"labels": {"classes": CLASSES, 1: CLASSES}}, "`data` names an output twice"),
        ({"may_lose": ["boxes"]}, "`may_lose`: `model` 'two' has no output 'boxes'"),
        ({"may_lose": [0, "classes"]}, "`may_lose` names all outputs"),
        (
            {"task": "classification"},
            "'classification' is one task, and .* a dict, as in .'position': 'classification'",
        ),
        ({"task": {"classes": "boxes"}}, "`task` must be .* received 'boxes'"),
        (
            {"task": {"classes": "classification"}, "may_lose": "classes"},
            "which `may_lose` gives up; name it in one",
        ),
        (
            {"task": {"classes": tasks.Classification(0), "position": tasks.Regression(1)}},
            "'position' is for output 1",
        ),
        ({"task": tasks.Classification(2)}, "has 2 outputs, and the task means output 2"),
    ],
)
def test_labels_and_tasks_of_no_output_are_refused(options, message):
    with pytest.raises(EkgError, match=message):
        chosen(early_and_late(), **options)


def test_a_list_for_a_dict_of_outputs_is_refused():
    with pytest.raises(EkgError, match="`data` is a list, and `model` 'two' returns a dict"):
        chosen(early_and_late(as_dict=True), labels=[NUMBERS, CLASSES])


# ---------------------------------------------------------------- search and whole jobs


def losses_by_numpy(outputs, numbers, classes, variance):
    """Returns the loss of the two outputs together, the mean over the examples, by NumPy."""
    position, logits = outputs
    return (
        np.square(position - numbers).mean() / variance
        - log_softmax(logits)[np.arange(len(classes)), classes].mean()
    )


def test_the_reward_counts_both_outputs_of_every_candidate():
    """The first output is written long before the last segment of the program."""
    model = early_and_late(squash=None)
    data, supernet = ekg.make_data(model, (IMAGES, [NUMBERS, CLASSES])), ekg.Supernet(model)
    objective = Objective(supernet, data.batches(data.train, 80))
    whole = supernet.whole()
    objective.add_knowledge(whole)
    candidates = [(group, whole.with_width(group, 0.5)) for group in range(len(supernet.groups))]
    assert {supernet.groups[group].name for group, _ in candidates} == {"one", "hidden", "two"}
    whole_position, whole_logits = (value.numpy() for value in supernet.logits(IMAGES, whole))
    shares, variance = np.exp(log_softmax(whole_logits)), NUMBERS.var()
    scores = objective.scores(whole, candidates)
    for (_, subnetwork), score in zip(candidates, scores):
        position, logits = (
            value.numpy() for value in supernet.cut(subnetwork)(IMAGES, training=True)
        )
        loss = losses_by_numpy((position, logits), NUMBERS, CLASSES, variance)
        distance = (
            np.square(position - whole_position).mean() / variance
            - (shares * log_softmax(logits)).sum(1).mean()
        )
        assert score.loss == pytest.approx(loss, rel=1e-3) and score.reward == pytest.approx(
            -loss - distance, rel=1e-3
        )
    apart = objective.scores(whole, candidates, share_prefix=False)
    np.testing.assert_allclose(
        [one.reward for one in scores], [one.reward for one in apart], rtol=1e-5
    )
    products = next(iter(objective.gate_products(whole)))
    hidden = supernet.layout.channels([group.name for group in supernet.groups].index("hidden"))
    assert any(
        np.abs(values).sum()
        for site, values in products.items()
        if supernet.layout.index[site][0] == hidden.start
    )  # what the early output alone reads is important, too


LOSSES = {
    "top1": "sparse_categorical_crossentropy",
    "accuracy": "binary_crossentropy",
    "mae": "mse",
}
METRICS = {
    "top1": "sparse_categorical_accuracy",
    "accuracy": keras.metrics.BinaryAccuracy,
    "mae": "mae",
}


def evaluated(model, images, labels, metrics):
    """Returns {"output/metric": value} of Keras' own evaluation of a network that returns a
    dict.
    """
    kinds = {name: METRICS[metric] for name, metric in metrics.items()}
    model.compile(
        loss={name: LOSSES[metric] for name, metric in metrics.items()},
        metrics={name: [kind if isinstance(kind, str) else kind()] for name, kind in kinds.items()},
    )
    values = model.evaluate(images, labels, verbose=0, return_dict=True)
    return {
        f"{name}/{metric}": next(
            value
            for key, value in values.items()
            if key.startswith(f"{name}_") and not key.endswith("_loss")
        )
        for name, metric in metrics.items()
    }


@pytest.mark.rehearsed
def test_the_table_shows_every_output_as_keras_measures_it():
    labels, model = {"classes": CLASSES, "position": NUMBERS}, early_and_late(as_dict=True)
    fewer = IMAGES[:50], {name: own[:50] for name, own in labels.items()}
    result = ekg.prune(model, (IMAGES, labels), validation_data=fewer, **SHORT)
    assert list(result.table[0].metrics) == ["classes/top1", "classes/top5", "position/mae"]
    for row, measured in ((result.table[0], model), (result.table[-1], result.model)):
        expected = evaluated(measured, *fewer, {"classes": "top1", "position": "mae"})
        assert {name: row.metrics[name] for name in expected} == pytest.approx(
            expected, rel=1e-4
        ), row.name
    assert (
        result.rate <= 0.7
        and "classes top-1 %" in result.summary()
        and "position mean abs. error" in result.summary()
    )


def test_labels_in_batches_and_an_output_without_any():
    """Three heads: a Softmax layer and sigmoids, which come back, and a map that nobody
    labelled.
    """
    model, tags = three(), RNG.integers(0, 2, (80, 3))
    batches = tf.data.Dataset.from_tensor_slices(
        (IMAGES, {"classes": CLASSES, "tags": tags})
    ).batch(30)
    before = model.predict(IMAGES, verbose=0)
    result = ekg.prune(
        model, batches, validation_data=batches, **SHORT | {"augment": "flip", "bank": None}
    )
    assert list(result.table[0].metrics) == [
        "classes/top1",
        "classes/top5",
        "map/difference",
        "tags/accuracy",
    ]
    after = result.model.predict(IMAGES, verbose=0)
    assert result.table[0].metrics["map/difference"] == pytest.approx(0, abs=1e-6)
    assert result.table[-1].metrics["map/difference"] == pytest.approx(
        np.abs(after["map"] - before["map"]).mean(), rel=1e-3
    )
    assert result.table[-1].metrics["tags/accuracy"] == pytest.approx(
        ((after["tags"] > 0.5) == tags).mean()
    )
    np.testing.assert_allclose(after["classes"].sum(1), 1, rtol=1e-5)
    assert result.model.get_layer("tags").activation is keras.activations.sigmoid


def test_images_alone_are_pruned_against_the_unpruned_network_and_resume(tmp_path):
    model = network(softmax)
    call = {**SHORT, "bank": None, "augment": "flip", "run_dir": tmp_path / "run"}
    result = ekg.prune(model, IMAGES, validation_data=IMAGES, **call)
    before, after = (one.predict(IMAGES, verbose=0) for one in (model, result.model))
    first, last = result.table[0], result.table[-1]
    assert first.metrics == {"agreement": 1.0} and first.loss == pytest.approx(0, abs=1e-6)
    assert last.metrics["agreement"] == pytest.approx((after.argmax(1) == before.argmax(1)).mean())
    assert last.loss == pytest.approx(
        (before * (np.log(before) - np.log(after))).sum(1).mean(), rel=1e-3
    )
    assert "agreement %" in result.summary()
    batches = tf.data.Dataset.from_tensor_slices(IMAGES).batch(
        16
    )  # the same images: what was done stays
    assert ekg.prune(model, batches, validation_data=batches, **call).table == result.table
    assert files.read_json(tmp_path / "run" / "arguments.json")["finetune_teacher"] == "single"
    with pytest.raises(EkgError, match="holds a run with other arguments"):
        ekg.prune(
            model, (IMAGES, before.argmax(1)), validation_data=(IMAGES, before.argmax(1)), **call
        )


def test_outputs_that_may_be_lost_do_not_count():
    model = early_and_late()
    data = ekg.make_data(model, (IMAGES, [NUMBERS, CLASSES]), may_lose=["position"])
    assert data.task == tasks.Classification(1) and data.train.labels.dtype == np.int32
    with pytest.raises(EkgError, match="no output 'boxes'"):
        ekg.prune(model, (IMAGES, CLASSES), may_lose="boxes")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            early_and_late,
            {"data": (IMAGES, [NUMBERS, CLASSES]), "validation_data": (IMAGES, [None, CLASSES])},
            "labels of `validation_data`: output 'position' has no labels here, and some in `data`",
        ),
        (
            early_and_late,
            {"data": IMAGES, "validation_data": (IMAGES, [None, CLASSES])},
            "'classes' has labels here, and none",
        ),
        (
            early_and_late,
            {"data": (IMAGES, [NUMBERS, CLASSES]), "class_weight": {0: 2.0}},
            "one output, and 2 have labels",
        ),
        (
            early_and_late,
            {"data": (IMAGES, [None, CLASSES], {"position": np.ones(80)})},
            "output 'position' has no labels; leave its weights out",
        ),
        (
            early_and_late,
            {"data": (IMAGES, [NUMBERS, CLASSES], {"boxes": np.ones(80)})},
            "`weights`: `model` 'two' has no output 'boxes'",
        ),
        (
            early_and_late,
            {"data": (IMAGES, None, np.ones(80))},
            "weights belong to labels, and there are no labels",
        ),
        (
            early_and_late,
            {"data": (IMAGES, [NUMBERS, CLASSES[:-1]])},
            "labels of shape .79,.; give as many labels as images",
        ),
        (
            early_and_late,
            {"data": (IMAGES, [NUMBERS, CLASSES + 9])},
            r"labels of `data` must be in \[0, 9\], .* received 9 to 18",
        ),
        (
            lambda: network(lambda x: [softmax(x), keras.ops.argmax(x, -1)]),
            {"data": (IMAGES, [CLASSES, None])},
            "output 1 has no labels and holds int32, which nothing can be trained by; name it in "
            "`may_lose`",
        ),
        (
            lambda: network(lambda x: [softmax(x), keras.ops.log(-1 - keras.ops.abs(x))]),
            {"data": (IMAGES, [CLASSES, None])},
            "returns numbers that are not finite at its output 'log.*' for examples 0 to 63",
        ),
        (
            lambda: network(softmax),
            {"data": IMAGES, "fine_tune": {"finetune_teacher": "none"}, "epochs": 1},
            '`finetune_teacher` "none" trains with labels alone, and an output has none',
        ),
        (
            early_and_late,
            {
                "data": (IMAGES, [None, CLASSES]),
                "augment": "flip",
                "fine_tune": {"finetune_teacher": "ensemble"},
                "epochs": 1,
            },
            "`augment` may move what an output without labels says",
        ),
        (
            lambda: three((8, 8, 3)),
            {"data": make_data()},
            "others, .'map', 'tags'., which would be lost; name them",
        ),
    ],
)
def test_settings_that_would_ruin_an_output_are_refused(model, options, message):
    with pytest.raises(EkgError, match=message):
        ekg.prune(model(), **{"verbose": False, "target_rate": 0.7, "epochs": None, **options})
