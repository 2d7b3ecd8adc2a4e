import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import optimize

import ekg
from ekg.data.dataset import Dataset, Split
from ekg.io import files
from ekg.network import channel_weights
from ekg.searching import criteria
from tests.helpers.comparisons import make_objective, random_subnetwork
from tests.helpers.models import randomise_


@pytest.mark.parametrize("teacher", ["ensemble", "none"])
def test_importance_is_the_gradient_at_the_activations(tiny_resnet, tiny_data, teacher):
    """Oracle: Keras sub-models from each site to the logits, differentiated with respect to their
    input.
    """
    objective = make_objective(tiny_resnet, tiny_data, teacher)
    supernet, split = objective.supernet, tiny_data.test
    whole = supernet.whole()
    objective.add_knowledge(whole)
    scores = criteria.ekg(criteria.CriterionContext(objective, whole))
    expected = {group.name: np.zeros(group.size) for group in supernet.groups}
    weights = tiny_resnet.get_weights()
    for group in supernet.groups:
        for site in group.sites:
            beside = {"a1_relu": ["stem_relu"], "b1_relu": ["a_out"]}.get(
                site, []
            )  # the branch of the shortcut
            symbols = [tiny_resnet.get_layer(name).output for name in [site, *beside]]
            prefix, suffix = (
                keras.Model(tiny_resnet.input, symbols),
                keras.Model(symbols, tiny_resnet.output),
            )
            for i, j in ((0, 7), (7, 14), (14, 22)):
                y, *others = tf.nest.flatten(
                    prefix(tiny_data.normalise(split.images[i:j]), training=True)
                )
                with tf.GradientTape() as tape:
                    tape.watch(y)
                    logits = suffix([y, *others] if others else y, training=True)
                    loss = tf.reduce_sum(
                        tf.nn.sparse_softmax_cross_entropy_with_logits(split.labels[i:j], logits)
                    )
                    if teacher == "ensemble":  # of one network: itself
                        knowledge = tf.stop_gradient(tf.nn.softmax(logits))
                        loss -= tf.reduce_sum(knowledge * tf.nn.log_softmax(logits))
                product = (tape.gradient(loss, y) * y).numpy().sum(axis=(0, 1, 2))
                expected[group.name] += np.abs(product) / len(split)
    tiny_resnet.set_weights(weights)
    np.testing.assert_allclose(
        scores, np.concatenate(list(expected.values())), rtol=2e-3, atol=2e-5
    )


def filters_of(model, name):
    kernel = model.get_layer(name).kernel.numpy()
    return kernel.reshape(-1, kernel.shape[-1]).T


def test_l1_and_fpgm_sum_over_the_convolutions_that_write_a_group(tiny_resnet, tiny_data):
    """By hand: the residual stream is written by the stem and a2, the second one by b2 and its
    projection b3.
    """
    objective = make_objective(tiny_resnet, tiny_data)
    supernet = objective.supernet
    whole = supernet.whole()
    writers = [("stem", "a2"), ("a1",), ("b1",), ("b2", "b3")]
    assert [group.writers for group in supernet.groups] == writers
    expected = np.concatenate(
        [
            sum(np.abs(filters_of(tiny_resnet, name)).sum(axis=1) for name in names)
            for names in writers
        ]
    )
    np.testing.assert_allclose(
        criteria.l1(criteria.CriterionContext(objective, whole)), expected, rtol=1e-5
    )

    def distances(filters):
        median = optimize.minimize(
            lambda x: np.linalg.norm(filters - x, axis=1).sum(), filters.mean(axis=0), tol=1e-12
        ).x
        return np.linalg.norm(filters - median, axis=1)

    expected = np.concatenate(
        [
            sum(distances(filters_of(tiny_resnet, name).astype(np.float64)) for name in names)
            for names in writers
        ]
    )
    np.testing.assert_allclose(
        criteria.fpgm(criteria.CriterionContext(objective, whole)), expected, rtol=1e-3
    )


