"""The GPT that every end-to-end peer trains, and the text it is fed.

The architecture is that of examples/gpt: byte tokens, learned positions,
pre-norm blocks, tanh GELU, an untied head, cross entropy in fp32. What differs
between peers is only who holds parameters and state.

torch multiplies 16-bit matrices in plain loops on a CPU without 16-bit
instructions, which would drown everything else. `use_products("wide")` gives
the peers products of operands that were widened to fp32, the result rounded
once, as engine/layers has them with STOWAGE_WIDE_PRODUCTS=panels. A comparison
has the same products on both sides, or says that it has not.
"""

import dataclasses
import random

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 256  # bytes


def cpu_has_16_bit_products() -> bool:
    with open("/proc/cpuinfo") as f:
        return " avx512_bf16" in f.read()


_wide = False


def use_products(which: str) -> str:
    """`torch`, `wide`, or `auto` (wide where the CPU lacks them). Returns the choice."""
    global _wide
    _wide = which == "wide" or (which == "auto" and not cpu_has_16_bit_products())
    return "wide" if _wide else "torch"


class WideProduct(torch.autograd.Function):
    @staticmethod
    def forward(context, x, weight, bias):
        rows = x.reshape(-1, x.shape[-1]).float()
        if bias is None:
            y = rows @ weight.float().t()
        else:
            y = torch.addmm(bias.float(), rows, weight.float().t())
        context.save_for_backward(x, weight)
        context.has_bias = bias is not None
        return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(context, gradient):
        x, weight = context.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]).float()
        d_weight = (rows.t() @ x.reshape(-1, x.shape[-1]).float()).to(x.dtype)
        d_x = (rows @ weight.float()).to(x.dtype).view(x.shape)
        d_bias = rows.sum(0).to(x.dtype) if context.has_bias else None
        return d_x, d_weight, d_bias


class Linear(nn.Linear):
    def forward(self, x):
        if _wide and x.dtype != torch.float32:
            return WideProduct.apply(x, self.weight, self.bias)
        return super().forward(x)


def causal_attention(q, k, v):
    if _wide and q.dtype != torch.float32:
        a = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
        return a.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    context: int


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.norm_1 = nn.LayerNorm(shape.width)
        self.qkv = Linear(shape.width, 3 * shape.width)
        self.proj = Linear(shape.width, shape.width)
        self.norm_2 = nn.LayerNorm(shape.width)
        self.fc = Linear(shape.width, 4 * shape.width)
        self.out = Linear(4 * shape.width, shape.width)

    def forward(self, x_BTC):
        B, T, C = x_BTC.shape
        q, k, v = self.qkv(self.norm_1(x_BTC)).split(C, dim=2)
        q, k, v = (t.view(B, T, self.heads, C // self.heads).transpose(1, 2) for t in (q, k, v))
        a = causal_attention(q, k, v)
        x_BTC = x_BTC + self.proj(a.transpose(1, 2).reshape(B, T, C))
        return x_BTC + self.out(F.gelu(self.fc(self.norm_2(x_BTC)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens_BT, targets_BT):
        positions_T = torch.arange(tokens_BT.shape[1])
        x_BTC = self.token(tokens_BT) + self.position(positions_T)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        logits_BTV = self.head(self.norm(x_BTC))
        return F.cross_entropy(logits_BTV.float().view(-1, VOCABULARY), targets_BT.reshape(-1))


def parameter_count(model) -> int:
    """Counts parameters, also where ZeRO-3 has taken their storage away."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())


class Windows:
    """Windows of a text, a function of seed and global sample index alone."""

    def __init__(self, path: str, context: int, seed: int):
        with open(path, "rb") as f:
            text = f.read()
        if len(text) < context + 1:
            raise SystemExit(f"{path}: {len(text)} bytes, one window needs {context + 1}")
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.context = context
        self.seed = seed

    def batch(self, first_sample: int, count: int):
        rows = []
        for sample in range(first_sample, first_sample + count):
            start = random.Random(self.seed * 1_000_003 + sample).randrange(
                len(self.text) - self.context)
            rows.append(self.text[start:start + self.context + 1].long())
        window = torch.stack(rows)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()
