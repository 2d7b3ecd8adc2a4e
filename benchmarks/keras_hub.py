"""Makes a supernet of every KerasHub backbone, and compares masked, cut and reloaded networks.

    python -m benchmarks.keras_hub --out runs/keras_hub
    python -m benchmarks.keras_hub --out runs/keras_hub --only vit deit

The backbones have their published widths, fewer blocks, random weights and small inputs, so that
nothing is downloaded but the package, which is installed into a folder of its own. Each one gets a
pooling and a classifier of 10 classes. The report has a row per network: the FLOPs of its smallest
sub-network as a share of all, the number of channel groups, and the largest difference between
masked and cut, and between masked and reloaded network, as a share of the largest output, with
moving statistics and with statistics of the batch; or why ekg.Supernet refuses the network.
networks.json has the same rows; `--table` prints them in the form of docs/networks.md.
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import utils  # before TensorFlow: it sets TensorFlow's environment
import ekg
import keras
import numpy as np
import tensorflow as tf
from benchmarks import common
from ekg import testing
from ekg.devices.compute import full_float32
from ekg.errors import EkgError, first_line
from ekg.graph import execute
from ekg.io import files

logger = logging.getLogger(__name__)

PACKAGES = ("keras-hub==0.32.0", "regex", "tokenizers")
CLASSES, EXAMPLES, TOKENS = 10, 4, 16
IMAGE = (64, 64, 3)
ROWS = "networks.json"
COMPARED = (("cut_inference",), ("cut_training",), ("reloaded_inference", "reloaded_training"))
HEAD = ("network", "groups", "smallest rate", "cut", "in training", "reloaded", "closed layers")


def parse_args(argv=None):
    parser = utils.Parser(description="Make a supernet of every KerasHub backbone.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/keras_hub"), help="folder for package and report"
    )
    parser.add_argument("--only", nargs="+", choices=BACKBONES, help="names of networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--table", action="store_true", help="print the table of an earlier run and do nothing else"
    )
    return parser.parse_args(argv)


# ---------------------------------------------------------------- the networks


def install(folder):
    """Makes KerasHub importable, from a folder of its own in the folder of the benchmark."""
    target = folder / "packages"
    if not (target / "keras_hub").exists():
        command = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        process = subprocess.run(
            [sys.executable, *command, *PACKAGES], capture_output=True, text=True, check=False
        )
        if process.returncode:
            raise EkgError(f"pip install {PACKAGES[0]} failed: {process.stderr.strip()[-300:]}")
    sys.path.insert(0, str(target.resolve()))


def _models():
    import keras_hub  # from the folder of install()

    return keras_hub.models


def _vit(**options):
    return _models().ViTBackbone(
        image_shape=IMAGE,
        patch_size=16,
        num_layers=3,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        dropout_rate=0.1,
        **options,
    )


def _deit():
    return _models().DeiTBackbone(
        image_shape=IMAGE,
        patch_size=16,
        num_layers=3,
        num_heads=3,
        hidden_dim=192,
        intermediate_dim=768,
    )


def _swin():
    return _models().SwinTransformerBackbone(
        image_shape=IMAGE, embed_dim=96, depths=(2, 2), num_heads=(3, 6), window_size=4
    )


def _mit():
    return _models().MiTBackbone(
        layerwise_depths=[2, 2],
        num_layers=2,
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[8, 4],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        image_shape=IMAGE,
        hidden_dims=[32, 64],
    )


def _segformer():
    return _models().SegFormerBackbone(image_encoder=_mit(), projection_filters=64)


def _efficientnet(**options):
    blocks = {
        "stackwise_width_coefficients": [1.0] * 4,
        "stackwise_depth_coefficients": [1.0] * 4,
        "stackwise_kernel_sizes": [3, 3, 5, 3],
        "stackwise_num_repeats": [1, 2, 2, 2],
        "stackwise_input_filters": [32, 16, 24, 40],
        "stackwise_output_filters": [16, 24, 40, 80],
        "stackwise_expansion_ratios": [1, 6, 6, 6],
        "stackwise_squeeze_and_excite_ratios": [0.25] * 4,
        "stackwise_strides": [1, 2, 2, 2],
        "stackwise_block_types": ["v1"] * 4,
        "stackwise_force_input_filters": [0] * 4,
        "stackwise_nores_option": [False] * 4,
    }
    return _models().EfficientNetBackbone(**{**blocks, **options}, input_shape=IMAGE)


def _efficientnet_v2():
    return _efficientnet(
        stackwise_kernel_sizes=[3, 3, 3, 3],
        stackwise_expansion_ratios=[1, 4, 4, 4],
        stackwise_input_filters=[24, 24, 48, 64],
        stackwise_output_filters=[24, 48, 64, 128],
        stackwise_squeeze_and_excite_ratios=[0, 0, 0, 0.25],
        stackwise_block_types=["fused"] * 3 + ["unfused"],
        activation="silu",
    )


def _mobilenet(expansion, filters, activation, squeeze, first, residual=False):
    """Returns a MobileNet of two stages of two blocks."""
    pairs = [[squeeze] * 2] * 2
    return _models().MobileNetBackbone(
        stackwise_expansion=expansion,
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=filters,
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=pairs,
        stackwise_activation=[[activation] * 2] * 2,
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=None,
        depthwise_filters=first,
        depthwise_stride=1,
        depthwise_residual=residual,
        last_layer_filter=filters[-1][-1] * 6,
        squeeze_and_excite=squeeze,
        image_shape=IMAGE,
        input_activation=activation,
        output_activation=activation,
        input_num_filters=32 if first != 16 else 16,
    )


def _mobilenet_v5():
    return _models().MobileNetV5Backbone(
        stackwise_block_types=[["er", "er"], ["uir", "uir"], ["uir", "mqa"]],
        stackwise_num_blocks=[2, 2, 2],
        stackwise_num_filters=[[32, 32], [64, 64], [96, 96]],
        stackwise_strides=[[2, 1], [2, 1], [2, 1]],
        stackwise_act_layers=[["gelu"] * 2] * 3,
        stackwise_exp_ratios=[[4.0] * 2] * 2 + [[4.0, 0.0]],
        stackwise_se_ratios=[[0.0] * 2] * 3,
        stackwise_dw_kernel_sizes=[[0, 0], [5, 3], [5, 0]],
        stackwise_dw_start_kernel_sizes=[[0, 0], [3, 0], [3, 0]],
        stackwise_dw_end_kernel_sizes=[[0, 0]] * 3,
        stackwise_exp_kernel_sizes=[[3, 3], [0, 0], [0, 0]],
        stackwise_pw_kernel_sizes=[[1, 1], [0, 0], [0, 0]],
        stackwise_num_heads=[[0, 0], [0, 0], [0, 4]],
        stackwise_key_dims=[[0, 0], [0, 0], [0, 24]],
        stackwise_value_dims=[[0, 0], [0, 0], [0, 24]],
        stackwise_kv_strides=[[0, 0], [0, 0], [0, 1]],
        stackwise_use_cpe=[[False] * 2] * 3,
        use_msfa=False,
        layer_scale_init_value=1e-2,
        image_shape=IMAGE,
    )


def _resnet(block, pre=False, **options):
    return _models().ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128],
        stackwise_num_blocks=[2, 2],
        stackwise_num_strides=[1, 2],
        block_type=block,
        use_pre_activation=pre,
        image_shape=IMAGE,
        **options,
    )


CROSS_STAGE = {"bottle_ratio": (0.5, 1.0), "block_ratio": (1.0, 0.5), "expand_ratio": (2.0, 1.0)}


def _cspnet(block, stage, **options):
    return _models().CSPNetBackbone(
        stem_filters=32,
        stem_kernel_size=3,
        stem_strides=1,
        stackwise_depth=[1, 2, 2],
        stackwise_strides=[2, 2, 2],
        stackwise_num_filters=[64, 128, 256],
        block_type=block,
        stage_type=stage,
        image_shape=IMAGE,
        **(CROSS_STAGE if stage != "dark" else {}),
        **options,
    )


def _densenet():
    return _models().DenseNetBackbone(
        stackwise_num_repeats=[3, 3], growth_rate=32, image_shape=IMAGE
    )


def _vgg():
    return _models().VGGBackbone(
        stackwise_num_repeats=[2, 2, 2], stackwise_num_filters=[64, 128, 256], image_shape=IMAGE
    )


def _hgnet(light):
    return _models().HGNetV2Backbone(
        depths=[1, 1, 2],
        embedding_size=32,
        hidden_sizes=[64, 128, 256],
        stem_channels=[3, 16, 32],
        hidden_act="relu",
        use_learnable_affine_block=light,
        stackwise_stage_filters=[
            (32, 16, 64, 1, 1, 3),
            (64, 32, 128, 1, 3, 3),
            (128, 64, 256, 2, 3, 5),
        ],
        apply_downsample=[False, True, True],
        use_lightweight_conv_block=[False, False, light],
        image_shape=IMAGE,
        out_features=["stage3"],
    )


def _xception():
    return _models().XceptionBackbone(
        stackwise_conv_filters=[[32, 64], [128, 128], [256, 256]],
        stackwise_pooling=[False, True, False],
        image_shape=IMAGE,
    )


def _dinov2(**options):
    return _models().DINOV2Backbone(
        patch_size=16,
        num_layers=3,
        hidden_dim=192,
        num_heads=3,
        intermediate_dim=768,
        image_shape=IMAGE,
        position_embedding_shape=IMAGE,
        **options,
    )


def _clip():
    return _models().CLIPVisionEncoder(
        patch_size=16,
        hidden_dim=192,
        num_layers=3,
        num_heads=3,
        intermediate_dim=768,
        image_shape=IMAGE,
    )


def _text(name, **options):
    return getattr(_models(), name)(
        vocabulary_size=100,
        num_layers=2,
        num_heads=3,
        hidden_dim=192,
        intermediate_dim=768,
        max_sequence_length=TOKENS,
        **options,
    )


def _whisper():
    return _models().WhisperBackbone(
        vocabulary_size=100,
        num_layers=2,
        num_heads=3,
        hidden_dim=192,
        intermediate_dim=768,
        max_encoder_sequence_length=4 * TOKENS,
        max_decoder_sequence_length=TOKENS,
    )


BACKBONES = {
    "vit": lambda: _vit(),
    "vit without class token": lambda: _vit(use_class_token=False),
    "deit": _deit,
    "swin": _swin,
    "mit": _mit,
    "segformer": _segformer,
    "efficientnet": _efficientnet,
    "efficientnet v2": _efficientnet_v2,
    "mobilenet v1": lambda: _mobilenet(
        [[32, 64], [128, 128]], [[64, 128], [128, 256]], "relu6", None, 64
    ),
    "mobilenet v2": lambda: _mobilenet(
        [[96, 144], [144, 192]], [[24, 24], [32, 32]], "relu6", None, 16
    ),
    "mobilenet v3": lambda: _mobilenet(
        [[64, 72], [72, 120]], [[24, 24], [40, 40]], "hard_swish", 0.25, 16, True
    ),
    "mobilenet v5": _mobilenet_v5,
    "resnet v1": lambda: _resnet("bottleneck_block"),
    "resnet basic": lambda: _resnet("basic_block"),
    "resnet v2": lambda: _resnet("bottleneck_block", True),
    "cspnet": lambda: _cspnet("dark_block", "csp"),
    "cspnet bottleneck": lambda: _cspnet("bottleneck_block", "csp", cross_linear=True),
    "darknet": lambda: _cspnet("dark_block", "dark"),
    "cs3": lambda: _cspnet("dark_block", "cs3"),
    "densenet": _densenet,
    "vgg": _vgg,
    "hgnet v2": lambda: _hgnet(False),
    "hgnet v2 light": lambda: _hgnet(True),
    "xception": _xception,
    "dinov2": lambda: _dinov2(),
    "dinov2 with registers": lambda: _dinov2(num_register_tokens=4, use_swiglu_ffn=True),
    "clip image": _clip,
    "bert": lambda: _text("BertBackbone"),
    "distilbert": lambda: _text("DistilBertBackbone"),
    "gpt-2": lambda: _text("GPT2Backbone"),
    "whisper": _whisper,
}

# Their norms add 1e-12 to the variance, which Keras computes as a difference: it can be below zero
# over one channel.
CHOICES = dict.fromkeys(("bert", "distilbert"), {"min_channels": 4})


def network_of(backbone):
    """Returns a classifier on top of a backbone, with sizes for text and sound that are fixed."""
    inputs = {
        symbol.name: keras.Input(_fixed(symbol), dtype=symbol.dtype, name=symbol.name)
        for symbol in backbone.inputs
    }
    is_one = len(inputs) == 1
    outputs = backbone(next(iter(inputs.values())) if is_one else inputs)
    features = keras.tree.flatten(outputs)[0 if not isinstance(outputs, dict) else -1]
    if len(features.shape) > 2:
        axes = tuple(range(1, len(features.shape) - 1))
        features = keras.ops.mean(features, axis=axes)
    logits = keras.layers.Dense(CLASSES, name="classifier")(features)
    return keras.Model(list(inputs.values()), logits, name="network")


def _fixed(symbol):
    """Returns the shape of an input without the batch, with a size in place of an unknown one."""
    is_text = len(symbol.shape) == 2
    return tuple((TOKENS if is_text else 4 * TOKENS) if n is None else n for n in symbol.shape[1:])


def randomise_(model, seed):
    """Gives all weights random values, so that nothing agrees by symmetry or for being zero."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        if weight.name in ("gamma", "moving_variance", "variance", "scale"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif len([size for size in weight.shape if size > 1]) < 2:
            weight.assign(rng.normal(0, 0.3, weight.shape))
        else:
            weight.assign(rng.normal(0, 1 / np.sqrt(np.prod(weight.shape[:-1])), weight.shape))