@pytest.mark.parametrize("criterion", list(criteria.CRITERIA))
def test_removed_channels_score_nothing(tiny_resnet, tiny_data, criterion):
    objective = make_objective(tiny_resnet, tiny_data)
    subnetwork = random_subnetwork(objective.supernet, 3)
    objective.add_knowledge(objective.supernet.whole())
    scores = criteria.CRITERIA[criterion](criteria.CriterionContext(objective, subnetwork))
    kept = objective.supernet.mask(subnetwork)[:-1] > 0
    assert (
        scores.shape == kept.shape and not scores[~kept].any() and (scores[kept] > 0).mean() > 0.9
    )


def test_gbn_is_the_sum_over_images_of_a_gates_effect(tiny_resnet, tiny_data):
    """Oracle: the gate of one image moved by a little in the masked network, central differences of
    its batch's loss.
    """
    objective = make_objective(tiny_resnet, tiny_data, batch_size=22)
    supernet = objective.supernet
    scores = criteria.gbn(criteria.CriterionContext(objective, supernet.whole()))
    images, labels = tiny_data.normalise(tiny_data.test.images), tiny_data.test.labels
    weights, mask = supernet.weights(), tf.constant(supernet.mask(supernet.whole()))
    layout, step = supernet.layout, 1e-2

    @tf.function
    def loss(image, channel, change):
        gates = {}
        for site, gate in supernet.gates(mask).items():
            rank = len(supernet.graph.shapes[site])
            moved = tf.cast(layout.index[site] == channel, tf.float32) * change
            by_image = tf.reshape(
                tf.one_hot(image, 22)[:, None] * moved[None], [22, *[1] * (rank - 2), -1]
            )
            gates[site] = gate + by_image
        logits = supernet.forward(weights, mask, images, gates=gates)
        return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    for channel in (0, 7, 12, 20):
        sides = [
            [
                float(loss(tf.constant(image), tf.constant(channel), tf.constant(change)))
                for image in range(22)
            ]
            for change in (step, -step)
        ]
        expected = sum(abs(above - below) for above, below in zip(*sides)) / (2 * step)
        assert scores[channel] == pytest.approx(expected, rel=0.03)


# ---------------------------------------------------------------- Taylor


def channel_arrays(model, group, channel):
    """Returns [(variable, index)] of what belongs to one channel of a group, by the names of its
    layers.
    """
    arrays = []
    for name in group.writers:
        arrays += [(model.get_layer(name).kernel, (..., channel))]
        arrays += [
            (variable, channel) for variable in model.get_layer(f"{name}_bn").trainable_variables
        ]
    return arrays


@pytest.mark.parametrize("seed", [None, 3])
def test_taylor_is_the_gradient_of_the_cut_network(tiny_resnet, tiny_data, seed):
    """Oracle: a tape over the variables of the dense network that the sub-network is."""
    objective, split = make_objective(tiny_resnet, tiny_data), tiny_data.test
    supernet = objective.supernet
    subnetwork = supernet.whole() if seed is None else random_subnetwork(supernet, seed)
    scores = criteria.taylor(criteria.CriterionContext(objective, subnetwork))
    cut, loss = supernet.cut(subnetwork), 0
    with tf.GradientTape() as tape:
        for i, j in ((0, 7), (7, 14), (14, 22)):
            logits = cut(tiny_data.normalise(split.images[i:j]), training=True)
            loss += tf.reduce_sum(
                tf.nn.sparse_softmax_cross_entropy_with_logits(split.labels[i:j], logits)
            ) / len(split)
    variables = cut.trainable_variables
    gradients = {
        id(variable): np.asarray(gradient)
        for variable, gradient in zip(
            variables, tape.gradient(loss, [variable.value for variable in variables])
        )
    }
    expected = np.zeros_like(scores)
    for i, group in enumerate(supernet.groups):
        for place, channel in enumerate(subnetwork.kept(i)):
            total = sum(
                (variable.numpy()[index].astype(np.float64) * gradients[id(variable)][index]).sum()
                for variable, index in channel_arrays(cut, group, place)
            )
            expected[supernet.layout.channels(i).start + channel] = total**2
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-6 * expected.max())


