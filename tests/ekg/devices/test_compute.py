import numpy as np
import pytest
import tensorflow as tf

import ekg
from ekg.data.dataset import Batches
from ekg.devices.compute import full_float32
from ekg.landscape.hessian import model_landscape
from ekg.searching.evaluator import Evaluator


def is_tf32():
    return tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.fixture(params=[True, False])
def tf32(request):
    before = is_tf32()
    tf.config.experimental.enable_tensor_float_32_execution(request.param)
    yield request.param
    tf.config.experimental.enable_tensor_float_32_execution(before)


def test_tensor_float_32_is_off_inside_the_context(tf32):
    with full_float32():
        assert not is_tf32()
    assert is_tf32() == tf32
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert is_tf32() == tf32


def spy(function, seen):
    def spied(*args, **options):
        seen.append(is_tf32())
        return function(*args, **options)

    return spied


def test_search_second_derivatives_and_masked_logits_never_use_it(
    tiny_resnet, tiny_data, monkeypatch, tf32
):
    seen, supernet = [], ekg.Supernet(tiny_resnet)
    for name in ("loss_sums", "gate_products", "add_knowledge"):
        monkeypatch.setattr(Evaluator, name, spy(getattr(Evaluator, name), seen))
    ekg.search(supernet, tiny_data, target_rate=0.8)
    landscape = model_landscape(tiny_resnet, Batches(tiny_data.test, tiny_data.normalise, 22))
    for name in ("_loss", "_gradient", "_product"):
        monkeypatch.setattr(landscape, name, spy(getattr(landscape, name), seen))
    landscape.loss(landscape.point)
    landscape.gradient(landscape.point)
    landscape.product(np.ones(landscape.dimension))
    supernet._forward = spy(supernet._forward, seen)
    supernet.logits(np.zeros((2, 8, 8, 3), np.float32), supernet.whole())
    assert len(seen) >= 7 and not any(seen) and is_tf32() == tf32
