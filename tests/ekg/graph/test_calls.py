import keras
import pytest
from keras import layers

import ekg
from ekg.graph.calls import Graph


def test_what_is_no_functional_model_of_one_input_and_one_output_is_refused(tiny_resnet):
    with pytest.raises(ekg.EkgError, match="`model` must be a functional keras.Model; received Sequential"):
        Graph(keras.Sequential([layers.Dense(2)]))
    with pytest.raises(ekg.EkgError, match="`model` must have one input and one output; 'two' has 1 and 2"):
        Graph(keras.Model(tiny_resnet.input, [tiny_resnet.output] * 2, name="two"))


def test_a_layer_that_returns_several_tensors_is_refused():
    inputs = keras.Input((8, 8, 4))
    halves = keras.ops.split(inputs, 2, axis=-1)
    with pytest.raises(ekg.EkgError, match="returns 2 tensors; only layers that return one can be"):
        Graph(keras.Model(inputs, layers.Add()(halves)))


def test_every_call_runs_after_what_it_reads_and_the_main_branch_before_the_shortcut(tiny_resnet):
    graph = Graph(tiny_resnet)
    written = {0}
    for call in graph.calls:
        assert set(call.inputs) <= written
        written.add(call.output)
    names = [call.layer.name for call in graph.calls]
    assert names.index("b2_bn") < names.index("b3") and graph.is_last(graph.calls[-1]) and graph.num_outputs == 3
