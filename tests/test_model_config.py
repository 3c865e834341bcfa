"""ALiBiConfig: the original's fields and defaults, the paper's preset, and every error text."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from alibi import (
    ALiBiAttention,
    ALiBiConfig,
    ALiBiLanguageModel,
    ALiBiTransformer,
    layers,
    load_original,
)
from alibi.extrapolate import SinusoidalLanguageModel

NAN = float("nan")

# (fields, exception, message after "<owner>: "), for ALiBiConfig and, where it has the argument,
# ALiBiAttention alike.
BAD_ATTENTION = [
    (
        {"d_model": 0},
        ValueError,
        "d_model must be an int of at least 1 (width of the residual stream), but got 0.",
    ),
    (
        {"d_model": 64.0},
        TypeError,
        "d_model must be an int of at least 1 (width of the residual stream), but got 64.0 "
        "of type float.",
    ),
    (
        {"num_heads": True},
        TypeError,
        "num_heads must be an int of at least 1 (attention heads), but got True of type bool.",
    ),
    (
        {"num_heads": -2},
        ValueError,
        "num_heads must be an int of at least 1 (attention heads), but got -2.",
    ),
    (
        {"d_model": 20, "num_heads": 8},
        ValueError,
        "d_model must be a multiple of num_heads, but got d_model=20 and num_heads=8; for this "
        "d_model num_heads can be 1, 2, 4, 5, 10, 20.",
    ),
    (
        {"num_kv_heads": 3},
        ValueError,
        "num_heads must be a multiple of num_kv_heads, but got num_heads=8 and num_kv_heads=3; "
        "for these heads num_kv_heads can be 1, 2, 4, 8.",
    ),
    (
        {"num_kv_heads": 0},
        ValueError,
        "num_kv_heads must be None (as many as num_heads) or an int of at least 1 "
        "(key/value heads), but got 0.",
    ),
    (
        {"dropout": 1.0},
        ValueError,
        "dropout must be a float in [0, 1) (probability of dropping), but got 1.0.",
    ),
    (
        {"dropout": NAN},
        ValueError,
        "dropout must be a float in [0, 1) (probability of dropping), but got nan.",
    ),
    (
        {"dropout": "0.1"},
        TypeError,
        "dropout must be a float in [0, 1) (probability of dropping), but got '0.1' of type str.",
    ),
    (
        {"causal": 1},
        TypeError,
        "causal must be True or False (True for a decoder, False for an encoder), but got 1 "
        "of type int.",
    ),
    (
        {"scale": float("inf")},
        ValueError,
        "scale must be None (1/sqrt(d_model)) or a finite float32 number, but got inf.",
    ),
    (
        {"scale": 1e39},
        ValueError,
        "scale must be None (1/sqrt(d_model)) or a finite float32 number, but got 1e+39.",
    ),
    (
        {"scale": np.bool_(True)},
        TypeError,
        "scale must be None (1/sqrt(d_model)) or a finite float32 number, but got True of type "
        "bool_.",
    ),
    (
        {"d_model": np.float64(64)},
        TypeError,
        "d_model must be an int of at least 1 (width of the residual stream), but got 64.0 "
        "of type float64.",
    ),
    (
        {"num_heads": 2, "slopes": [0.5, 1e39]},
        ValueError,
        'slopes must be "geometric" or "paper", or a sequence of num_heads=2 finite float32 '
        "numbers, but got (0.5, 1e+39).",
    ),
    (
        {"bias": "linear"},
        ValueError,
        'bias must be "symmetric" or "signed", but got \'linear\'.',
    ),
    (
        {"slopes": "alibi"},
        ValueError,
        'slopes must be "geometric" or "paper", or a sequence of num_heads=8 finite float32 '
        'numbers, but got "alibi".',
    ),
    (
        {"slopes": [0.5, 0.25]},
        ValueError,
        'slopes must be "geometric" or "paper", or a sequence of num_heads=8 finite float32 '
        "numbers, but got 2 numbers.",
    ),
    (
        {"slopes": 0.5},
        TypeError,
        'slopes must be "geometric" or "paper", or a sequence of num_heads=8 finite float32 '
        "numbers, but got 0.5.",
    ),
    (
        {"num_heads": 2, "slopes": [0.5, NAN]},
        ValueError,
        'slopes must be "geometric" or "paper", or a sequence of num_heads=2 finite float32 '
        "numbers, but got (0.5, nan).",
    ),
    (
        {"learned_slopes": None},
        TypeError,
        "learned_slopes must be True or False (True trains the slopes), but got None "
        "of type NoneType.",
    ),
    (
        {"fused": "no"},
        TypeError,
        "fused must be True or False (False runs on plain MindSpore operators), but got 'no' "
        "of type str.",
    ),
]
BAD_CONFIG = [
    *BAD_ATTENTION,
    (
        {"num_layers": 0},
        ValueError,
        "num_layers must be an int of at least 1 (transformer layers), but got 0.",
    ),
    (
        {"max_len": None},
        TypeError,
        "max_len must be an int of at least 1 (length the model is trained at), but got None "
        "of type NoneType.",
    ),
    (
        {"expansion_factor": 0},
        ValueError,
        "expansion_factor must be an int of at least 1 (hidden width of the feed-forward block, "
        "in units of d_model), but got 0.",
    ),
]


def test_defaults_are_the_originals() -> None:
    """The seven fields of jaketae/alibi, in its order, with its defaults; positional as there."""
    assert list(dataclasses.asdict(ALiBiConfig()).items())[:7] == [
        ("num_layers", 6),
        ("d_model", 256),
        ("num_heads", 8),
        ("max_len", 256),
        ("dropout", 0.1),
        ("causal", True),
        ("expansion_factor", 1),
    ]
    assert ALiBiConfig(2, 64, 4, 128, 0.0, False, 3) == ALiBiConfig(
        num_layers=2,
        d_model=64,
        num_heads=4,
        max_len=128,
        dropout=0.0,
        causal=False,
        expansion_factor=3,
    )
    further = dataclasses.asdict(ALiBiConfig())
    assert list(further.items())[7:] == [
        ("scale", None),
        ("slopes", "geometric"),
        ("bias", "symmetric"),
        ("num_kv_heads", None),
        ("learned_slopes", False),
        ("fused", True),
    ]


def test_paper() -> None:
    """The paper's choices, each of which the caller can override."""
    config = ALiBiConfig.paper(d_model=96, num_heads=6, dropout=0.0)
    assert (config.slopes, config.expansion_factor, config.dropout) == ("paper", 4, 0.0)
    assert config.scale == pytest.approx(16**-0.5)
    own = ALiBiConfig.paper(scale=0.5, slopes="geometric", expansion_factor=2)
    assert (own.scale, own.slopes, own.expansion_factor) == (0.5, "geometric", 2)


