"""Small networks of every common architecture, with the exact order of the symmetry group of each.

ARCHITECTURES maps a name to an Architecture: a factory of the module, a function batch size -> example inputs, and
the order. `build(name)` gives a module in float64 and eval mode with random parameters and random batch-norm
statistics, and inputs for it; `spec_of(name)` its spec. Sizes are pairwise distinct where the architecture allows it.
In the formulas n! is written F(n).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import factorial as F

import torch
import torch.nn.functional as fn
from torch import nn

import fxrebasin as fxr


@dataclass(frozen=True)
class Architecture:
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple]
    order: int


ARCHITECTURES: dict[str, Architecture] = {}
HEAVY = ("resnet18",)  # left out where every group or many seeds are tried


def register(name: str, make: Callable[[], nn.Module], inputs: Callable[[int], tuple], order: int) -> None:
    ARCHITECTURES[name] = Architecture(make, inputs, order)


def build(name: str, seed: int = 0, batch: int = 3) -> tuple[nn.Module, tuple]:
    """The module with random state, float64, eval mode; and its inputs."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(zlib.crc32(name.encode()) + seed)
        module = ARCHITECTURES[name].make().double().eval()
        randomise(module)
        inputs = tuple(x.double() if x.is_floating_point() else x for x in ARCHITECTURES[name].inputs(batch))
    return module, inputs


def randomise(module: nn.Module) -> None:
    """Weights that keep signals of size one, so that softmaxes and activations are far from saturation."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim < 2:
                tensor.normal_(1.0 if key.endswith("weight") else 0.0, 0.3)
            else:
                tensor.normal_(0.0, tensor[0].numel() ** -0.5)


@cache
def spec_of(name: str) -> fxr.Spec:
    return fxr.infer(*build(name))


def state_of(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return build(name, seed)[0].state_dict()


def images(channels: int, size: int) -> Callable[[int], tuple]:
    return lambda batch: (torch.randn(batch, channels, size, size),)


def vectors(*shape: int) -> Callable[[int], tuple]:
    return lambda batch: (torch.randn(batch, *shape),)


def tokens(vocabulary: int, length: int) -> Callable[[int], tuple]:
    return lambda batch: (torch.randint(0, vocabulary, (batch, length)),)


# == feed-forward and convolutional ==========================================================================


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


register("mlp", lambda: mlp(10, 32, 48, 5), vectors(10), F(32) * F(48))


def lenet() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))


register("lenet", lenet, images(1, 28), F(6) * F(16) * F(120) * F(84))


class VGG(nn.Module):
    """Batch norm, adaptive pooling, flatten, dropout, as in torchvision's vgg11_bn."""

    def __init__(self):
        super().__init__()
        layers, width = [], 3
        for out in (8, "M", 12, 14, "M"):
            if out == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                width = out
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(nn.Linear(14 * 4, 20), nn.ReLU(True), nn.Dropout(), nn.Linear(20, 7))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


register("vgg", VGG, images(3, 16), F(8) * F(12) * F(14) * F(20))


