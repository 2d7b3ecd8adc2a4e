import numpy as np
import pytest

from ekg.graph import execute
from ekg.graph.execute import ExecutionOptions
from tests.helpers import relative_difference


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fuse_norms", [True, False])
def test_a_pure_forward_equals_keras(tiny_resnet, images, training, fuse_norms):
    """Both forms of batch norms return Keras' own logits and move the statistics as Keras does."""
    forward = execute.pure_forward(tiny_resnet, ExecutionOptions(fuse_norms=fuse_norms))
    variables = execute.read_variables(tiny_resnet)
    logits, new = forward(*variables, images, training)
    expected, expected_new = tiny_resnet.stateless_call(*variables, images, training=training)
    assert relative_difference(logits, expected) < 1e-5
    assert len(new) == len(expected_new)
    for value, expected_value in zip(new, expected_new):
        np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=1e-6)


def test_a_frozen_batch_norm_keeps_its_moving_statistics(tiny_resnet, images):
    tiny_resnet.get_layer("stem_bn").trainable = False
    forward = execute.pure_forward(tiny_resnet)
    variables = execute.read_variables(tiny_resnet)
    logits, _ = forward(*variables, images, True)
    expected, _ = tiny_resnet.stateless_call(*variables, images, training=True)
    assert relative_difference(logits, expected) < 1e-5