def test_frozen_and_hashable() -> None:
    """A config can be a dictionary key; slopes given as a list become a tuple of floats."""
    config = ALiBiConfig(num_heads=2, slopes=[1, 0.5])
    assert config.slopes == (1.0, 0.5)
    assert config == ALiBiConfig(num_heads=2, slopes=(1.0, 0.5))
    assert len({config, ALiBiConfig(num_heads=2, slopes=(1.0, 0.5)), ALiBiConfig()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_heads = 4  # type: ignore[misc]
    assert dataclasses.replace(config, fused=False).slopes == (1.0, 0.5)


@pytest.mark.parametrize(("fields", "error", "message"), BAD_CONFIG)
def test_bad_config(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        ALiBiConfig(**fields)
    assert str(raised.value) == f"ALiBiConfig: {message}"


@pytest.mark.parametrize(("fields", "error", "message"), BAD_ATTENTION)
def test_bad_attention(fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        ALiBiAttention(**fields)
    assert str(raised.value) == f"ALiBiAttention: {message}"


@pytest.mark.parametrize("make", [ALiBiConfig, ALiBiAttention])
@pytest.mark.parametrize("learned", [False, True])
def test_a_parameter_is_no_fixed_slope(ms: Any, make: Any, learned: bool) -> None:
    """Its values were once copied without a word: it looked trainable and never trained."""
    slopes = ms.Parameter(ms.Tensor([0.5, 0.25]), name="slopes")
    with pytest.raises(TypeError) as raised:
        make(d_model=8, num_heads=2, slopes=slopes, learned_slopes=learned)
    assert str(raised.value) == (
        f'{make.__name__}: slopes must be "geometric" or "paper", or a sequence of num_heads=2 '
        "finite float32 numbers, but got a Parameter, which would not train here; pass its values, "
        "slopes=parameter.asnumpy(), and learned_slopes=True to have the layer train them."
    )
    values = make(d_model=8, num_heads=2, slopes=slopes.asnumpy()).slopes
    assert values == (0.5, 0.25)


# What arrives from arithmetic on arrays, or from a file of hyperparameters read by NumPy.
NUMPY_FIELDS = {
    "d_model": np.int64(32),
    "num_heads": np.int32(4),
    "num_kv_heads": np.uint8(2),
    "dropout": np.float32(0),
    "causal": np.bool_(False),
    "scale": np.float32(0.5),
    "slopes": np.float32([0.5, 0.25, 0.125, 0]),
    "bias": np.str_("signed"),
    "learned_slopes": np.bool_(True),
    "fused": np.bool_(True),
}


def test_numpy_scalars_become_plain() -> None:
    """They were refused, in the words "must be an int ..., but got 32"."""
    config = ALiBiConfig(num_layers=np.int64(1), max_len=np.int16(8), **NUMPY_FIELDS)
    fields = dataclasses.asdict(config)
    assert json.loads(json.dumps(fields)) == {**fields, "slopes": [0.5, 0.25, 0.125, 0.0]}
    assert {type(value) for value in fields.values()} == {int, float, bool, str, tuple}
    assert type(ALiBiConfig(dropout=0).dropout) is float
    assert type(ALiBiLanguageModel(np.int64(7), ALiBiConfig(1, 8, 2)).vocab_size) is int


def test_numpy_scalars_compute_the_same(ms: Any, mode: Any) -> None:
    ours = ALiBiAttention(**NUMPY_FIELDS)
    plain = ALiBiAttention.from_config(ALiBiConfig(**NUMPY_FIELDS))
    plain.kqv.weight.set_data(ours.kqv.weight)
    x = ms.Tensor(np.random.default_rng(0).standard_normal((2, 7, 32), np.float32))
    np.testing.assert_array_equal(mode(ours)(x).asnumpy(), plain(x).asnumpy())


def test_bad_models() -> None:
    makers = {
        "ALiBiTransformer": ALiBiTransformer,
        "ALiBiTransformerLayer": layers.ALiBiTransformerLayer,
        "FeedForward": layers.FeedForward,
        "ALiBiAttention": ALiBiAttention.from_config,
        "ALiBiLanguageModel": lambda config: ALiBiLanguageModel(16, config),
        "SinusoidalLanguageModel": lambda config: SinusoidalLanguageModel(16, config),
        "load_original": lambda config: load_original({}, config=config),
    }
    for name, make in makers.items():
        with pytest.raises(TypeError) as raised:
            make({"num_layers": 2})
        assert str(raised.value) == f"{name}: config must be an ALiBiConfig, but got dict."
    with pytest.raises(ValueError, match="vocab_size must be an int of at least 1"):
        ALiBiLanguageModel(0, ALiBiConfig(num_layers=1, d_model=8))
    message = (
        "ALiBiLanguageModel: config.causal must be True, but got False; a model that sees the "
        "next token cannot learn to predict it."
    )
    with pytest.raises(ValueError, match=message):
        ALiBiLanguageModel(16, ALiBiConfig(num_layers=1, d_model=8, causal=False))
