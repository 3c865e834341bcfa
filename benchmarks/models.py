"""Whole models: the ALiBiTransformer as users train and run it, and one layer beside its parts.

A training step is the forward, a mean squared loss and the gradients of the input and of every
weight; no optimizer step, which is the same for all. Dropout is off, so that results compare. One
layer beside its parts has no loss, as its parts have none: the gradient of its output is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from cases import FORWARD, TRAINING, Case
from providers import SETTLING_CALLS, Arrays, Prepared, Provider, finished, in_graph
from truth_model import INPUT_GRADIENT, gradient_of


@dataclass(frozen=True)
class ModelCase(Case):
    """A model of `layers` layers on `batch` sequences of `queries` tokens; its width is heads *
    head_dim.
    """

    layers: int = 6
    expansion: int = 1

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        return self.batch * self.queries

    @property
    def name(self) -> str:
        return (
            f"model-{self.mode}-l{self.layers}w{self.width}x{self.expansion}h{self.heads}"
            f"b{self.batch}s{self.queries}"
        )

    @property
    def scale(self) -> float:
        """The model's default: 1 / sqrt(d_model)."""
        return float(self.width) ** -0.5

    @property
    def flops(self) -> float:
        """Attention as in Case, and the dense layers: one product forward, three with the backward.

        Norms, activations and residuals are not counted.
        """
        return self.layers * (self.dense_flops + super().flops)

    @property
    def dense_flops(self) -> float:
        """Of one layer: the fused projection and the two of the feed-forward block."""
        weights = self.width * self.width * (3 + 2 * self.expansion)
        return 2.0 * (3 if self.mode == TRAINING else 1) * self.tokens * weights

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter under the name it has in ALiBiTransformer."""
        width, hidden = self.width, self.width * self.expansion
        layer = {
            "attn_norm.gamma": (width,),
            "attn_norm.beta": (width,),
            "attn.kqv.weight": (3 * width, width),
            "ffn_norm.gamma": (width,),
            "ffn_norm.beta": (width,),
            "ffn.fc1.weight": (hidden, width),
            "ffn.fc1.bias": (hidden,),
            "ffn.fc2.weight": (width, hidden),
            "ffn.fc2.bias": (width,),
        }
        return {f"layers.{i}.{n}": s for i in range(self.layers) for n, s in layer.items()}

    def inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """x and target [B, S, width], and the weights: gammas about 1, biases about 0, every layer
        of the size of its input.
        """
        rng = np.random.default_rng(seed)

        def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
            values = rng.standard_normal(shape, dtype=np.float32)
            if len(shape) == 2:
                return values * np.float32(shape[1] ** -0.5)
            return values * np.float32(0.1) + np.float32(name.endswith("gamma"))

        tokens = (self.batch, self.queries, self.width)
        arrays = {n: rng.standard_normal(tokens, dtype=np.float32) for n in ("x", "target")}
        return arrays | {n: draw(n, s) for n, s in self.weight_shapes().items()}


def _both(*shape: int, **sizes: int) -> list[Case]:
    batch, heads, length, head_dim = shape
    return [
        ModelCase(mode, batch, heads, length, length, head_dim, **sizes)
        for mode in (TRAINING, FORWARD)
    ]


# The default ALiBiConfig with a batch of 8 at its max_len, and a model of the size of GPT-2 small.
CASES = _both(8, 8, 256, 32, layers=6) + _both(1, 12, 1024, 64, layers=12, expansion=4)
LAYER_CASES: list[Case] = [replace(case, layers=1) for case in CASES if isinstance(case, ModelCase)]


def _transformer(case: Case, inputs: Arrays, fused: bool) -> Any:
    import mindspore as ms

    from alibi import ALiBiConfig, ALiBiTransformer

    assert isinstance(case, ModelCase)
    ms.set_device("CPU")
    config = ALiBiConfig(
        num_layers=case.layers,
        d_model=case.width,
        num_heads=case.heads,
        dropout=0.0,
        causal=case.causal,
        expansion_factor=case.expansion,
        fused=fused,
    )
    model = ALiBiTransformer(config)
    for name, parameter in model.parameters_and_names():
        parameter.set_data(ms.Tensor(inputs[name]))
    model.set_train(case.mode == TRAINING)
    return model


Compile = Callable[[Callable[..., Any]], Callable[..., Any]]


def under_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    import mindspore as ms

    return ms.jit(function)


def _mindspore(
    case: Case, inputs: Arrays, *, fused: bool, compiled: Compile | None, given: bool = False
) -> Prepared:
    """The model; a training step with given=True starts from the gradient of the output."""
    import mindspore as ms

    model = _transformer(case, inputs, fused)
    x, target = ms.Tensor(inputs["x"]), ms.Tensor(inputs["target"])
    weights = model.trainable_params()

    def loss(x: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
        out = model(x)
        difference = out - target
        return (difference * difference).mean(), out

    def inference(x: ms.Tensor) -> ms.Tensor:
        return model(x)

    call: Callable[..., Any] = inference
    arguments: tuple[Any, ...] = (x,)
    if case.mode == TRAINING and given:
        difference = model(x) - target
        arguments = (x, difference * (2 / difference.size))
        call = _from_gradient(inference, weights)
    elif case.mode == TRAINING:
        call = ms.value_and_grad(loss, 0, weights=weights, has_aux=True)
    if compiled:
        call = compiled(call)

    def run() -> Any:
        return finished(call(*arguments))

    def outputs() -> Arrays:
        if case.mode != TRAINING:
            return {"out": run().asnumpy()}
        (*_, out), (dx, gradients) = run()
        arrays = {"out": out.asnumpy(), INPUT_GRADIENT: dx.asnumpy()}
        return arrays | {
            gradient_of(w.name): g.asnumpy() for w, g in zip(weights, gradients, strict=True)
        }

    return Prepared(run, outputs)


def _from_gradient(forward: Callable[..., Any], weights: list[Any]) -> Callable[..., Any]:
    """Of x and the gradient of forward(x): forward(x), and the gradients of x and the weights."""
    import mindspore as ms

    options = {"get_all": True, "get_by_list": True, "sens_param": True}
    gradient = ms.ops.GradOperation(**options)(forward, ms.ParameterTuple(weights))

    def training(x: ms.Tensor, dout: ms.Tensor) -> Any:
        out = forward(x)  # first: the other way round MindSpore finds a cycle in the graph
        (dx,), gradients = gradient(x, dout)
        return (out,), (dx, gradients)

    return training


def _products(case: Case, inputs: Arrays) -> Prepared:
    """The dense layers of layer 0 alone, on inputs that are ready, in a graph."""
    import mindspore as ms

    assert isinstance(case, ModelCase)
    layer = _transformer(replace(case, layers=1), inputs, fused=True).layers[0]
    hidden_product = ms.nn.Dense(case.width, case.width * case.expansion)  # fc1 without its GELU
    rng = np.random.default_rng(1)

    def draw(times: int) -> ms.Tensor:
        shape = (case.batch, case.queries, case.width * times)
        return ms.Tensor(rng.standard_normal(shape, dtype=np.float32))

    x, hidden = draw(1), draw(case.expansion)
    sensitivities = (draw(3), draw(case.expansion), draw(1))
    dense = (layer.attn.kqv, hidden_product, layer.ffn.fc2)
    weights = [p for cell in dense for p in cell.trainable_params()]

    def forward(x: ms.Tensor, y: ms.Tensor, hidden: ms.Tensor) -> tuple[ms.Tensor, ...]:
        return dense[0](x), dense[1](y), dense[2](hidden)

    gradient = ms.ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
    with_backward = gradient(forward, ms.ParameterTuple(weights))

    def training(x: ms.Tensor, y: ms.Tensor, hidden: ms.Tensor) -> Any:
        return forward(x, y, hidden), with_backward(x, y, hidden, sensitivities)

    call = in_graph(training if case.mode == TRAINING else forward)

    return Prepared(lambda: finished(call(x, x, hidden)), dict)


def _attention(case: Case, inputs: Arrays) -> Prepared:
    """The attention kernel of one layer alone, on a packed projection that is ready."""
    import layouts

    attention = Case(**{n: v for n, v in asdict(case).items() if n not in ("layers", "expansion")})
    return layouts.packed(attention, attention.inputs(), prune=True)


def _row(
    name: str,
    kind: str,
    note: str,
    *,
    fused: bool = True,
    compiled: Compile | None = in_graph,
    given: bool = False,
) -> Provider:
    prepare = partial(_mindspore, fused=fused, compiled=compiled, given=given)
    settling_calls = SETTLING_CALLS if compiled else 0
    return Provider(name, kind, "mindspore", prepare, lambda case: [], note, settling_calls)


FUSED = "ALiBiTransformer, fused (graph)"
LAYER = "ALiBiTransformerLayer, fused (graph)"
LAYER_UNDER_JIT = "ALiBiTransformerLayer, fused (jit)"
PRODUCTS = "its matrix products alone (graph)"
KERNEL = "its attention kernel alone"

LAYER_PROVIDERS = [
    _row(LAYER, "ours", "norms, projection, attention, GELU", given=True),
    _row(LAYER_UNDER_JIT, "ours", "the same function under ms.jit", compiled=under_jit, given=True),
    Provider(
        PRODUCTS, "yardstick", "mindspore", _products, lambda case: [], "nn.Dense", SETTLING_CALLS
    ),
    Provider(
        KERNEL, "yardstick", "alibi_kernels.native", _attention, lambda case: [], "packed, pruned"
    ),
]


def model_providers() -> list[Provider]:
    """Ours, then the peers."""
    import peers_model

    return [
        _row(FUSED, "ours", "dropout off, pruned"),
        _row("ALiBiTransformer, fused (PyNative)", "ours", "dropout off, pruned", compiled=None),
        _row(
            "ALiBiTransformer, pure ops (graph)",
            "reference",
            "dropout off, scores in memory",
            fused=False,
        ),
        *peers_model.PROVIDERS,
    ]
