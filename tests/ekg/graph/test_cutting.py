import numpy as np

import ekg


def test_the_classifier_keeps_its_norm(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    cut = supernet.cut(supernet.whole().with_widths({"b2": 0.4}))
    kernel, whole = cut.get_layer("fc").kernel.numpy(), tiny_resnet.get_layer("fc").kernel.numpy()
    assert kernel.shape == (4, 3)
    np.testing.assert_allclose(
        kernel, whole[:4] * np.linalg.norm(whole) / np.linalg.norm(whole[:4]), rtol=1e-6
    )


def test_all_other_weights_of_a_cut_are_slices_of_the_models(tiny_resnet):
    supernet = ekg.Supernet(tiny_resnet)
    subnetwork = (
        supernet.whole()
        .ranked([range(6), range(4), range(5), range(8)])
        .with_widths({"stem": 0.5, "a1": 0.5})
    )
    cut = supernet.cut(subnetwork)  # of ascending scores the last channels stay
    for name, slices in {
        "stem": np.s_[..., 3:],
        "a1": np.s_[..., 3:, 2:],
        "a2": np.s_[..., 2:, 3:],
        "b1": np.s_[..., 3:, :],
        "b2": np.s_[...],
        "b3": np.s_[..., 3:, :],
    }.items():
        np.testing.assert_array_equal(
            cut.get_layer(name).kernel, tiny_resnet.get_layer(name).kernel.numpy()[slices]
        )
    for weight, whole in zip(
        cut.get_layer("a2_bn").get_weights(), tiny_resnet.get_layer("a2_bn").get_weights()
    ):
        np.testing.assert_array_equal(weight, whole[3:])
