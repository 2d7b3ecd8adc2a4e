import numpy as np
import tensorflow as tf

from ekg.tasks.logits import top_k_hits


def test_constant_logits_are_right_for_one_class():
    for k in (1, 2):
        hits = top_k_hits(np.arange(4), tf.zeros((4, 4)), k).numpy()
        assert hits.tolist() == [1, float(k > 1), 0, 0]
    assert not top_k_hits(np.arange(4), tf.fill((4, 4), np.nan), 1).numpy().any()


def test_top5_counts_the_five_highest():
    logits = np.arange(20, dtype=np.float32)[None].repeat(4, axis=0)
    assert top_k_hits([19, 15, 14, 0], tf.constant(logits), 5).numpy().tolist() == [1, 1, 0, 0]
