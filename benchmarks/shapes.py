"""Networks of known shapes with random weights, for benchmarks: nothing is trained, only shapes matter."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A pre-norm transformer block with fused qkv."""

    def __init__(self, d: int, heads: int, hidden: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, hidden), nn.Linear(hidden, d)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Decoder(nn.Module):
    """GPT-2 shapes: tied embedding and head, learned positions."""

    def __init__(self, d: int, heads: int, layers: int, vocabulary: int, positions: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, d), nn.Embedding(positions, d)
        self.blocks = nn.ModuleList(Block(d, heads, 4 * d, causal=True) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ViT(nn.Module):
    def __init__(self, d: int, heads: int, layers: int, patch: int = 16, side: int = 224, classes: int = 1000):
        super().__init__()
        self.patch = nn.Conv2d(3, d, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, d))
        self.blocks = nn.ModuleList(Block(d, heads, 4 * d) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, classes)

    def forward(self, images):
        x = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class LlamaLayer(nn.Module):
    """Llama shapes with rotary embeddings; grouped queries if kv < heads."""

    def __init__(self, d: int, heads: int, kv: int, hidden: int):
        super().__init__()
        self.heads, self.kv, self.k = heads, kv, d // heads
        self.q, self.o = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.key, self.value = (nn.Linear(d, kv * self.k, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(d, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, d, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(d), nn.RMSNorm(d)

    def rotate(self, x):
        angle = torch.outer(torch.arange(x.shape[2]).float(), 1e4 ** (-torch.arange(0, self.k, 2) / self.k))
        cos, sin = (f(torch.cat([angle, angle], -1)).to(x) for f in (torch.cos, torch.sin))
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x):
        b, n, d = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).view(b, n, -1, self.k).transpose(1, 2) for f in (self.q, self.key, self.value))
        mixed = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, n, d))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, d=4096, heads=32, kv=32, hidden=11008, layers=32, vocabulary=32000):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, d)
        self.layers = nn.ModuleList(LlamaLayer(d, heads, kv, hidden) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(d), nn.Linear(d, vocabulary, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def mlp(*sizes: int) -> nn.Module:
    layers = [layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


IDS, IMAGE = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 3, 224, 224)

# name -> (how to make the module, example inputs)
SHAPES = {
    "mlp 784-512-512-512-10": (lambda: mlp(784, 512, 512, 512, 10), torch.zeros(2, 784)),
    "transformer, 4 layers, d=96": (lambda: Decoder(96, 4, 4, 64, 32), IDS),
    "ViT-B/16": (lambda: ViT(768, 12, 12), IMAGE),
    "GPT-2 small": (lambda: Decoder(768, 12, 12, 50257, 1024), IDS),
    "Llama-7B, 4 layers": (lambda: Llama(layers=4), IDS),
    "Llama-7B": (lambda: Llama(), IDS),
}


def build(name: str):
    """The module on the meta device, and example inputs."""
    make, inputs = SHAPES[name]
    with torch.device("meta"):
        return make().eval(), inputs