def test_taylor_is_how_fast_the_loss_changes_with_all_weights_of_a_channel(tiny_resnet, tiny_data):
    """Oracle: central differences in float64, of all weights of a channel; its filters alone say
    nothing.
    """
    objective, split = make_objective(tiny_resnet, tiny_data, batch_size=22), tiny_data.test
    supernet, step = objective.supernet, 1e-6
    scores = criteria.taylor(criteria.CriterionContext(objective, supernet.whole()))
    config = tiny_resnet.get_config()
    for layer in config["layers"]:
        layer["config"]["dtype"] = "float64"
    double = keras.Model.from_config(config)
    double.set_weights([weight.astype(np.float64) for weight in tiny_resnet.get_weights()])
    images = tf.cast(tiny_data.normalise(split.images), tf.float64)

    def slope(arrays):
        losses = []
        for factor in (1 + step, 1 - step):
            before = [variable.numpy() for variable, _ in arrays]
            for variable, index in arrays:
                value = variable.numpy()
                value[index] *= factor
                variable.assign(value)
            logits = double(images, training=True)
            losses.append(
                float(
                    tf.reduce_mean(
                        tf.nn.sparse_softmax_cross_entropy_with_logits(split.labels, logits)
                    )
                )
            )
            for (variable, _), value in reversed([*zip(arrays, before)]):
                variable.assign(value)
        return (losses[0] - losses[1]) / (2 * step)

    for i, group in enumerate(supernet.groups):
        channel = group.size // 2
        arrays = channel_arrays(double, group, channel)
        assert scores[supernet.layout.offsets[i] + channel] == pytest.approx(
            slope(arrays) ** 2, rel=1e-2, abs=1e-8
        )
        filters = [(variable, index) for variable, index in arrays if len(variable.shape) > 1]
        assert abs(slope(filters)) < 1e-3 * abs(slope(arrays))


@pytest.mark.parametrize("arch", ["mixed", "mobile"])
def test_the_weights_of_a_channel_are_those_that_a_cut_removes(arch):
    """One channel fewer: the parameters that go are the channel's weights, its statistics, and what
    reads it.
    """
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, name="first")(inputs)
    x = keras.layers.PReLU(shared_axes=[1, 2], name="slopes")(
        keras.layers.LayerNormalization(name="norm")(x)
    )
    if arch == "mobile":
        x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
        x = keras.layers.BatchNormalization(name="batch_norm")(x)
    x = keras.layers.Conv2D(5, 1, name="reader")(x)
    model = randomise_(
        keras.Model(inputs, keras.layers.Dense(3, name="fc")(keras.layers.Flatten()(x)))
    )
    supernet = ekg.Supernet(model, exclude="reader")
    places = channel_weights.find_places(supernet)
    expected = [
        ("first", "kernel"),
        ("first", "bias"),
        ("norm", "gamma"),
        ("norm", "beta"),
        ("slopes", "alpha"),
    ]
    if arch == "mobile":
        expected += [
            ("depthwise", "kernel"),
            ("depthwise", "bias"),
            ("batch_norm", "gamma"),
            ("batch_norm", "beta"),
        ]
    assert [(place.call.key, place.name) for place in places] == expected
    whole = supernet.whole()
    mask = supernet.mask(whole) > 0
    entries = sum(
        channel_weights.rows_of(supernet, mask, place, place.variable.numpy()).rows.shape[1]
        for place in places
    )
    statistics, read = 2 * (arch == "mobile"), 5
    fewer = supernet.complexity(whole).params - supernet.complexity(whole.with_kept(0, 5)).params
    assert fewer == entries + statistics + read