# ---------------------------------------------------------------- one row


def examine(name, seed):
    """Returns the row of a network."""
    keras.utils.set_random_seed(seed)
    try:
        model = network_of(BACKBONES[name]())
    except Exception as error:  # anything that a package raises
        return {"network": name, "not built": first_line(error)}
    randomise_(model, seed)
    row = {"network": name, "params": model.count_params()}
    try:
        supernet = ekg.Supernet(model, **CHOICES.get(name, {}))
    except EkgError as error:
        return row | {"refused": str(error)}
    row |= {
        "groups": len(supernet.groups),
        "flops": supernet.complexity(supernet.whole()).flops,
        "smallest_rate": supernet.rate(supernet.smallest()),
        "closed": supernet.layout.closed,
        "uncounted": supernet.table.uncounted,
    }
    try:
        testing.check_prunable(model, subnetworks=1, seed=seed, **CHOICES.get(name, {}))
        return row | differences(supernet, seed)
    except EkgError as error:
        return row | {"wrong": str(error)}


def differences(supernet, seed):
    """Returns the differences of a random sub-network, masked, cut out, and cut out and reloaded.

    Each is the largest one of all outputs and examples, as a share of the largest output.
    """
    rng = np.random.default_rng(seed)
    subnetwork = testing.random_subnetwork(supernet, rng)
    inputs = testing.random_inputs(supernet.graph, rng)
    cut = supernet.cut(subnetwork)
    with tempfile.TemporaryDirectory() as folder:
        cut.save(Path(folder) / "model.keras")
        reloaded = keras.models.load_model(Path(folder) / "model.keras", compile=False)
    found, masked = {}, supernet.with_options(testing.PLAIN)
    for training in (False, True):
        with full_float32():
            expected = masked.forward(
                masked.weights(), tf.constant(masked.mask(subnetwork)), inputs, training=training
            )
            for what, model in (("cut", cut), ("reloaded", reloaded)):
                forward = execute.pure_forward(model, testing.PLAIN)
                value = forward(*execute.read_variables(model), inputs, training)[0]
                mode = "training" if training else "inference"
                found[f"{what}_{mode}"] = _difference(expected, value)
    return found


