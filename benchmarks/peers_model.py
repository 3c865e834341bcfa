"""The ALiBiTransformer in plain PyTorch: dense ALiBi mask through scaled_dot_product_attention."""

from __future__ import annotations

from functools import partial
from typing import Any

from cases import TRAINING, Case
from peers_common import dense_bias, forget_compiled
from providers import Arrays, Prepared, Provider
from truth_model import INPUT_GRADIENT, NORM_EPSILON, gradient_of

# What PyTorch calls the parameters of a norm.
_RENAMED = {"gamma": "weight", "beta": "bias"}


def _torch_name(name: str) -> str:
    stem, last = name.rsplit(".", 1)
    return f"{stem}.{_RENAMED.get(last, last)}"


def _layer(case: Any) -> Any:
    import torch
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kqv = nn.Linear(case.width, 3 * case.width, bias=False)

        def forward(self, x: Any, mask: Any) -> Any:
            split = self.kqv(x).view(case.batch, -1, 3, case.heads, case.head_dim)
            k, q, v = split.permute(2, 0, 3, 1, 4).unbind(0)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=case.scale)
            return out.transpose(1, 2).reshape(x.shape)

    class FeedForward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(case.width, case.width * case.expansion)
            self.fc2 = nn.Linear(case.width * case.expansion, case.width)

        def forward(self, x: Any) -> Any:
            return self.fc2(functional.gelu(self.fc1(x)))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn_norm = nn.LayerNorm(case.width, eps=NORM_EPSILON)
            self.attn = Attention()
            self.ffn_norm = nn.LayerNorm(case.width, eps=NORM_EPSILON)
            self.ffn = FeedForward()

        def forward(self, x: Any, mask: torch.Tensor) -> Any:
            x = x + self.attn(self.attn_norm(x), mask)
            return x + self.ffn(self.ffn_norm(x))

    return Layer()


def transformer(case: Any, inputs: Arrays) -> Any:
    """The module, with our weights and the mask of the case's length, built once for all layers."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(_layer(case) for _ in range(case.layers))
            mask = torch.from_numpy(dense_bias(case))
            self.register_buffer("mask", mask, persistent=False)

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x, self.mask)
            return x

    model = Transformer()
    weights = {n: torch.from_numpy(a.copy()) for n, a in inputs.items() if n.startswith("layers.")}
    model.load_state_dict({_torch_name(n): w for n, w in weights.items()})
    return model


def _torch(case: Case, inputs: Arrays, *, compiled: bool) -> Prepared:
    import torch

    torch.set_num_threads(case.threads)
    model = transformer(case, inputs)
    x = torch.from_numpy(inputs["x"]).requires_grad_(case.mode == TRAINING)
    target = torch.from_numpy(inputs["target"])
    call = model
    if compiled:
        forget_compiled(case)
        call = torch.compile(model, dynamic=False)

    def forward() -> Any:
        with torch.no_grad():
            return call(x)

    def training() -> Any:
        out = call(x)
        loss = ((out - target) ** 2).mean()
        return out, torch.autograd.grad(loss, [x, *model.parameters()])

    def outputs() -> Arrays:
        if case.mode != TRAINING:
            return {"out": forward().numpy()}
        out, (dx, *gradients) = training()
        by_name = dict(zip((n for n, _ in model.named_parameters()), gradients, strict=True))
        arrays = {"out": out.detach().numpy(), INPUT_GRADIENT: dx.numpy()}
        return arrays | {
            gradient_of(n): by_name[_torch_name(n)].numpy()
            for n in inputs
            if n.startswith("layers.")
        }

    return Prepared(training if case.mode == TRAINING else forward, outputs)


PROVIDERS = [
    Provider(
        f"torch {name}, SDPA with a mask",
        "peer",
        "torch",
        partial(_torch, compiled=compiled),
        lambda case: [],
        "dense bias, built once for all layers; dropout off",
    )
    for name, compiled in (("eager", False), ("compiled", True))
]
