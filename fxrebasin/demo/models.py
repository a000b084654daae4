"""The demo's three networks: plain modules, written the way such modules are usually written.

Nothing in here knows that it will be analysed; fxrebasin finds the symmetries by itself.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CLASSES = 28, 10
PIECES, TOKENS = 8000, 32  # of the text encoder: its vocabulary, and how much of a text it sees
EPS = torch.finfo(torch.float32).eps  # said, since what norms take by default depends on the dtype


class MLP(nn.Module):
    """784-512-512-512-10 with ReLU; takes (N, 784), (N, 28, 28) or (N, 1, 28, 28)."""

    def __init__(self, width: int = 512, depth: int = 3) -> None:
        super().__init__()
        sizes = [SIDE * SIDE] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:]))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


class Attention(nn.Module):
    """Self-attention with one fused projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, dim))


class Block(nn.Module):
    """One pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer: 4 x 4 patches give 49 tokens and a class token; no dropout."""

    def __init__(self, dim: int = 128, depth: int = 4, heads: int = 4, ratio: int = 2,
                 patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2 + 1, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Layer(nn.Module):
    """One pre-norm layer of the text encoder: separate projections, ReLU, no biases."""

    def __init__(self, dim: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim, EPS), nn.RMSNorm(dim, EPS)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.wi, self.wo = nn.Linear(dim, inner, bias=False), nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, tokens, dim = x.shape
        y = self.norm1(x)
        q, k, v = (f(y).view(n, tokens, self.heads, dim // self.heads).transpose(1, 2)
                   for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.o(y.transpose(1, 2).reshape(n, tokens, dim))
        return x + self.wo(F.relu(self.wi(self.norm2(x))))


class TextEncoder(nn.Module):
    """A small encoder in the manner of T5 that sorts texts into classes; takes token ids (N, up to 32), 0
    pads."""

    def __init__(self, vocabulary: int = PIECES, dim: int = 64, depth: int = 2, heads: int = 4,
                 inner: int = 256, classes: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.randn(TOKENS, dim) * 0.02)
        self.layers = nn.ModuleList(Layer(dim, heads, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, EPS)
        self.head = nn.Linear(dim, classes, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        held = ids != 0
        x = self.embedding(ids) + self.position[:ids.shape[1]]
        for layer in self.layers:
            x = layer(x, held[:, None, None, :])
        held = held[..., None].to(x.dtype)
        return self.head((self.norm(x) * held).sum(1) / held.sum(1))


MODELS = {"mlp": MLP, "vit": ViT, "text": TextEncoder}


def build(name: str) -> nn.Module:
    """A freshly initialised network ("mlp", "vit" or "text"), in eval mode."""
    return MODELS[name]().eval()


def example_inputs(name: str = "mlp") -> Tensor:
    """Two inputs of the right shape, to capture a network with."""
    return torch.ones(2, TOKENS, dtype=torch.long) if name == "text" else torch.zeros(2, 1, SIDE, SIDE)