def _difference(expected, value):
    expected, value = np.asarray(expected), np.asarray(value)
    return float(np.abs(expected - value).max() / np.abs(expected).max())


# ---------------------------------------------------------------- the report


def as_cells(row):
    """Returns a row of networks.json as a row of the table."""
    reason = next((row[key] for key in ("not built", "refused", "wrong") if key in row), None)
    if "groups" not in row:
        return (row["network"], *["–"] * 5, reason.partition(";")[0])
    errors = []
    for names in COMPARED:
        values = [row[name] for name in names if name in row]
        errors.append(f"{max(values):.0e}" if values else "–")
    closed = len(row["closed"]) - 1  # the classifier's outputs are the network's
    rate = f"{row['smallest_rate']:.4f}"
    return (row["network"], row["groups"], rate, *errors, reason or closed or "")


def main(args):
    """Examines the networks; writes and returns the rows."""
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / ROWS
    rows = files.read_json(path) if path.exists() else {}
    if not args.table:
        install(args.out)
        for name in args.only or BACKBONES:
            rows[name] = examine(name, args.seed)
            logger.info("%s", as_cells(rows[name]))
            files.write_json(path, rows)
            keras.backend.clear_session()
    ordered = [rows[name] for name in BACKBONES if name in rows]
    common.print_table(HEAD, [as_cells(row) for row in ordered])
    return ordered


if __name__ == "__main__":
    utils.run_script(main, parse_args)