class BasicBlock(nn.Module):
    def __init__(self, planes_in: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or planes_in != planes:
            self.downsample = nn.Sequential(nn.Conv2d(planes_in, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet with basic blocks, two a stage, and the parameter names of torchvision's."""

    def __init__(self, *widths: int, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.depth = len(widths)
        for k, (before, width) in enumerate(zip((widths[0], *widths), widths)):
            stage = nn.Sequential(BasicBlock(before, width, 2 if k else 1), BasicBlock(width, width, 1))
            self.add_module(f"layer{k + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for k in range(self.depth):
            x = getattr(self, f"layer{k + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


register("resnet_small", lambda: ResNet(6, 8, classes=5), images(3, 32), F(6) ** 3 * F(8) ** 3)
register("resnet18", lambda: ResNet(64, 128, 256, 512, classes=10), images(3, 64),
         F(64) ** 3 * F(128) ** 3 * F(256) ** 3 * F(512) ** 3)


class ResNeXtBlock(nn.Module):
    """Grouped convolution of g groups, a channels in and b channels out of each, on a pinned stream."""

    def __init__(self, channels: int = 5, g: int = 3, a: int = 4, b: int = 2):
        super().__init__()
        self.reduce = nn.Conv2d(channels, g * a, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(g * a)
        self.grouped = nn.Conv2d(g * a, g * b, 3, padding=1, groups=g, bias=False)
        self.bn2 = nn.BatchNorm2d(g * b)
        self.widen = nn.Conv2d(g * b, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x):
        out = fn.relu(self.bn1(self.reduce(x)))
        out = fn.relu(self.bn2(self.grouped(out)))
        return fn.relu(x + self.bn3(self.widen(out)))


register("resnext_block", ResNeXtBlock, images(5, 6), F(3) * F(4) ** 3 * F(2) ** 3)


class GroupNormResNet(nn.Module):
    """A residual stream of 12 channels under GroupNorm(3, 12); one block with an interior of 5."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(3, 12), nn.Conv2d(12, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 12, 3, padding=1)
        self.norm2, self.head = nn.GroupNorm(3, 12), nn.Linear(12, 7)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv2(fn.silu(self.conv1(fn.silu(self.norm1(x)))))
        return self.head(self.norm2(x).mean((2, 3)))


register("group_norm_stream", GroupNormResNet, images(2, 8), F(3) * F(4) ** 3 * F(5))


class GLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(7, 2 * 9), nn.Linear(9, 4)

    def forward(self, x):
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(a * torch.sigmoid(b))


register("glu", GLU, vectors(7), F(9))


class Viewed(nn.Module):
    """An elementwise chain seen as 3 x 4: nothing holds one part without the other, so all of 12! is left."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.fc2(fn.gelu(self.fc1(x).view(-1, 3, 4)).flatten(1))


register("merged_factors", Viewed, vectors(5), F(12))


# == recurrent ===============================================================================================


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options):
        super().__init__()
        self.rnn = kind(4, 6, **options)
        self.out = nn.Linear(12 if options.get("bidirectional") else 6, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def sequences(batch: int) -> tuple:
    return (torch.randn(5, batch, 4),)


register("lstm", lambda: Recurrent(nn.LSTM), sequences, F(6))
register("lstm_two_layers", lambda: Recurrent(nn.LSTM, num_layers=2), sequences, F(6) ** 2)
register("lstm_bidirectional", lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), sequences, F(6) ** 4)
register("gru", lambda: Recurrent(nn.GRU), sequences, F(6))
register("gru_two_layers", lambda: Recurrent(nn.GRU, num_layers=2), sequences, F(6) ** 2)


# == attention ===============================================================================================


def attention_order(heads: int, units: int) -> int:
    """Heads, query/key units in each head, value/output units in each head."""
    return F(heads) * F(units) ** heads * F(units) ** heads


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on a pinned stream."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


register("multihead_attention", SelfAttention, vectors(5, 12), attention_order(3, 4))


class Encoder(nn.Module):
    """nn.TransformerEncoder between two linear layers."""

    def __init__(self, **options):
        super().__init__()
        self.embed = nn.Linear(7, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 20, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)))


ENCODER = F(12) * (F(20) * attention_order(3, 4)) ** 2
for _norm in ("pre", "post"):
    for _first in ("batch", "sequence"):
        register(f"encoder_{_norm}_norm_{_first}_first",
                 lambda n=_norm, f=_first: Encoder(norm_first=n == "pre", batch_first=f == "batch"), vectors(5, 7), ENCODER)


class EncoderDecoder(nn.Module):
    """nn.Transformer: two streams, and cross attention whose packed weight reads both."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Linear(5, 12), nn.Linear(7, 12)
        self.transformer = nn.Transformer(12, 3, 1, 1, 20, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, source, target):
        return self.head(self.transformer(self.source(source), self.target(target)))


register("encoder_decoder", EncoderDecoder, lambda batch: (torch.randn(batch, 6, 5), torch.randn(batch, 4, 7)),
         F(12) ** 2 * F(20) ** 2 * attention_order(3, 4) ** 3)


class Attention(nn.Module):
    """Timm-style (fused) or with separate projections; optionally with a q-norm and a k-norm shared by the heads."""

    def __init__(self, d: int, heads: int, fused: bool, norm: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(d, 3 * d)
        else:
            self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.q_norm = nn.LayerNorm(d // heads) if norm else nn.Identity()
        self.k_norm = nn.LayerNorm(d // heads) if norm else nn.Identity()
        self.proj = nn.Linear(d, d)

    def forward(self, x):
        b, n, d = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (part(x).view(b, n, self.heads, d // self.heads).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = fn.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    def __init__(self, d: int, heads: int, m: int, fused: bool, norm: bool):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(d), Attention(d, heads, fused, norm)
        self.norm2, self.mlp = nn.LayerNorm(d), nn.Sequential(nn.Linear(d, m), nn.GELU(), nn.Linear(m, d))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token, position table, optionally register tokens that are dropped at the end."""

    def __init__(self, d: int = 12, depth: int = 2, heads: int = 3, m: int = 20, fused: bool = True, norm: bool = False,
                 registers: int = 0):
        super().__init__()
        self.patch_embed = nn.Conv2d(1, d, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 10, d))
        self.reg_token = nn.Parameter(torch.zeros(1, registers, d)) if registers else None
        self.blocks = nn.ModuleList(Block(d, heads, m, fused, norm) for _ in range(depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 7)

    def features(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        if self.reg_token is not None:
            x = torch.cat([x[:, :1], self.reg_token.expand(x.shape[0], -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, x):
        return self.head(self.features(x))


VIT = F(12) * (F(20) * attention_order(3, 4)) ** 2
register("vit_fused", ViT, images(1, 12), VIT)
register("vit_separate", lambda: ViT(fused=False), images(1, 12), VIT)
register("vit_query_norm", lambda: ViT(norm=True), images(1, 12), F(12) * (F(20) * F(3) * F(4) * F(4) ** 3) ** 2)
register("vit_query_norm_separate", lambda: ViT(norm=True, fused=False), images(1, 12),
         F(12) * (F(20) * F(3) * F(4) * F(4) ** 3) ** 2)
register("vit_registers", lambda: ViT(registers=5), images(1, 12), VIT * F(5))


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), by addmm."""

    def __init__(self, out: int, d: int):
        super().__init__()
        self.out = out
        self.weight, self.bias = nn.Parameter(torch.zeros(d, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.out)


class GPT2Block(nn.Module):
    def __init__(self, d: int, heads: int, m: int, linear: Callable[[int, int], nn.Module]):
        super().__init__()
        self.d, self.heads = d, heads
        self.ln_1, self.c_attn, self.c_proj = nn.LayerNorm(d), linear(d, 3 * d), linear(d, d)
        self.ln_2, self.c_fc, self.out = nn.LayerNorm(d), linear(d, m), linear(m, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (part.view(b, n, self.heads, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(d, dim=2))
        mixed = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.out(fn.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """The head is tied to the token embedding."""

    def __init__(self, linear: Callable[[int, int], nn.Module], d: int = 12, heads: int = 3, m: int = 20):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, d), nn.Embedding(8, d)
        self.h = nn.ModuleList(GPT2Block(d, heads, m, linear) for _ in range(2))
        self.ln_f = nn.LayerNorm(d)
        self.lm_head = nn.Linear(d, 11, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


register("gpt2", lambda: GPT2(nn.Linear), tokens(11, 6), VIT)
register("gpt2_conv1d", lambda: GPT2(lambda a, b: Conv1D(b, a)), tokens(11, 6), VIT)


def rotate(x: torch.Tensor, units: int) -> torch.Tensor:
    """Rotary embedding of the first `units` of the last dimension; x is (batch, heads, length, units)."""
    turned, passed = x[..., :units], x[..., units:]
    rates = 1.0 / (10.0 ** (torch.arange(0, units, 2, device=x.device) / units))
    angles = torch.outer(torch.arange(x.shape[2], device=x.device), rates)
    angles = torch.cat([angles, angles], -1).to(x.dtype)
    one, two = turned.chunk(2, -1)
    turned = turned * angles.cos() + torch.cat([-two, one], -1) * angles.sin()
    return torch.cat([turned, passed], -1)


class LlamaBlock(nn.Module):
    def __init__(self, d: int, kv: int, queries: int, units: int, ff: int):
        super().__init__()
        self.kv, self.queries, self.units = kv, queries, units
        self.input_layernorm = nn.RMSNorm(d)
        self.q_proj = nn.Linear(d, kv * queries * units, bias=False)
        self.k_proj, self.v_proj = nn.Linear(d, kv * units, bias=False), nn.Linear(d, kv * units, bias=False)
        self.o_proj = nn.Linear(kv * queries * units, d, bias=False)
        self.post_attention_layernorm = nn.RMSNorm(d)
        self.gate_proj, self.up_proj = nn.Linear(d, ff, bias=False), nn.Linear(d, ff, bias=False)
        self.down_proj = nn.Linear(ff, d, bias=False)

    def forward(self, x):
        b, n, _ = x.shape
        h = self.input_layernorm(x)
        q, k, v = (part(h).view(b, n, -1, self.units).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, self.units), rotate(k, self.units)
        k, v = (t[:, :, None].expand(b, self.kv, self.queries, n, self.units).reshape(b, -1, n, self.units) for t in (k, v))
        mixed = fn.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(b, n, -1))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(fn.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(nn.Module):
    def __init__(self, d: int = 10, kv: int = 2, queries: int = 3, units: int = 4, ff: int = 14):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, d)
        self.layers = nn.ModuleList(LlamaBlock(d, kv, queries, units, ff) for _ in range(2))
        self.norm, self.lm_head = nn.RMSNorm(d), nn.Linear(d, 11, bias=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


register("llama", Llama, tokens(11, 6), F(10) * (F(14) * F(2) * F(3) ** 2 * F(4) ** 2) ** 2)


class NeoXBlock(nn.Module):
    """The fused axis is (heads, 3, units); rotary on the first `turned` units; attention and MLP in parallel."""

    def __init__(self, d: int, heads: int, units: int, turned: int, m: int):
        super().__init__()
        self.heads, self.units, self.turned = heads, units, turned
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.query_key_value, self.dense = nn.Linear(d, heads * 3 * units), nn.Linear(heads * units, d)
        self.up, self.down = nn.Linear(d, m), nn.Linear(m, d)

    def forward(self, x):
        b, n, _ = x.shape
        qkv = self.query_key_value(self.norm1(x)).view(b, n, self.heads, 3 * self.units).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = fn.scaled_dot_product_attention(rotate(q, self.turned), rotate(k, self.turned), v, is_causal=True)
        mixed = self.dense(mixed.transpose(1, 2).reshape(b, n, -1))
        return x + mixed + self.down(fn.gelu(self.up(self.norm2(x))))


class NeoX(nn.Module):
    def __init__(self, d: int = 10, heads: int = 3, units: int = 5, turned: int = 2, m: int = 14):
        super().__init__()
        self.embed_in = nn.Embedding(11, d)
        self.layers = nn.ModuleList(NeoXBlock(d, heads, units, turned, m) for _ in range(2))
        self.final_layer_norm, self.embed_out = nn.LayerNorm(d), nn.Linear(d, 11, bias=False)

    def forward(self, ids):
        x = self.embed_in(ids)
        for layer in self.layers:
            x = layer(x)
        return self.embed_out(self.final_layer_norm(x))


register("neox", NeoX, tokens(11, 6), F(10) * (F(14) * F(3) * F(5 - 2) ** 3 * F(5) ** 3) ** 2)


# == experts =================================================================================================


class Experts(nn.Module):
    """Packed experts under dense routing, on a pinned stream."""

    def __init__(self, experts: int = 4, d: int = 6, hidden: int = 5):
        super().__init__()
        self.gate = nn.Linear(d, experts)
        self.w1, self.b1 = nn.Parameter(torch.zeros(experts, hidden, d)), nn.Parameter(torch.zeros(experts, hidden))
        self.w2 = nn.Parameter(torch.zeros(experts, d, hidden))

    def forward(self, x):
        weight = self.gate(x).softmax(-1)
        hidden = fn.gelu(torch.einsum("bd,efd->bef", x, self.w1) + self.b1)
        return x + torch.einsum("be,bef,edf->bd", weight, hidden, self.w2)


register("experts", Experts, vectors(6), F(4) * F(5) ** 4)


class AttentionExperts(nn.Module):
    """Each expert is an attention of its own: units within heads within experts."""

    def __init__(self, experts: int = 2, heads: int = 2, units: int = 3, d: int = 5):
        super().__init__()
        self.shape = (experts, heads, units)
        self.gate = nn.Linear(d, experts)
        self.q, self.k, self.v = (nn.Parameter(torch.zeros(experts, heads, units, d)) for _ in range(3))
        self.out = nn.Parameter(torch.zeros(experts, d, heads, units))

    def forward(self, x):
        weight = self.gate(x).softmax(-1)
        q, k, v = (torch.einsum("bnd,ehkd->behnk", x, w) for w in (self.q, self.k, self.v))
        mixed = fn.scaled_dot_product_attention(q, k, v)
        return x + torch.einsum("bne,behnk,edhk->bnd", weight, mixed, self.out)


register("attention_experts", AttentionExperts, vectors(4, 5), F(2) * (F(2) * F(3) ** 2 * F(3) ** 2) ** 2)

NAMES = tuple(ARCHITECTURES)
LIGHT = tuple(name for name in NAMES if name not in HEAVY)
NESTED = ("vit_fused", "vit_query_norm", "vit_registers", "llama", "neox", "resnext_block", "group_norm_stream",
          "experts", "attention_experts", "merged_factors", "gpt2", "encoder_decoder")