# ---------------------------------------------------------------- numbers within heads


def attended(kind):
    inputs = keras.Input((4, 3))
    if kind == "grouped":
        layer = keras.layers.GroupQueryAttention(3, 4, 2, name="attend")
    else:
        layer = keras.layers.MultiHeadAttention(4, 3, value_dim=2, name="attend")
    x = keras.layers.Dense(5, activation="relu", name="first")(inputs)
    x = layer(x, x)
    x = keras.layers.GlobalAveragePooling1D(name="pool")(keras.layers.ReLU(name="relu")(x))
    return randomise_(keras.Model(inputs, keras.layers.Dense(3, name="fc")(x), name="attended"))


@pytest.mark.parametrize("kind", ["grouped", "several"])
def test_scores_of_numbers_within_heads_are_of_all_heads_and_tokens(kind):
    """Oracle: Keras' own network, differentiated by the weights that write and read the numbers."""
    model, rng = attended(kind), np.random.default_rng(0)
    images = rng.normal(size=(22, 4, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 22)
    split = Split(images, labels)
    data = Dataset("TOKENS", 3, split, split, (0.0,) * 3, (1.0,) * 3)
    objective = make_objective(model, data, "none")
    context = criteria.CriterionContext(objective, objective.supernet.whole())
    found = {
        criterion.__name__: dict(
            zip(context.subnetwork.names, objective.supernet.layout.by_group(criterion(context)))
        )
        for criterion in (criteria.ekg, criteria.gbn, criteria.l1)
    }
    layer = model.get_layer("attend")
    query, output = layer._query_dense, layer._output_dense

    def slopes(first, last):
        """Returns the derivative by a factor of each number of (queries, values)."""
        variables = (query.kernel, query.bias, output.kernel)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels[first:last], model(images[first:last])
                )
            )
        of_query, of_bias, of_output = (
            (gradient * variable).numpy()
            for gradient, variable in zip(tape.gradient(loss, variables), variables)
        )
        return of_query.sum((0, 1)) + of_bias.sum(0), of_output.sum((0, 2))

    kernels = [dense.kernel.numpy() for dense in (query, layer._key_dense, layer._value_dense)]
    norms = [np.abs(kernel).sum((0, 1)) for kernel in kernels]
    batches = [slopes(*part) for part in ((0, 7), (7, 14), (14, 22))]
    images_alone = [slopes(i, i + 1) for i in range(22)]
    if kind == "grouped":
        expected = {
            "attend/head_dim": {
                "ekg": sum(np.abs(first + second) for first, second in batches) / 22,
                "gbn": sum(np.abs(first + second) for first, second in images_alone),
                "l1": sum(norms),
            }
        }
    else:
        expected = {
            name: {
                "ekg": sum(np.abs(slope[place]) for slope in batches) / 22,
                "gbn": sum(np.abs(slope[place]) for slope in images_alone),
                "l1": norm,
            }
            for place, (name, norm) in enumerate(
                {"attend/key_dim": norms[0] + norms[1], "attend/value_dim": norms[2]}.items()
            )
        }
    for group, scores in expected.items():
        for criterion, values in scores.items():
            np.testing.assert_allclose(
                found[criterion][group], values, rtol=1e-4, atol=1e-6, err_msg=criterion
            )


# ---------------------------------------------------------------- random, and what costs nothing


def test_random_scores_depend_on_seed_and_subnetwork_alone(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data)
    first, second = (random_subnetwork(objective.supernet, seed) for seed in (1, 2))
    one, again, other_seed, other = (
        criteria.random(criteria.CriterionContext(objective, subnetwork, seed)).tolist()
        for subnetwork, seed in ((first, 0), (first, 0), (first, 1), (second, 0))
    )
    assert one == again and one != other_seed and one != other


