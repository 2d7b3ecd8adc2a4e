import keras
import numpy as np
import tensorflow as tf

from ekg.data.views import make_view
from ekg.devices.compute import in_graph
from ekg.graph.calls import Graph
from ekg.tasks.kinds import Classification


def test_python_code_runs_unconverted_while_a_graph_is_traced():
    lengths = []

    def function(x):
        lengths.append(x.shape[0])
        if len(lengths) > 5:  # of Python, not of tensors
            raise AssertionError
        return 2 * x

    made = in_graph(function)
    for _ in range(3):
        np.testing.assert_array_equal(made(tf.constant([1.0, 2.0])), [2, 4])
    assert lengths == [2]


def test_a_users_own_view_may_branch_on_tensors_with_if():
    """As in a tf.data pipeline: such a function worked within a training step, so it must go on
    working.
    """

    def dim(images, _seed):
        if tf.reduce_mean(images) > 1:
            images = images / 2
        return images

    inputs = keras.Input((4, 4, 3))
    graph = Graph(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs))))
    view, draws = make_view(dim, graph, Classification()), np.zeros((2, 8), np.float32)
    seen = in_graph(lambda images: view.images(images, None, tf.constant(draws)))
    np.testing.assert_array_equal(seen(tf.fill((2, 4, 4, 3), 8.0)), np.full((2, 4, 4, 3), 4.0))
    np.testing.assert_array_equal(seen(tf.fill((2, 4, 4, 3), 0.5)), np.full((2, 4, 4, 3), 0.5))


def test_functions_defined_on_one_line_are_not_mistaken_for_a_retraced_one(caplog, monkeypatch):
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    caplog.set_level("WARNING", logger="tensorflow")

    def count_warnings(make):
        caplog.clear()
        for number in range(12):
            make(lambda x, number=number: x + number)(tf.constant(1.0))
        return caplog.text.count("triggered tf.function retracing")

    assert count_warnings(in_graph) == 0
    assert count_warnings(tf.function) > 0  # so TensorFlow says of plain ones
