import keras
import pytest
from keras import layers

import ekg
from ekg.graph.calls import Graph


class Subclassed(keras.Model):
    def call(self, x):
        return x


def test_a_model_without_a_graph_is_refused():
    with pytest.raises(
        ekg.EkgError, match="`model` must be a functional keras.Model; received Dense"
    ):
        Graph(layers.Dense(2, name="dense"))
    with pytest.raises(
        ekg.EkgError, match="`model` 'unbuilt' has no input shape yet; begin it with keras.Input"
    ):
        Graph(keras.Sequential([layers.Dense(2)], name="unbuilt"))
    with pytest.raises(
        ekg.EkgError,
        match="`model` 'own' .Subclassed. is a subclassed model, whose graph is not known",
    ):
        Graph(Subclassed(name="own"))


def test_a_layer_that_returns_several_tensors_is_one_call():
    inputs = keras.Input((8, 8, 4))
    graph = Graph(keras.Model(inputs, layers.Add()(keras.ops.split(inputs, 2, axis=-1))))
    assert [(call.inputs, call.outputs) for call in graph.calls] == [((0,), (1, 2)), ((1, 2), (3,))]


def test_the_calls_of_nested_models_are_listed_with_their_own_names_and_sizes():
    inside = keras.Input((None, None, 3), name="any")
    inner = keras.Model(inside, layers.Conv2D(4, 3, name="conv")(inside), name="inner")
    inputs = keras.Input((8, 8, 3))
    graph = Graph(keras.Model(inputs, layers.Flatten(name="flat")(inner(inputs))))
    assert [call.key for call in graph.calls] == ["inner/any", "inner/conv", "flat"]
    assert graph.shapes[graph.calls[1].output] == (
        None,
        6,
        6,
        4,
    )  # the inner model itself leaves them open


def test_every_call_runs_after_what_it_reads_and_the_main_branch_before_the_shortcut(tiny_resnet):
    graph = Graph(tiny_resnet)
    written = {0}
    for call in graph.calls:
        assert set(call.inputs) <= written
        written.add(call.output)
    names = [call.layer.name for call in graph.calls]
    assert (
        names.index("b2_bn") < names.index("b3")
        and graph.is_last(graph.calls[-1])
        and graph.num_outputs == 3
    )