@pytest.mark.parametrize("criterion", ["l1", "fpgm", "random"])
def test_criteria_of_the_weights_need_no_data(tiny_resnet, criterion):
    class NoPasses:
        supernet = ekg.Supernet(tiny_resnet)

    assert criteria.CRITERIA[criterion](
        criteria.CriterionContext(NoPasses(), NoPasses.supernet.whole())
    ).all()


# ---------------------------------------------------------------- one's own


def magnitude(context):
    """L1, written as a user would."""
    return context.sum_by_channel(
        (kernel.channels, np.abs(kernel.rows).sum(axis=1)) for kernel in context.kernels()
    )


def test_a_users_function_gives_the_same_search_as_the_criterion_it_repeats(tiny_resnet, tiny_data):
    supernet = ekg.Supernet(tiny_resnet)
    own, named = (
        ekg.search(supernet, tiny_data, target_rate=0.6, criterion=criterion).history
        for criterion in (magnitude, "l1")
    )
    assert [entry.subnetwork for entry in own] == [entry.subnetwork for entry in named]


def test_a_job_with_a_users_criterion_keeps_its_name_and_resumes(tiny_resnet, tiny_data, tmp_path):
    images, labels = tiny_data.train.images.astype(np.float32), tiny_data.train.labels
    first, second = (
        ekg.prune(
            tiny_resnet,
            (images, labels),
            target_rate=0.6,
            epochs=None,
            run_dir=tmp_path / "run",
            search={"criterion": magnitude, "groups_per_step": 2},
            verbose=False,
        )
        for _ in range(2)
    )
    assert files.read_json(tmp_path / "run" / "arguments.json")["criterion"].startswith(
        "magnitude "
    )
    assert first.history == second.history and first.history[-1].rate <= 0.6
    assert any(len(entry.narrowed) == 2 for entry in first.history)


def test_scores_of_removed_channels_are_ignored(tiny_resnet, tiny_data):
    objective = make_objective(tiny_resnet, tiny_data)
    context = ekg.CriterionContext(objective, random_subnetwork(objective.supernet, 3))
    scores = criteria.score_channels(lambda context: np.where(context.mask, -2, np.nan), context)
    np.testing.assert_array_equal(scores, np.where(context.mask, -2.0, 0.0))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            np.ones(22),
            "`criterion` 'mine' must return an array of shape (23,), one score per channel of "
            "all groups; received shape (22,).",
        ),
        (
            1.0,
            "`criterion` 'mine' must return an array of shape (23,), one score per channel of "
            "all groups; received shape ().",
        ),
        (
            "abc",
            "`criterion` 'mine' must return an array of numbers of shape (23,), one score per "
            "channel; received str.",
        ),
        (
            [[1], [1, 2]],
            "`criterion` 'mine' must return an array of numbers of shape (23,), one score per "
            "channel; received list.",
        ),
        (
            np.array([1.0, np.nan, np.inf] + [0.0] * 20),
            "`criterion` 'mine' must return finite scores; 2 scores of kept channels are not.",
        ),
    ],
)
def test_wrong_scores_are_refused_in_one_line(tiny_resnet, tiny_data, result, message):
    def mine(_):
        return result

    with pytest.raises(ekg.EkgError) as error:
        ekg.search(ekg.Supernet(tiny_resnet), tiny_data, target_rate=0.5, criterion=mine)
    assert str(error.value) == message


def test_importance_that_is_not_finite_is_refused(tiny_resnet, tiny_data, monkeypatch):
    monkeypatch.setitem(
        criteria.CRITERIA, "l1", lambda context: np.full(context.num_channels, np.nan)
    )
    objective = make_objective(tiny_resnet, tiny_data)
    with pytest.raises(FloatingPointError, match="the importance of some channels is not finite"):
        criteria.score_channels(
            "l1", criteria.CriterionContext(objective, objective.supernet.whole())
        )
