"""Tiny networks, one for each way in which axes can be related, small enough for exact answers.

NETWORKS maps a name to a factory: factory() -> (module in float64 and eval mode, tuple of inputs). Sizes are
small and, where the architecture allows it, pairwise distinct, so that no two axes agree by accident.

ORDERS maps each name to the order of its symmetry group, derived by hand: the comment beside it says from
what. AXES holds, for the few networks where the two differ, the order of the part that permutes whole axes;
WHOLE, where whole tensors may change places too, the order with that.
In the formulas n! is written F(n).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from math import factorial as F

import torch
import torch.nn.functional as fn
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

Factory = Callable[[], tuple[nn.Module, tuple]]
NETWORKS: dict[str, Factory] = {}
ORDERS: dict[str, int] = {}
AXES: dict[str, int] = {}
WHOLE: dict[str, int] = {}


class Parts(nn.Module):
    """Modules and parameters by name, and a function of them as the forward pass.

    A tuple of sizes among the parts is a parameter of that shape, a tensor is a buffer outside the state.
    """

    def __init__(self, forward: Callable, **parts) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, tuple):
                part = nn.Parameter(torch.zeros(part))
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part, persistent=False)
            else:
                setattr(self, name, part)

    def forward(self, first, second=None):
        return self._forward(self, first) if second is None else self._forward(self, first, second)


def network(order: int, axes: int | None = None, whole: int | None = None) -> Callable[[Callable], Callable]:
    """Registers a factory under its function's name; its state gets values that depend on the name alone."""

    def register(build: Callable) -> Callable:
        def factory():
            seed = zlib.crc32(build.__name__.encode())
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(seed)
                module, inputs = build()
                module = module.double().eval()
                for name, tensor in module.state_dict().items():
                    if tensor.is_floating_point():
                        tensor.copy_(torch.randn_like(tensor) * 0.7)
                        if name.endswith("running_var"):
                            tensor.abs_().add_(0.5)
            return module, inputs

        NETWORKS[build.__name__] = factory
        ORDERS[build.__name__] = order
        if axes is not None:
            AXES[build.__name__] = axes
        if whole is not None:
            WHOLE[build.__name__] = whole
        return build
    return register


def output(module: nn.Module, inputs: tuple) -> torch.Tensor:
    """All numbers that the module gives, in one row."""
    with torch.no_grad():
        answer = module(*inputs)
    return torch.cat([t.flatten() for t in (answer if isinstance(answer, tuple) else (answer,))])


def change(module: nn.Module, inputs: tuple, state: dict[str, torch.Tensor]) -> float:
    """Largest change of the module's outputs when it is given another state; the module keeps that state."""
    before = output(module, inputs)
    module.load_state_dict(state)
    return (output(module, inputs) - before).abs().max().item()


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def tokens(*rows: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(rows)


# == feed-forward and residual ===============================================================================


@network(F(4) * F(5))  # hidden sizes
def mlp():
    def forward(m, x):
        return m.c(torch.relu(m.b(torch.relu(m.a(x)))))
    return Parts(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 5), c=nn.Linear(5, 2)), (x(2, 3),)


@network(F(4) * F(5))
def mlp_without_bias():
    def forward(m, x):
        return m.c(torch.tanh(m.b(torch.tanh(m.a(x)))))
    return Parts(forward, a=nn.Linear(3, 4, bias=False), b=nn.Linear(4, 5, bias=False), c=nn.Linear(5, 2,
                 bias=False)), (x(2, 3),)


@network(F(5) * F(6))  # weights stored (in, out), as GPT-2 does
def mlp_addmm():
    def forward(m, x):
        h = torch.relu(torch.addmm(m.a_bias, x, m.a))
        h = torch.relu(torch.addmm(m.b_bias, h, m.b))
        return h @ m.c
    return Parts(forward, a=(3, 5), a_bias=(5,), b=(5, 6), b_bias=(6,), c=(6, 2)), (x(2, 3),)


@network(F(4) * F(5) * F(6))  # stream, two interiors
def residual_mlp():
    def forward(m, x):
        h = m.stem(x)
        h = h + m.b(torch.relu(m.a(h)))
        h = h + m.d(fn.gelu(m.c(h)))
        return m.head(h)
    return Parts(forward, stem=nn.Linear(3, 4), a=nn.Linear(4, 5), b=nn.Linear(5, 4), c=nn.Linear(4, 6),
                 d=nn.Linear(6, 4), head=nn.Linear(4, 2)), (x(2, 3),)


@network(F(4) * F(5))  # LayerScale gamma lies on the stream
def layer_scale():
    def forward(m, x):
        h = m.stem(x)
        return m.head(h + m.gamma * m.b(fn.gelu(m.a(m.norm(h)))))
    return Parts(forward, stem=nn.Linear(3, 4), norm=nn.LayerNorm(4), a=nn.Linear(4, 5), b=nn.Linear(5, 4),
                 gamma=(4,), head=nn.Linear(4, 2)), (x(2, 3),)


@network(F(4) * F(5))
def rms_norm_by_hand():
    def forward(m, x):
        h = m.stem(x)
        n = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale
        return m.head(h + m.b(fn.silu(m.a(n))))
    return Parts(forward, stem=nn.Linear(3, 4), scale=(4,), a=nn.Linear(4, 5), b=nn.Linear(5, 4),
                 head=nn.Linear(4, 2)), (x(2, 3),)


@network(F(4) * F(5))
def weight_norm_mlp():
    def forward(m, x):
        return m.c(torch.relu(m.b(torch.relu(m.a(x)))))
    return Parts(forward, a=weight_norm(nn.Linear(3, 4)), b=weight_norm(nn.Linear(4, 5), dim=1),
                 c=nn.Linear(5, 2)), (x(2, 3),)


@network(F(5))  # value and gate move together
def glu_chunk():
    def forward(m, x):
        a, b = m.up(x).chunk(2, -1)
        return m.down(a * torch.sigmoid(b))
    return Parts(forward, up=nn.Linear(3, 10), down=nn.Linear(5, 2)), (x(2, 3),)


@network(F(5))
def swiglu_split():
    def forward(m, x):
        gate, value = torch.split(m.up(x), [5, 5], -1)
        return m.down(fn.silu(gate) * value)
    return Parts(forward, up=nn.Linear(3, 10, bias=False), down=nn.Linear(5, 2)), (x(2, 3),)


@network(F(4) * F(6))  # two weights, gate and value
def swiglu_separate():
    def forward(m, x):
        h = m.stem(x)
        return m.head(h + m.down(fn.silu(m.gate(h)) * m.up(h)))
    return Parts(forward, stem=nn.Linear(3, 4), gate=nn.Linear(4, 6), up=nn.Linear(4, 6),
                 down=nn.Linear(6, 4), head=nn.Linear(4, 2)), (x(2, 3),)


@network(F(3) * F(2) ** 3)  # maxout: units, and pieces within each unit
def maxout():
    def forward(m, x):
        return m.head(m.up(x).view(2, 3, 2).amax(-1))
    return Parts(forward, up=nn.Linear(4, 6), head=nn.Linear(3, 5)), (x(2, 4),)


@network(F(5) * 2**5)  # a product does not tell its two factors apart
def glu_bilinear():
    def forward(m, x):
        a, b = m.up(x).chunk(2, -1)
        return m.down(a * b)
    return Parts(forward, up=nn.Linear(3, 10), down=nn.Linear(5, 2)), (x(2, 3),)


@network(F(4) * F(3) ** 4 * F(2) ** 4)  # blocks, and the inputs and outputs of each block
def block_diagonal():
    def forward(m, x):
        h = torch.relu(m.a(x)).view(2, 4, 3)
        h = torch.relu(torch.einsum("bgi,gio->bgo", h, m.w))
        return m.b(h.flatten(1))
    return Parts(forward, a=nn.Linear(5, 12), w=(4, 3, 2), b=nn.Linear(8, 6)), (x(2, 5),)


@network(F(4))  # softmax over the hidden axis, unit length
def softmax_and_unit_length():
    def forward(m, x):
        h = torch.softmax(m.a(x), -1)
        return m.b(fn.normalize(h, dim=-1))
    return Parts(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2)), (x(2, 3),)


# == convolutions ============================================================================================


@network(F(3) * F(2) * F(4))  # a flattened axis is channel x fixed positions
def lenet():
    def forward(m, x):
        x = fn.max_pool2d(torch.relu(m.a(x)), 2)
        x = torch.relu(m.b(x)).flatten(1)
        return m.d(torch.relu(m.c(x)))
    return Parts(forward, a=nn.Conv2d(1, 3, 3), b=nn.Conv2d(3, 2, 1), c=nn.Linear(8, 4),
                 d=nn.Linear(4, 5)), (x(2, 1, 6, 6),)


@network(F(3) * F(4) * F(5))
def vgg():
    def forward(m, x):
        x = fn.max_pool2d(torch.relu(m.b(torch.relu(m.a(x)))), 2)
        x = fn.adaptive_avg_pool2d(torch.relu(m.c(x)), 1).flatten(1)
        return m.head(x)
    return Parts(forward, a=nn.Conv2d(2, 3, 3, padding=1), b=nn.Conv2d(3, 4, 3, padding=1),
                 c=nn.Conv2d(4, 5, 1), head=nn.Linear(5, 6)), (x(1, 2, 4, 4),)


@network(F(3) * F(4))  # stream, interior; batch norms go along
def batch_norm_residual():
    def forward(m, x):
        h = torch.relu(m.n0(m.stem(x)))
        y = m.n2(m.b(torch.relu(m.n1(m.a(h)))))
        return m.head(torch.relu(h + y).mean((2, 3)))
    return Parts(forward, stem=nn.Conv2d(1, 3, 2), n0=nn.BatchNorm2d(3), a=nn.Conv2d(3, 4, 3, padding=1),
                 n1=nn.BatchNorm2d(4), b=nn.Conv2d(4, 3, 1), n2=nn.BatchNorm2d(3),
                 head=nn.Linear(3, 2)), (x(2, 1, 4, 4),)


@network(F(3) * F(3) * F(4))  # stem, interior, second stream
def downsampling_residual():
    def forward(m, x):
        h = torch.relu(m.stem(x))
        h = m.short(h) + m.b(torch.relu(m.a(h)))
        return m.head(h.mean(-1))
    return Parts(forward, stem=nn.Conv1d(2, 3, 1), a=nn.Conv1d(3, 3, 2, stride=2), b=nn.Conv1d(3, 4, 1),
                 short=nn.Conv1d(3, 4, 1, stride=2), head=nn.Linear(4, 5)), (x(2, 2, 4),)


@network(F(3))
def global_max_pooling():
    def forward(m, x):
        return m.head(torch.relu(m.a(x)).amax((2, 3)))
    return Parts(forward, a=nn.Conv2d(1, 3, 2), head=nn.Linear(3, 4)), (x(2, 1, 3, 3),)


@network(F(4) * F(5))
def depthwise():
    def forward(m, x):
        return m.c(torch.relu(m.b(torch.relu(m.dw(torch.relu(m.a(x)))))))
    return Parts(forward, a=nn.Conv1d(2, 4, 1), dw=nn.Conv1d(4, 4, 3, padding=1, groups=4),
                 b=nn.Conv1d(4, 5, 1), c=nn.Conv1d(5, 3, 1)), (x(2, 2, 3),)


@network(F(4) * F(2) ** 4)  # channels, and the two outputs within each
def depthwise_multiplier():
    def forward(m, x):
        return m.b(torch.relu(m.dw(torch.relu(m.a(x)))))
    return Parts(forward, a=nn.Conv1d(2, 4, 1), dw=nn.Conv1d(4, 8, 2, groups=4),
                 b=nn.Conv1d(8, 3, 1)), (x(2, 2, 3),)


@network(F(2) * F(3) ** 2 * F(2) ** 2)  # groups g, inputs and outputs within each group
def grouped_conv():
    def forward(m, x):
        return m.b(torch.relu(m.g(torch.relu(m.a(x)))))
    return Parts(forward, a=nn.Conv1d(1, 6, 1), g=nn.Conv1d(6, 4, 2, groups=2),
                 b=nn.Conv1d(4, 5, 1)), (x(2, 1, 3),)


@network(F(2) * F(2) ** 2 * F(3) ** 2 * F(4))  # ResNeXt: g! a!^g b!^g and the stream
def resnext():
    def forward(m, x):
        h = torch.relu(m.stem(x))
        y = torch.relu(m.n(m.g(torch.relu(m.a(h)))))
        return m.head((h + m.b(y)).mean(-1))
    return Parts(forward, stem=nn.Conv1d(1, 4, 1), a=nn.Conv1d(4, 4, 1),
                 g=nn.Conv1d(4, 6, 3, padding=1, groups=2), n=nn.BatchNorm1d(6), b=nn.Conv1d(6, 4, 1),
                 head=nn.Linear(4, 5)), (x(2, 1, 3),)


@network(F(3) * F(2))
def transposed_conv():
    def forward(m, x):
        return m.c(torch.relu(m.b(torch.relu(m.a(x)))))
    return Parts(forward, a=nn.Conv1d(1, 3, 1),
                 b=nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1),
                 c=nn.Conv1d(2, 4, 1)), (x(2, 1, 3),)


@network(F(2) * F(3) ** 2 * F(2) ** 2)  # as the grouped convolution
def grouped_transposed_conv():
    def forward(m, x):
        return m.b(torch.relu(m.g(torch.relu(m.a(x)))))
    return Parts(forward, a=nn.Conv1d(1, 6, 1), g=nn.ConvTranspose1d(6, 4, 2, groups=2),
                 b=nn.Conv1d(4, 5, 1)), (x(2, 1, 3),)


@network(F(4) * F(3))  # stream channels, squeezed channels
def squeeze_and_excitation():
    def forward(m, x):
        h = torch.relu(m.a(x))
        gate = torch.sigmoid(m.up(torch.relu(m.down(h.mean((2, 3), keepdim=True)))))
        return m.head((h * gate).mean((2, 3)))
    return Parts(forward, a=nn.Conv2d(1, 4, 2), down=nn.Conv2d(4, 3, 1), up=nn.Conv2d(3, 4, 1),
                 head=nn.Linear(4, 5)), (x(2, 1, 3, 3),)


@network(F(3) * F(2) * F(4))  # three parts of a concatenated axis
def densenet():
    def forward(m, x):
        h = m.stem(x)
        h = torch.cat([h, m.a(torch.relu(m.n0(h)))], 1)
        h = torch.cat([h, m.b(torch.relu(m.n1(h)))], 1)
        return m.head(m.n2(h).mean(-1))
    return Parts(forward, stem=nn.Conv1d(1, 3, 1), n0=nn.BatchNorm1d(3), a=nn.Conv1d(3, 2, 3, padding=1),
                 n1=nn.BatchNorm1d(5), b=nn.Conv1d(5, 4, 1), n2=nn.BatchNorm1d(9),
                 head=nn.Linear(9, 6)), (x(2, 1, 3),)


@network(F(3) * F(2) * F(4))  # skip, deep and merged channels
def unet():
    def forward(m, x):
        skip = torch.relu(m.down(x))
        deep = fn.interpolate(torch.relu(m.deep(fn.avg_pool2d(skip, 2))), scale_factor=2, mode="nearest")
        return m.out(torch.relu(m.up(torch.cat([skip, deep], 1))))
    return Parts(forward, down=nn.Conv2d(1, 3, 1), deep=nn.Conv2d(3, 2, 2, padding="same"),
                 up=nn.Conv2d(5, 4, 1), out=nn.Conv2d(4, 1, 1)), (x(1, 1, 4, 4),)


@network(F(3))  # channels move, places in the 2x2 block do not
def pixel_shuffle():
    def forward(m, x):
        return m.b(torch.relu(fn.pixel_shuffle(m.a(x), 2)))
    return Parts(forward, a=nn.Conv2d(1, 12, 2), b=nn.Conv2d(3, 1, 2)), (x(2, 1, 3, 3),)


# Groups are cut one way before the shuffle, the other after it. The six channels between are a grid of 2
# groups by 3: rows and columns move as wholes. Each group of g also has its two inputs, each group of h its
# three outputs.
@network(F(2) * F(3) * F(2) ** 2 * F(3) ** 3)
def channel_shuffle():
    def forward(m, x):
        y = torch.relu(m.g(torch.relu(m.a(x))))
        y = y.view(2, 2, 3, 2).transpose(1, 2).flatten(1, 2)
        return m.b(torch.relu(m.h(y)))
    return Parts(forward, a=nn.Conv1d(1, 4, 1), g=nn.Conv1d(4, 6, 1, groups=2),
                 h=nn.Conv1d(6, 9, 1, groups=3), b=nn.Conv1d(9, 1, 1)), (x(2, 1, 2),)


@network(F(3) * F(4))  # depthwise, channels last, layer norm, MLP
def convnext():
    def forward(m, x):
        h = m.stem(x)
        y = m.norm(m.dw(h).permute(0, 2, 3, 1))
        y = (m.gamma * m.b(fn.gelu(m.a(y)))).permute(0, 3, 1, 2)
        return m.head((h + y).mean((-2, -1)))
    return Parts(forward, stem=nn.Conv2d(1, 3, 1), dw=nn.Conv2d(3, 3, 3, padding=1, groups=3),
                 norm=nn.LayerNorm(3), a=nn.Linear(3, 4), b=nn.Linear(4, 3), gamma=(3,),
                 head=nn.Linear(3, 5)), (x(1, 1, 3, 3),)


@network(F(4) * F(3))  # gated, then depthwise with batch norm
def conformer_convolution():
    def forward(m, x):
        h = m.stem(x)
        y = fn.glu(m.a(h), 1)
        y = fn.silu(m.norm(m.dw(y)))
        return m.head((h + m.b(y)).mean(-1))
    return Parts(forward, stem=nn.Conv1d(2, 4, 1), a=nn.Conv1d(4, 6, 1),
                 dw=nn.Conv1d(3, 3, 3, padding=1, groups=3), norm=nn.BatchNorm1d(3), b=nn.Conv1d(3, 4, 1),
                 head=nn.Linear(4, 5)), (x(2, 2, 3),)


@network(F(3))  # a convolution by hand: shifted copies side by side
def unfolded():
    def forward(m, x):
        h = torch.relu(m.a(x))
        h = torch.cat([h[..., :2], h[..., 1:]], 1)
        return m.b(torch.relu(h))
    return Parts(forward, a=nn.Conv1d(2, 3, 1), b=nn.Conv1d(6, 4, 1)), (x(2, 2, 3),)


@network(F(4))
def patch_embedding():
    def forward(m, x):
        return m.head(torch.tanh(m.patch(x).flatten(2).transpose(1, 2)))
    return Parts(forward, patch=nn.Conv2d(2, 4, 2, stride=2), head=nn.Linear(4, 3)), (x(1, 2, 4, 4),)


# == normalisation ===========================================================================================


@network(F(2) * F(3) ** 2)  # G! (C/G)!^G
def group_norm_stream():
    def forward(m, x):
        h = m.stem(x)
        return m.head((h + torch.relu(m.norm(h))).mean(-1))
    return Parts(forward, stem=nn.Conv1d(1, 6, 2), norm=nn.GroupNorm(2, 6),
                 head=nn.Linear(6, 5)), (x(2, 1, 4),)


@network(F(3))
def instance_norm():
    def forward(m, x):
        return m.b(torch.relu(m.norm(m.a(x))))
    return Parts(forward, a=nn.Conv1d(1, 3, 2), norm=nn.InstanceNorm1d(3, affine=True),
                 b=nn.Conv1d(3, 2, 1)), (x(2, 1, 4),)


@network(F(4))
def batch_norm_without_statistics():
    def forward(m, x):
        return m.b(torch.relu(m.norm(m.a(x))))
    return Parts(forward, a=nn.Linear(3, 4), norm=nn.BatchNorm1d(4, track_running_stats=False),
                 b=nn.Linear(4, 5)), (x(2, 3),)


@network(F(4))
def batch_norm_without_affine():
    def forward(m, x):
        return m.b(torch.relu(m.norm(m.a(x))))
    return Parts(forward, a=nn.Linear(3, 4), norm=nn.BatchNorm1d(4, affine=False),
                 b=nn.Linear(4, 5)), (x(2, 3),)


@network(F(3) * F(4))  # one slope for each channel, and one for all
def prelu():
    def forward(m, x):
        return m.c(m.q(m.b(m.p(m.a(x)))))
    return Parts(forward, a=nn.Conv1d(1, 3, 1), p=nn.PReLU(3), b=nn.Conv1d(3, 4, 1), q=nn.PReLU(),
                 c=nn.Conv1d(4, 2, 1)), (x(2, 1, 3),)


# == attention ===============================================================================================
# d: stream, H heads of k units, T tokens. Attention alone gives H! k!^H k!^H: query/key units and
# value/output units.


def heads(t: torch.Tensor, h: int) -> torch.Tensor:
    """(B, T, h*k) -> (B, h, T, k)."""
    return t.view(t.shape[0], t.shape[1], h, -1).transpose(1, 2)


def merged(t: torch.Tensor) -> torch.Tensor:
    """(B, h, T, k) -> (B, T, h*k)."""
    return t.transpose(1, 2).flatten(2)


def attend(q, k, v, bias=None):
    weights = torch.softmax(q @ k.transpose(-1, -2) * k.shape[-1] ** -0.5 + (0 if bias is None else bias), -1)
    return weights @ v


@network(F(4) * F(5) * F(2) * F(3) ** 2 * F(3) ** 2)  # d! m! H! k!^H k!^H
def vit_separate():
    def forward(m, x):
        h = m.stem(x) + m.position
        n = m.n1(h)
        y = fn.scaled_dot_product_attention(heads(m.q(n), 2), heads(m.k(n), 2), heads(m.v(n), 2))
        h = h + m.o(merged(y))
        h = h + m.b(fn.gelu(m.a(m.n2(h))))
        return m.head(h.mean(1))
    return Parts(forward, stem=nn.Linear(2, 4), position=(3, 4), n1=nn.LayerNorm(4), q=nn.Linear(4, 6),
                 k=nn.Linear(4, 6), v=nn.Linear(4, 6), o=nn.Linear(6, 4), n2=nn.LayerNorm(4),
                 a=nn.Linear(4, 5), b=nn.Linear(5, 4), head=nn.Linear(4, 2)), (x(1, 3, 2),)


@network(F(5) * F(2) * F(3) ** 2 * F(3) ** 2)
def fused_3hk():
    def forward(m, x):
        h = m.stem(x)
        q, k, v = m.qkv(h).reshape(2, 2, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return m.head(h + m.o(merged(fn.scaled_dot_product_attention(q, k, v))))
    return Parts(forward, stem=nn.Linear(4, 5), qkv=nn.Linear(5, 18), o=nn.Linear(6, 5),
                 head=nn.Linear(5, 2)), (x(2, 2, 4),)


@network(F(5) * F(2) * F(3) ** 2 * F(3) ** 2)  # q, k, v interleaved head by head
def fused_h3k():
    def forward(m, x):
        h = m.stem(x)
        qkv = m.qkv(h).view(2, 2, 2, 3, 3)
        q, k, v = (qkv[..., i, :].transpose(1, 2) for i in range(3))
        return m.head(h + m.o(merged(attend(q, k, v))))
    return Parts(forward, stem=nn.Linear(4, 5), qkv=nn.Linear(5, 18), o=nn.Linear(6, 5),
                 head=nn.Linear(5, 2)), (x(2, 2, 4),)


@network(F(5) * F(2) * F(3) ** 2 * F(3) ** 2)  # each head's 3k units cut by chunk
def fused_h3k_chunk():
    def forward(m, x):
        h = m.stem(x)
        q, k, v = m.qkv(h).view(2, 2, 2, 9).transpose(1, 2).chunk(3, -1)
        return m.head(h + m.o(merged(attend(q, k, v))))
    return Parts(forward, stem=nn.Linear(4, 5), qkv=nn.Linear(5, 18), o=nn.Linear(6, 5),
                 head=nn.Linear(5, 2)), (x(2, 2, 4),)


@network(F(5) * F(2) * F(3) ** 2 * F(3) ** 2)
def fused_chunk():
    def forward(m, x):
        h = m.stem(x)
        q, k, v = (heads(t, 2) for t in m.qkv(h).chunk(3, -1))
        return m.head(h + m.o(merged(attend(q, k, v))))
    return Parts(forward, stem=nn.Linear(4, 5), qkv=nn.Linear(5, 18), o=nn.Linear(6, 5),
                 head=nn.Linear(5, 2)), (x(2, 2, 4),)


@network(F(5) * F(2) * F(3) ** 2 * F(3) ** 2)
def stacked_then_unbound():
    def forward(m, x):
        h = m.stem(x)
        qkv = torch.stack([heads(m.q(h), 2), heads(m.k(h), 2), heads(m.v(h), 2)])
        q, k, v = qkv.unbind(0)
        return m.head(h + m.o(merged(attend(q, k, v))))
    return Parts(forward, stem=nn.Linear(4, 5), q=nn.Linear(5, 6), k=nn.Linear(5, 6), v=nn.Linear(5, 6),
                 o=nn.Linear(6, 5), head=nn.Linear(5, 2)), (x(2, 2, 4),)


@network(F(2) * F(2) ** 2 * F(3) ** 2 * F(3) ** 2)  # K key heads, G query heads for each, k units
def packed_grouped_query():
    def forward(m, x):
        q, k, v = m.qkv(x).split([12, 6, 6], -1)
        q = q.view(2, 2, 2, 2, 3)  # B T K G k
        k, v = k.view(2, 2, 2, 3), v.view(2, 2, 2, 3)  # B T K k
        scores = torch.softmax(torch.einsum("btigd,bsid->bigts", q, k), -1)
        return m.o(torch.einsum("bigts,bsid->btigd", scores, v).reshape(2, 2, 12))
    return Parts(forward, qkv=nn.Linear(4, 24), o=nn.Linear(12, 5)), (x(2, 2, 4),)


@network(F(2) * F(2) ** 2 * F(3) ** 2 * F(3) ** 2)
def grouped_query_repeat_interleave():
    def forward(m, x):
        q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))))
    return Parts(forward, q=nn.Linear(4, 12), k=nn.Linear(4, 6), v=nn.Linear(4, 6),
                 o=nn.Linear(12, 5)), (x(2, 2, 4),)


@network(F(2) * F(2) ** 2 * F(3) ** 2 * F(3) ** 2)
def grouped_query_expand():
    def forward(m, x):
        def wide(t):
            return t[:, :, None].expand(2, 2, 2, 2, 3).reshape(2, 4, 2, 3)

        q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(fn.scaled_dot_product_attention(q, wide(k), wide(v))))
    return Parts(forward, q=nn.Linear(4, 12), k=nn.Linear(4, 6), v=nn.Linear(4, 6),
                 o=nn.Linear(12, 5)), (x(2, 2, 4),)


@network(F(2) * F(2) ** 2 * F(3) ** 2 * F(3) ** 2)  # heads h and h + K share: tiled, not interleaved
def grouped_query_tiled():
    def forward(m, x):
        q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1))))
    return Parts(forward, q=nn.Linear(4, 12), k=nn.Linear(4, 6), v=nn.Linear(4, 6),
                 o=nn.Linear(12, 5)), (x(2, 2, 4),)


@network(F(4) * F(3) * F(3))  # one key and value head for all: units are shared by the heads
def multi_query():
    def forward(m, x):
        q, k, v = heads(m.q(x), 4), m.k(x)[:, None], m.v(x)[:, None]
        return m.o(merged(attend(q, k, v)))
    return Parts(forward, q=nn.Linear(2, 12), k=nn.Linear(2, 3), v=nn.Linear(2, 3),
                 o=nn.Linear(12, 5)), (x(2, 2, 2),)


@network(F(4) * F(2) * F(2) ** 2 * F(2) ** 2)  # nn.MultiheadAttention: d = H k, packed weight
def multihead_attention():
    def forward(m, x):
        h = m.stem(x)
        return m.head(h + m.attention(h, h, h, need_weights=False)[0])
    return Parts(forward, stem=nn.Linear(3, 4), attention=nn.MultiheadAttention(4, 2, batch_first=True),
                 head=nn.Linear(4, 5)), (x(2, 3, 3),)


@network(F(4) * F(2) * F(2) ** 2 * F(2) ** 2 * F(3))
def encoder_layer():
    def forward(m, x):
        return m.head(m.layer(m.stem(x)))
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, batch_first=True, norm_first=True)
    return Parts(forward, stem=nn.Linear(3, 4), layer=layer, head=nn.Linear(4, 5)), (x(1, 2, 3),)


@network(F(2) * F(3) * F(3) ** 2)  # one norm weight (k,) for all heads ties their units
def shared_query_norm():
    def forward(m, x):
        q, k, v = m.norm(heads(m.q(x), 2)), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(q, k, v)))
    return Parts(forward, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), norm=nn.LayerNorm(3),
                 o=nn.Linear(6, 5)), (x(2, 2, 4),)


@network(F(2) * F(3) ** 2 * F(3) ** 2)  # a norm weight (H, k) leaves heads on their own
def query_norm_by_head():
    def forward(m, x):
        q, k, v = m.q(x).view(2, 2, 2, 3), m.k(x).view(2, 2, 2, 3), m.v(x).view(2, 2, 2, 3)
        q = q * torch.rsqrt(q.square().mean(-1, keepdim=True) + 1e-6) * m.scale
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return m.o(merged(y))
    return Parts(forward, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), scale=(2, 3),
                 o=nn.Linear(6, 5)), (x(2, 2, 4),)


def rotary(length: int, units: int) -> torch.Tensor:
    """(length, units / 2) angles."""
    return torch.arange(length, dtype=torch.float64)[:,
                                                     None] * 0.1 ** (torch.arange(units // 2,
                                                                                  dtype=torch.float64))


def rotate_half(t, angles):
    a, b = t.chunk(2, -1)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    return t * cos + torch.cat([-b, a], -1) * sin


@network(F(2) * F(4) ** 2)  # query/key units pinned, value units free
def rotary_half():
    def forward(m, x):
        q, k, v = heads(m.q(x), 2), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(rotate_half(q, m.angles), rotate_half(k, m.angles), v)))
    return Parts(forward, q=nn.Linear(3, 8), k=nn.Linear(3, 8), v=nn.Linear(3, 8), o=nn.Linear(8, 5),
                 angles=rotary(3, 4)), (x(1, 3, 3),)


@network(F(2) * F(4) ** 2)
def rotary_interleaved():
    def forward(m, x):
        def turn(t):
            a, b = t[..., 0::2], t[..., 1::2]
            cos, sin = torch.cos(m.angles), torch.sin(m.angles)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

        q, k, v = heads(m.q(x), 2), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(turn(q), turn(k), v)))
    return Parts(forward, q=nn.Linear(3, 8), k=nn.Linear(3, 8), v=nn.Linear(3, 8), o=nn.Linear(8, 5),
                 angles=rotary(3, 4)), (x(1, 3, 3),)


@network(F(2) * F(3) ** 2 * F(5) ** 2)  # GPT-NeoX: r of k units turned, (k - r)!^H left
def rotary_partial():
    def forward(m, x):
        def turn(t):
            return torch.cat([rotate_half(t[..., :2], m.angles), t[..., 2:]], -1)

        q, k, v = heads(m.q(x), 2), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(turn(q), turn(k), v)))
    return Parts(forward, q=nn.Linear(3, 10), k=nn.Linear(3, 10), v=nn.Linear(3, 10), o=nn.Linear(10, 6),
                 angles=rotary(2, 2)), (x(1, 2, 3),)


@network(F(3) ** 2 * F(3) ** 2)  # constant slopes tell the heads apart
def alibi():
    def forward(m, x):
        distance = torch.arange(2)[None, :] - torch.arange(2)[:, None]
        bias = m.slopes[:, None, None] * distance
        q, k, v = heads(m.q(x), 2), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(q, k, v, bias)))
    return Parts(forward, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), o=nn.Linear(6, 5),
                 slopes=torch.tensor([0.5, 0.25])), (x(2, 2, 4),)


@network(F(2) * F(3) ** 2 * F(3) ** 2)  # the table's head axis moves along, its rows do not
def relative_position_bias():
    def forward(m, x):
        bias = m.table[m.where].view(3, 3, 2).permute(2, 0, 1)
        q, k, v = heads(m.q(x), 2), heads(m.k(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(q, k, v, bias)))
    where = (torch.arange(3)[:, None] - torch.arange(3)[None, :] + 2).flatten()
    return Parts(forward, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), o=nn.Linear(6, 5),
                 table=(5, 2), where=where), (x(1, 3, 4),)


@network(F(4) * F(5) * F(2) * F(3) ** 2 * F(3) ** 2)  # heads x units beside MLP units, in one projection
def parallel_attention_and_mlp():
    def forward(m, x):
        h = m.stem(x)
        q, k, v, up = m.inward(h).split([6, 6, 6, 5], -1)
        y = merged(attend(heads(q, 2), heads(k, 2), heads(v, 2)))
        return m.head(h + m.outward(torch.cat([y, fn.gelu(up)], -1)))
    return Parts(forward, stem=nn.Linear(3, 4), inward=nn.Linear(4, 23), outward=nn.Linear(11, 4),
                 head=nn.Linear(4, 2)), (x(2, 2, 3),)


@network(F(4) * F(2) * F(3) ** 2 * F(3) ** 2)  # attention inside windows of two
def window_partition():
    def forward(m, x):
        h = m.stem(x)  # 1 4 d
        w = h.view(1, 2, 2, 4).flatten(0, 1)  # windows, tokens, d
        y = merged(attend(heads(m.q(w), 2), heads(m.k(w), 2), heads(m.v(w), 2)))
        return m.head(h + m.o(y).view(1, 2, 2, 4).flatten(1, 2))
    return Parts(forward, stem=nn.Linear(3, 4), q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6),
                 o=nn.Linear(6, 4), head=nn.Linear(4, 5)), (x(1, 4, 3),)


@network(F(5) * F(2) * F(3) ** 2 * F(4) ** 2)  # keys from another stream; value units differ in number
def cross_attention():
    def forward(m, x, y):
        h, c = m.stem(x), y
        q, k, v = heads(m.q(h), 2), heads(m.k(c), 2), heads(m.v(c), 2)
        return m.head(h + m.o(merged(attend(q, k, v))))
    return Parts(forward, stem=nn.Linear(2, 5), q=nn.Linear(5, 6), k=nn.Linear(3, 6), v=nn.Linear(3, 8),
                 o=nn.Linear(8, 5), head=nn.Linear(5, 4)), (x(1, 2, 2), x(1, 3, 3))


@network(F(2) * F(3) ** 2 * F(3) ** 2)  # weights (H, d, k) and (H, k, d), nothing ever flat
def einsum_attention():
    def forward(m, x):
        q, k, v = (torch.einsum("btd,hdk->bhtk", x, w) for w in (m.q, m.k, m.v))
        weights = torch.softmax(torch.einsum("bhtk,bhsk->bhts", q, k), -1)
        return torch.einsum("bhts,bhsk,hkd->btd", weights, v, m.o)
    return Parts(forward, q=(2, 4, 3), k=(2, 4, 3), v=(2, 4, 3), o=(2, 3, 4)), (x(1, 2, 4),)


@network(F(2) * F(3) ** 2 * F(3) ** 2)  # queries and keys by one weight
def shared_query_and_key():
    def forward(m, x):
        q, v = heads(m.q(x), 2), heads(m.v(x), 2)
        return m.o(merged(attend(q, q, v)))
    return Parts(forward, q=nn.Linear(4, 6), v=nn.Linear(4, 6), o=nn.Linear(6, 5)), (x(2, 2, 4),)


# Heads of the scores, mixed heads, heads of the values: three groups of heads; units in the first and the
# last.
@network(F(3) * F(2) ** 3 * F(2) * F(3) * F(2) ** 3)
def talking_heads():
    def forward(m, x):
        q, k, v = heads(m.q(x), 3), heads(m.k(x), 3), heads(m.v(x), 3)
        scores = m.before((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1))
        weights = m.after(torch.softmax(scores, 2)).permute(0, 3, 1, 2)
        return m.o(merged(weights @ v))
    return Parts(forward, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), before=nn.Linear(3, 2),
                 after=nn.Linear(2, 3), o=nn.Linear(6, 5)), (x(1, 2, 4),)


# d! H! (k - r)!^H k!^H: heads each 3k long, cut by chunk; r = 2 of k = 4 units are turned.
@network(F(3) * F(2) * F(2) ** 2 * F(4) ** 2)
def neox():
    def forward(m, x):
        def turn(t):
            return torch.cat([rotate_half(t[..., :2], m.angles), t[..., 2:]], -1)

        h = m.stem(x)
        q, k, v = m.qkv(h).view(1, 2, 2, 12).transpose(1, 2).chunk(3, -1)
        return m.head(h + m.o(merged(attend(turn(q), turn(k), v))))
    return Parts(forward, stem=nn.Linear(4, 3), qkv=nn.Linear(3, 24), o=nn.Linear(8, 3), head=nn.Linear(3, 5),
                 angles=rotary(2, 2)), (x(1, 2, 4),)


@network(F(4) * F(3))  # a scale for each head on a sum over the heads
def scaled_sum_over_heads():
    def forward(m, x):
        y = torch.relu(m.a(x)).view(2, 3, 4)
        return m.o((y * m.scale[:, None]).sum(1))
    return Parts(forward, a=nn.Linear(2, 12), scale=(3,), o=nn.Linear(4, 5)), (x(2, 2),)


# == tokens ==================================================================================================


def block(**more):
    """The parts of one single-head attention on a stream of 4 with 3 units."""
    return dict(stem=nn.Linear(2, 4), q=nn.Linear(4, 3), k=nn.Linear(4, 3), v=nn.Linear(4, 3),
                o=nn.Linear(3, 4), head=nn.Linear(4, 5), **more)


def one_head(m, h):
    return h + m.o(attend(m.q(h), m.k(h), m.v(h)))


@network(F(4) * F(3) * F(3) * F(3))  # and r! for the three registers, dropped at the end
def register_tokens():
    def forward(m, x):
        h = one_head(m, torch.cat([m.stem(x), m.registers.expand(2, 3, 4)], 1))
        return m.head(h[:, :2])
    return Parts(forward, **block(registers=(1, 3, 4))), (x(2, 2, 2),)


@network(F(4) * F(3) * F(3))
def class_token():
    def forward(m, x):
        h = torch.cat([m.token.expand(2, 1, 4), m.stem(x)], 1) + m.position
        return m.head(one_head(m, h)[:, 0])
    return Parts(forward, **block(token=(1, 1, 4), position=(1, 3, 4))), (x(2, 2, 2),)


@network(F(3) * F(4) * F(4) * F(3) * F(3))  # three latents, pooled, on a stream of their own
def perceiver():
    def forward(m, x):
        h = m.stem(x)
        z = m.latents.expand(2, 3, 4)
        z = z + m.o(attend(m.q(z), m.k(h), m.v(h)))
        return m.head(torch.tanh(z).mean(1))
    return Parts(forward, **block(latents=(1, 3, 4))), (x(2, 2, 2),)


@network(F(4) * F(4) * F(3) * F(3))  # learned queries that are read one by one; two streams
def learned_queries():
    def forward(m, x):
        h = m.stem(x)
        z = m.queries + m.o(attend(m.q(m.queries), m.k(h), m.v(h)))
        return m.head(z)
    return Parts(forward, **block(queries=(3, 4))), (x(2, 2, 2),)


@network(F(4) * F(3))
def attention_pooling():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        weights = torch.softmax(m.w(torch.tanh(m.b(h))).squeeze(-1), -1)
        return m.head(torch.einsum("bt,btd->bd", weights, h))
    return Parts(forward, a=nn.Linear(2, 4), b=nn.Linear(4, 3), w=nn.Linear(3, 1),
                 head=nn.Linear(4, 5)), (x(2, 3, 2),)


@network(F(4) * F(3) * F(3))  # MLP-Mixer: hidden tokens, channels, hidden channels
def mixer():
    def forward(m, x):
        h = m.stem(x)
        h = h + m.t2(fn.gelu(m.t1(h.transpose(1, 2)))).transpose(1, 2)
        h = h + m.c2(fn.gelu(m.c1(h)))
        return m.head(h.mean(1))
    return Parts(forward, stem=nn.Linear(2, 4), t1=nn.Linear(2, 3), t2=nn.Linear(3, 2), c1=nn.Linear(4, 3),
                 c2=nn.Linear(3, 4), head=nn.Linear(4, 5)), (x(2, 2, 2),)


# == experts =================================================================================================


@network(F(3) * F(2) ** 3)  # E! f!^E
def dense_experts():
    def forward(m, x):
        weights = torch.softmax(m.router(x), -1)
        h = torch.relu(torch.einsum("bd,efd->bef", x, m.up))
        return torch.einsum("bef,edf,be->bd", h, m.down, weights)
    return Parts(forward, router=nn.Linear(4, 3), up=(3, 2, 4), down=(3, 4, 2)), (x(2, 4),)


@network(F(3) * F(2) ** 3)  # every expert runs, the chosen two are weighed
def topk_experts_masked():
    def forward(m, x):
        value, place = m.router(x).topk(2, -1)
        weights = torch.zeros(2, 3, dtype=x.dtype).scatter(1, place, torch.softmax(value, -1))
        h = torch.relu(torch.bmm(x.expand(3, 2, 4), m.up))
        return torch.einsum("ebd,be->bd", torch.bmm(h, m.down), weights)
    return Parts(forward, router=nn.Linear(4, 3), up=(3, 4, 2), down=(3, 2, 5)), (x(2, 4),)


@network(F(3) * F(2) ** 3)  # the chosen experts' weights are gathered first
def topk_experts_gathered():
    def forward(m, x):
        value, place = m.router(x).topk(2, -1)
        up, down = m.up[place], m.down[place]  # B R f d, B R d f
        h = torch.relu(torch.einsum("bd,brfd->brf", x, up))
        return torch.einsum("brf,brdf,br->bd", h, down, torch.softmax(value, -1))
    return Parts(forward, router=nn.Linear(4, 3), up=(3, 2, 4), down=(3, 5, 2)), (x(2, 4),)


@network(F(4) * F(3) * F(2) ** 3)  # one expert of three, on a residual stream
def top1_experts():
    def forward(m, x):
        h = m.stem(x)
        place = m.router(h).argmax(-1)
        y = torch.einsum("bd,bdf->bf", h, m.up[place])
        return m.head(h + torch.einsum("bf,bfd->bd", torch.relu(y), m.down[place]))
    return Parts(forward, stem=nn.Linear(2, 4), router=nn.Linear(4, 3), up=(3, 4, 2), down=(3, 2, 4),
                 head=nn.Linear(4, 5)), (x(2, 2),)


@network(F(3) * F(4))  # the gate's two outputs go to branches told apart
def two_branches():
    def forward(m, x):
        a, b = torch.tanh(m.a(x)), torch.relu(m.b(x))
        gate = torch.softmax(m.gate(x), -1)
        return gate[:, :1] * m.c(a) + gate[:, 1:] * m.d(b)
    return Parts(forward, a=nn.Linear(2, 3), b=nn.Linear(2, 4), gate=nn.Linear(2, 2), c=nn.Linear(3, 5),
                 d=nn.Linear(4, 5)), (x(2, 2),)


# == ties ====================================================================================================


@network(F(4) * F(5))  # embedding and head share a weight
def tied_embedding():
    def forward(m, i):
        h = m.table(i)
        return m.head(h + m.b(torch.relu(m.a(h))))
    m = Parts(forward, table=nn.Embedding(6, 4), a=nn.Linear(4, 5), b=nn.Linear(5, 4),
              head=nn.Linear(4, 6, bias=False))
    m.head.weight = m.table.weight
    return m, (tokens((1, 4), (0, 5)),)


@network(F(4) * F(5))  # one block used twice
def block_used_twice():
    def forward(m, x):
        h = m.stem(x)
        for _ in range(2):
            h = h + m.b(torch.relu(m.a(h)))
        return m.head(h)
    return Parts(forward, stem=nn.Linear(3, 4), a=nn.Linear(4, 5), b=nn.Linear(5, 4),
                 head=nn.Linear(4, 2)), (x(2, 3),)


@network(F(4))  # an autoencoder that decodes with the transposed weight
def tied_transpose():
    def forward(m, x):
        return torch.tanh(x @ m.w) @ m.w.T
    return Parts(forward, w=(3, 4)), (x(2, 3),)


@network(F(4) * F(5))
def tied_transpose_inside():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        h = torch.tanh(h @ m.w + m.bias) @ m.w.T
        return m.b(torch.tanh(h))
    return Parts(forward, a=nn.Linear(3, 4), w=(4, 5), bias=(5,), b=nn.Linear(4, 2)), (x(2, 3),)


@network(F(4))  # both axes of a square weight are one
def square_weight_twice():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        h = torch.tanh(h @ m.w)
        return m.b(torch.tanh(h @ m.w))
    return Parts(forward, a=nn.Linear(3, 4), w=(4, 4), b=nn.Linear(4, 2)), (x(2, 3),)


# W + W' asks for one permutation on both sides. Each W[i, j] and W[j, i] may also change places (6 pairs).
@network(F(4) * 2**6, axes=F(4))
def symmetric_weight():
    def forward(m, x):
        return m.b(torch.tanh(torch.tanh(m.a(x)) @ (m.w + m.w.T)))
    return Parts(forward, a=nn.Linear(3, 4), w=(4, 4), b=nn.Linear(4, 2)), (x(2, 3),)


# == views, orders and fixed reorderings =====================================================================


@network(F(12))  # a view alone takes nothing away
def viewed_chain():
    def forward(m, x):
        h = torch.tanh(m.a(x).view(2, 3, 4))
        return m.b(torch.relu(h * 0.5).view(2, 12))
    return Parts(forward, a=nn.Linear(2, 12), b=nn.Linear(12, 5)), (x(2, 2),)


@network(F(3) * F(4) ** 3)  # a sum over the inner factor makes it one
def viewed_norm():
    def forward(m, x):
        h = m.a(x).view(2, 3, 4)
        h = h / (h.square().sum(-1, keepdim=True) + 1)
        return m.b(h.view(2, 12))
    return Parts(forward, a=nn.Linear(2, 12), b=nn.Linear(12, 5)), (x(2, 2),)


# 12 = 3 x 4 = 2 x 6: the cells of both are 4, 2, 2, 4 units long, and the order of the cells may be reversed.
@network(2 * F(4) * F(2) * F(2) * F(4))
def misaligned_views():
    def forward(m, x):
        h = m.a(x)
        h = torch.softmax(h.view(2, 3, 4), -1).view(2, 2, 6)
        return m.b(torch.softmax(h * 3, -1).flatten(1))
    return Parts(forward, a=nn.Linear(2, 12), b=nn.Linear(12, 5)), (x(2, 2),)


# 12 = 4 x 3 = 6 x 2: two halves that may change places; each has cells of 2, 1, 1, 2 units that may be
# reversed.
@network(2 * (2 * F(2) * F(2)) ** 2)
def misaligned_inner_views():
    def forward(m, x):
        h = torch.softmax(m.a(x).view(2, 4, 3), -1).view(2, 6, 2)
        return m.b(torch.softmax(h * 3, -1).flatten(1))
    return Parts(forward, a=nn.Linear(2, 12), b=nn.Linear(12, 5)), (x(2, 2),)


@network(F(5))  # the next layer reads the reversed axis
def flipped():
    def forward(m, x):
        return m.b(torch.relu(m.a(x)).flip(-1))
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), (x(2, 3),)


# Units i and 5 - i are added: three pairs move, and the two of a pair. b's columns i and 5 - i see equal
# values: the two columns may change places, and in fact so may the two entries of each of b's two rows.
@network(F(3) * 2**3 * (2**3) ** 2, axes=F(3) * 2**3 * 2**3)
def flipped_and_added():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h + h.flip(-1))
    return Parts(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), (x(2, 3),)


@network(F(5))
def rolled():
    def forward(m, x):
        return m.b(torch.relu(m.a(x)).roll(2, -1))
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), (x(2, 3),)


@network(5)  # only the powers of the roll commute with it
def rolled_and_added():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h - 2 * h.roll(1, -1))
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), (x(2, 3),)


@network(F(5))  # a constant reordering of the hidden axis
def index_selected():
    def forward(m, x):
        return m.b(torch.relu(m.a(x)).index_select(-1, m.order))
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2),
                 order=torch.tensor([3, 0, 4, 1, 2])), (x(2, 3),)


@network(F(2) * F(3))  # units with even and with odd numbers go different ways
def strided_slices():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h[:, 0::2]) + m.c(h[:, 1::2])
    return Parts(forward, a=nn.Linear(4, 5), b=nn.Linear(3, 6), c=nn.Linear(2, 6)), (x(2, 4),)


@network(1)  # a running sum has an order
def cumulated():
    def forward(m, x):
        return m.b(torch.relu(torch.cumsum(m.a(x), -1)))
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(5, 2)), (x(2, 3),)


@network(F(7))  # nothing tells the segments apart: all seven units move
def swapped_concatenation():
    def forward(m, x):
        a, b = torch.relu(m.a(x)).split([3, 4], -1)
        return m.b(torch.cat([b, a], -1))
    return Parts(forward, a=nn.Linear(2, 7), b=nn.Linear(7, 5)), (x(2, 2),)


# The same segment twice: b's two columns for one unit may change places, and in fact so may each row's
# entries.
@network(F(4) * (2**4) ** 2, axes=F(4) * 2**4)
def repeated_segment():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(torch.cat([h, h], -1))
    return Parts(forward, a=nn.Linear(3, 4), b=nn.Linear(8, 2)), (x(2, 3),)


@network(F(3) * F(4))
def segments_treated_apart():
    def forward(m, x):
        a, b = m.a(x).split([3, 4], -1)
        return m.b(torch.cat([torch.tanh(b), torch.relu(a)], -1))
    return Parts(forward, a=nn.Linear(2, 7), b=nn.Linear(7, 5)), (x(2, 2),)


@network(F(12))  # a and c always go together: one axis of 12
def einsum_chain():
    def forward(m, x):
        h = torch.tanh(torch.einsum("bi,iac->bac", x, m.a))
        return torch.einsum("bac,aco->bo", h, m.b)
    return Parts(forward, a=(2, 3, 4), b=(3, 4, 5)), (x(2, 2),)


@network(F(3) * F(4) ** 3)  # c is summed inside each a
def einsum_inner():
    def forward(m, x):
        h = torch.tanh(torch.einsum("bi,iac->bac", x, m.a))
        return torch.tanh(torch.einsum("bac,ac->ba", h, m.b)) @ m.c
    return Parts(forward, a=(2, 3, 4), b=(3, 4), c=(3, 5)), (x(2, 2),)


@network(F(3) * F(4))  # ... with one inner weight for all a: shared
def einsum_shared():
    def forward(m, x):
        h = torch.tanh(torch.einsum("bi,iac->bac", x, m.a))
        return torch.tanh(torch.einsum("...ac,c->...a", h, m.b)) @ m.c
    return Parts(forward, a=(2, 3, 4), b=(4,), c=(3, 5)), (x(2, 2),)


# h' W h: both sides of the form are one axis. W[o, i, j] and W[o, j, i] may also change places (2 x 6 pairs).
@network(F(4) * 2**12, axes=F(4))
def bilinear_form():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        return torch.einsum("bi,oij,bj->bo", h, m.w, h)
    return Parts(forward, a=nn.Linear(3, 4), w=(2, 4, 4)), (x(2, 3),)


# == recurrent ===============================================================================================


@network(F(4))
def rnn():
    def forward(m, x):
        return m.head(m.cell(x)[0])
    return Parts(forward, cell=nn.RNN(3, 4, batch_first=True), head=nn.Linear(4, 2)), (x(2, 3, 3),)


@network(F(4) ** 2)  # h! a layer
def gru_two_layers():
    def forward(m, x):
        return m.head(m.cell(x)[0])
    return Parts(forward, cell=nn.GRU(3, 4, num_layers=2, batch_first=True),
                 head=nn.Linear(4, 2)), (x(1, 2, 3),)


@network(F(4))  # four gates move together
def lstm():
    def forward(m, x):
        return m.head(m.cell(x)[0][:, -1])
    return Parts(forward, cell=nn.LSTM(3, 4, batch_first=True), head=nn.Linear(4, 2)), (x(2, 2, 3),)


@network(F(3) ** 4)  # h! a layer and direction
def lstm_bidirectional():
    def forward(m, x):
        return m.head(m.cell(x)[0])
    return Parts(forward, cell=nn.LSTM(2, 3, num_layers=2, bidirectional=True),
                 head=nn.Linear(6, 4)), (x(2, 1, 2),)


@network(F(4) * F(3) ** 4)  # channels, and the states within each channel
def state_space_scan():
    def forward(m, x):
        u = fn.silu(m.inward(x))  # B T c
        decay = torch.exp(-torch.exp(m.rate))  # c n
        h = torch.zeros(2, 4, 3, dtype=x.dtype)
        out = []
        for t in range(2):
            h = decay * h + u[:, t, :, None] * m.b
            out.append((h * m.c).sum(-1) + m.skip * u[:, t])
        return m.outward(torch.stack(out, 1))
    return Parts(forward, inward=nn.Linear(2, 4), rate=(4, 3), b=(4, 3), c=(4, 3), skip=(4,),
                 outward=nn.Linear(4, 5)), (x(2, 2, 2),)


@network(F(4) * F(3))  # Mamba: B and C come from the input, shared by the channels
def selective_scan():
    def forward(m, x):
        u = fn.silu(m.inward(x))
        step = fn.softplus(m.step(u))
        b, c = m.bc(u).split([3, 3], -1)
        decay = torch.exp(-step[..., None] * torch.exp(m.rate))
        h = torch.zeros(1, 4, 3, dtype=x.dtype)
        out = []
        for t in range(2):
            h = decay[:, t] * h + (step * u)[:, t, :, None] * b[:, t, None]
            out.append(torch.einsum("bcn,bn->bc", h, c[:, t]))
        return m.outward(torch.stack(out, 1))
    return Parts(forward, inward=nn.Linear(2, 4), step=nn.Linear(4, 4), bc=nn.Linear(4, 6), rate=(4, 3),
                 outward=nn.Linear(4, 5)), (x(1, 2, 2),)


# == decoders ================================================================================================


@network(F(4) * F(3) * F(2) * F(2) ** 2 * F(2) ** 2)  # d! m! H! k!^H k!^H; vocabulary and positions pinned
def gpt2():
    def forward(m, i):
        h = m.wte(i) + m.wpe.weight[: i.shape[1]]
        q, k, v = (heads(t, 2) for t in (m.n1(h) @ m.qkv + m.qkv_bias).split(4, -1))
        h = h + merged(fn.scaled_dot_product_attention(q, k, v, is_causal=True)) @ m.o
        h = h + fn.gelu(m.n2(h) @ m.up, approximate="tanh") @ m.down
        return m.head(m.n3(h))
    m = Parts(forward, wte=nn.Embedding(5, 4), wpe=nn.Embedding(2, 4), n1=nn.LayerNorm(4), qkv=(4, 12),
              qkv_bias=(12,), o=(4, 4), n2=nn.LayerNorm(4), up=(4, 3), down=(3, 4), n3=nn.LayerNorm(4),
              head=nn.Linear(4, 5, bias=False))
    m.head.weight = m.wte.weight
    return m, (tokens((3, 1)),)


@network(F(3) * F(5) * F(2) * F(2) ** 2 * F(4) ** 2)  # d! f! K! G!^K k!^K: only value units are free
def llama():
    def forward(m, i):
        h = m.table(i)
        n = m.n1(h)
        q, k, v = heads(m.q(n), 4), heads(m.k(n), 2), heads(m.v(n), 2)
        q, k = rotate_half(q, m.angles), rotate_half(k, m.angles)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        h = h + m.o(merged(fn.scaled_dot_product_attention(q, k, v, is_causal=True)))
        n = m.n2(h)
        h = h + m.down(fn.silu(m.gate(n)) * m.up(n))
        return m.head(m.n3(h))

    def plain(a, b):
        return nn.Linear(a, b, bias=False)
    return Parts(forward, table=nn.Embedding(5, 3), n1=nn.RMSNorm(3), q=plain(3, 16), k=plain(3, 8),
                 v=plain(3, 8), o=plain(16, 3), n2=nn.RMSNorm(3), gate=plain(3, 5), up=plain(3, 5),
                 down=plain(5, 3), n3=nn.RMSNorm(3), head=plain(3, 6),
                 angles=rotary(3, 4)), (tokens((3, 1, 4)),)


@network(F(4) * F(2))  # words seen only through a sum: still in their places
def bag_of_words():
    def forward(m, i):
        return m.b(torch.relu(m.a(m.table(i).mean(1))))
    return Parts(forward, table=nn.Embedding(5, 4), a=nn.Linear(4, 2),
                 b=nn.Linear(2, 3)), (tokens((3, 1), (2, 0)),)


# == reorderings that meet themselves ========================================================================


def units(n: int, out: int = 2, **more) -> dict:
    """A first layer with n hidden units, b for what becomes of them."""
    return dict(a=nn.Linear(3, n), b=nn.Linear(n, out), **more)


@network(F(3) * 2 ** 3 * (2 ** 3) ** 2, axes=F(3) * 2 ** 3 * 2 ** 3)  # as flipped_and_added, by 3 instead
def rolled_by_half_and_added():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h + h.roll(3, -1))
    return Parts(forward, **units(6)), (x(2, 3),)


@network(F(3) * 2 ** 3)  # halves added: pairs, and the two of a pair
def halves_added():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h[:, :3] + h[:, 3:])
    return Parts(forward, a=nn.Linear(2, 6), b=nn.Linear(3, 5)), (x(2, 2),)


@network(F(3))  # ... and subtracted: only the pairs
def halves_subtracted():
    def forward(m, x):
        a, b = torch.relu(m.a(x)).chunk(2, -1)
        return m.b(a - b)
    return Parts(forward, a=nn.Linear(2, 6), b=nn.Linear(3, 5)), (x(2, 2),)


@network(F(3))  # unit i meets unit 5 - i once
def half_flipped_and_subtracted():
    def forward(m, x):
        a, b = torch.relu(m.a(x)).chunk(2, -1)
        return m.b(a - b.flip(-1))
    return Parts(forward, a=nn.Linear(2, 6), b=nn.Linear(3, 5)), (x(2, 2),)


@network(F(3) * 2 ** 3)  # three pairs (i, 5 - i), which may be turned
def flipped_and_subtracted():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h - h.flip(-1))
    return Parts(forward, **units(6)), (x(2, 3),)


@network(1)  # overlapping slices: a chain has no symmetry
def overlapping_slices():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h[:, :4] - h[:, 1:])
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(4, 2)), (x(2, 3),)


@network(2 * 3)  # the permutations that commute with a two-cycle beside a three-cycle
def cycles():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h - 2 * h[:, m.order])
    return Parts(forward, **units(5, order=torch.tensor([1, 0, 3, 4, 2]))), (x(2, 3),)


@network(F(3) * F(2) ** 3)  # heads in reverse order, met by none but b
def heads_flipped():
    def forward(m, x):
        h = torch.tanh(m.a(x)).view(2, 3, 2)
        h = torch.softmax(h, -1).flip(1)
        return m.b(h.flatten(1))
    return Parts(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 5)), (x(2, 4),)


# The middle head meets itself; the outer two meet each other, and unit by unit they may change places.
@network(F(3) * F(3) * 2 ** 3)
def heads_flipped_and_subtracted():
    def forward(m, x):
        h = torch.tanh(m.a(x)).view(2, 3, 3)
        return m.b((h - 2 * h.flip(1)).flatten(1))
    return Parts(forward, a=nn.Linear(4, 9), b=nn.Linear(9, 5)), (x(2, 4),)


@network(F(3) * F(4))  # the grid read by columns, then by rows
def transposed_view():
    def forward(m, x):
        h = torch.softmax(m.a(x).view(2, 3, 4), -1)
        h = torch.softmax(h.transpose(1, 2) * 2, -1)
        return m.b(h.reshape(2, 12))
    return Parts(forward, a=nn.Linear(2, 12), b=nn.Linear(12, 5)), (x(2, 2),)


# Unit 0 is read twice, the other four once. b sees its columns 0 and 1 equal, as in repeated_segment.
@network(F(4) * 2 ** 2, axes=F(4) * 2)
def repeated_index():
    def forward(m, x):
        return m.b(torch.relu(m.a(x))[:, m.order])
    order = torch.tensor([0, 0, 1, 2, 4, 3])
    return Parts(forward, a=nn.Linear(3, 5), b=nn.Linear(6, 2), order=order), (x(2, 3),)


@network(F(4) * F(4))  # two layers' units interleaved
def interleaved():
    def forward(m, x):
        h = torch.stack([torch.relu(m.a(x)), torch.tanh(m.c(x))], -1).flatten(-2)
        return m.b(h)
    return Parts(forward, a=nn.Linear(3, 4), c=nn.Linear(3, 4), b=nn.Linear(8, 2)), (x(2, 3),)


@network(F(5))  # value and gate side by side
def glu_interleaved():
    def forward(m, x):
        h = m.up(x)
        return m.down(h[:, 0::2] * torch.sigmoid(h[:, 1::2]))
    return Parts(forward, up=nn.Linear(3, 10), down=nn.Linear(5, 2)), (x(2, 3),)


@network(F(4))  # relu(h) and relu(-h)
def concatenated_relu():
    def forward(m, x):
        h = m.a(x)
        return m.b(torch.relu(torch.cat([h, -h], -1)))
    return Parts(forward, a=nn.Linear(3, 4), b=nn.Linear(8, 2)), (x(2, 3),)


@network(F(4))  # segments swapped and met again
def concatenated_and_swapped():
    def forward(m, x):
        p, q = torch.relu(m.a(x)), torch.tanh(m.c(x))
        return m.b(torch.cat([p, q], -1) - 2 * torch.cat([q, p], -1))
    return Parts(forward, a=nn.Linear(3, 4), c=nn.Linear(3, 4), b=nn.Linear(8, 2)), (x(2, 3),)


@network(F(3) * F(4))  # every product of a unit of one layer with one of the other
def outer_product():
    def forward(m, x):
        h = torch.relu(m.a(x))[:, :, None] * torch.tanh(m.c(x))[:, None, :]
        return m.b(h.flatten(1))
    return Parts(forward, a=nn.Linear(2, 3), c=nn.Linear(2, 4), b=nn.Linear(12, 5)), (x(2, 2),)


# Every product of two units of one layer: b sees its columns (i, j) and (j, i) equal.
@network(F(4) * (2 ** 6) ** 2, axes=F(4) * 2 ** 6)
def outer_square():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b((h[:, :, None] * h[:, None, :]).flatten(1))
    return Parts(forward, a=nn.Linear(3, 4), b=nn.Linear(16, 2)), (x(2, 3),)


@network(F(3) * F(2))  # channels of a shortcut padded with zeros: three go on, two are new
def padded_shortcut():
    def forward(m, x):
        h = torch.relu(m.a(x))
        h = fn.pad(h, (0, 2)) + torch.relu(m.c(h))
        return m.b(h)
    return Parts(forward, a=nn.Linear(4, 3), c=nn.Linear(3, 5), b=nn.Linear(5, 2)), (x(2, 4),)


# == weights that are computed ===============================================================================


@network(F(4) * F(2))  # W + B A: the hidden units and the rank
def low_rank_update():
    def forward(m, x):
        return m.b(torch.relu(x @ (m.w + m.down @ m.up)))
    return Parts(forward, w=(3, 4), down=(3, 2), up=(2, 4), b=nn.Linear(4, 5)), (x(2, 3),)


@network(F(3) * F(5))  # a weight made by another layer: hidden units of the maker, outputs of what it makes
def hypernetwork():
    def forward(m, x, z):
        w = m.make(torch.relu(m.a(z))).view(2, 4, 5)
        return m.b(torch.relu(torch.bmm(x[:, None], w)[:, 0]))
    return Parts(forward, a=nn.Linear(2, 3), make=nn.Linear(3, 20), b=nn.Linear(5, 6)), (x(2, 4), x(2, 2))


@network(F(4))  # the diagonal of a square weight; what is off it is not used
def diagonal_weight():
    def forward(m, x):
        return m.b(torch.relu(m.a(x)) * torch.diagonal(m.w))
    return Parts(forward, **units(4, w=(4, 4))), (x(2, 3),)


@network(1)  # a triangle of a weight orders both its sides
def triangular_weight():
    def forward(m, x):
        return m.b(torch.tanh(torch.relu(m.a(x)) @ torch.tril(m.w)))
    return Parts(forward, **units(4, w=(4, 4))), (x(2, 3),)


@network(F(2) * F(3) * F(3))  # a block-diagonal constant mask: inputs 2 + 3, outputs 3 + 1
def masked_weight():
    def forward(m, x):
        return m.b(torch.tanh(torch.relu(m.a(x)) @ (m.w * m.mask)))
    mask = torch.block_diag(torch.ones(2, 3), torch.ones(3, 1)).double()
    return Parts(forward, a=nn.Linear(3, 5), w=(5, 4), mask=mask, b=nn.Linear(4, 2)), (x(2, 3),)



@network(F(2) * F(3))  # a constant that takes two values on the axis
def constant_scale():
    def forward(m, x):
        return m.b(torch.relu(m.a(x) * m.scale))
    return Parts(forward, **units(5, scale=torch.tensor([0.5, 0.5, 2, 2, 2]))), (x(2, 3),)


@network(F(5))  # a constant that is the same everywhere on the axis
def uniform_constant():
    def forward(m, x):
        return m.b(torch.relu(m.a(x) * m.scale + torch.ones(5)))
    return Parts(forward, **units(5, scale=torch.full((5,), 0.5))), (x(2, 3),)


@network(F(2) * F(3))  # one weight cut for two layers
def sliced_weight():
    def forward(m, x):
        h = torch.relu(x @ m.w[:, :2])
        g = torch.tanh(x @ m.w[:, 2:])
        return h @ m.b[:2] + g @ m.b[2:]
    return Parts(forward, w=(4, 5), b=(5, 6)), (x(2, 4),)


@network(F(2) * F(2))  # one weight cut with an overlap: unit 2 is read by both and stays
def overlapping_weight():
    def forward(m, x):
        h, g = torch.relu(x @ m.w[:, :3]), torch.tanh(x @ m.w[:, 2:])
        return h @ m.b + g @ m.c
    return Parts(forward, w=(4, 5), b=(3, 6), c=(3, 6)), (x(2, 4),)



@network(F(4))  # h W W: a product of weights before it meets the input
def squared_weight():
    def forward(m, x):
        return m.b(torch.relu(torch.relu(m.a(x)) @ (m.w @ m.w)))
    return Parts(forward, **units(4, w=(4, 4))), (x(2, 3),)


# == one factor at both ends of a sum ========================================================================
# A permutation that is not the same for all terms of a sum does not go through the sum, also where the sum's
# result has the very factor that was summed over.


@network(F(4) * F(3))
def square_weight_beside_another_axis():
    def forward(m, x):
        h = torch.softmax(m.a(x).view(2, 3, 4), 1)
        h = torch.tanh(h @ m.w) @ m.w
        return m.b(torch.softmax(h, 1).flatten(1))
    return Parts(forward, a=nn.Linear(2, 12), w=(4, 4), b=nn.Linear(12, 5)), (x(2, 2),)


@network(F(4) * F(3))  # pooled latents on a stream that a square weight turns
def latents_on_a_stream():
    def forward(m, x):
        z = m.latents + m.stem(x)[:, None]
        z = z + torch.tanh(m.w(z))
        return m.head(z.mean(1))
    return Parts(forward, latents=(3, 4), stem=nn.Linear(2, 4), w=nn.Linear(4, 4),
                 head=nn.Linear(4, 5)), (x(2, 2),)


@network(F(3) * F(4))  # ... and attention among positions that come from the state
def latents_that_attend():
    def forward(m, x):
        z = m.latents * m.stem(x)[:, None]
        z = z + torch.softmax(z @ z.transpose(1, 2), -1) @ z
        return m.head(torch.tanh(z).mean(1))
    return Parts(forward, latents=(3, 4), stem=nn.Linear(2, 4), head=nn.Linear(4, 5)), (x(2, 2),)


# == several outputs and inputs, order statistics ============================================================


@network(1)  # the hidden layer is itself an output
def hidden_as_output():
    def forward(m, x):
        h = torch.relu(m.a(x))
        return m.b(h), h
    return Parts(forward, **units(4)), (x(2, 3),)


@network(F(4))  # the input is added: its axis is the stream's, and pinned
def residual_to_input():
    def forward(m, x):
        return x + m.b(torch.relu(m.a(x)))
    return Parts(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 3)), (x(2, 3),)


@network(F(4))  # one encoder for two inputs
def siamese():
    def forward(m, x, y):
        return m.b((torch.relu(m.a(x)) - torch.relu(m.a(y))).abs())
    return Parts(forward, **units(4)), (x(2, 3), x(2, 3))


@network(F(5))  # largest three of the hidden units, in order: the units move, the places do not
def sorted_units():
    def forward(m, x):
        return m.b(torch.tanh(m.a(x)).topk(3, -1)[0])
    return Parts(forward, a=nn.Linear(4, 5), b=nn.Linear(3, 2)), (x(2, 4),)


@network(F(3) * F(4))  # channels attend to channels: those of the queries, those of keys and values
def channel_attention():
    def forward(m, x):
        q, k, v = (t.transpose(1, 2) for t in (m.q(x), m.k(x), m.v(x)))  # B c T
        weights = torch.softmax(q @ k.transpose(1, 2), -1)
        return m.o((weights @ v).transpose(1, 2))
    return Parts(forward, q=nn.Linear(2, 3), k=nn.Linear(2, 4), v=nn.Linear(2, 4),
                 o=nn.Linear(3, 5)), (x(2, 3, 2),)



@network(F(2) * F(3) ** 2 * F(4) ** 2)  # linear attention: feature units and value units of each head
def linear_attention():
    def forward(m, x):
        q, k, v = fn.elu(heads(m.q(x), 2)) + 1, fn.elu(heads(m.k(x), 2)) + 1, heads(m.v(x), 2)
        top = torch.einsum("bhtd,bhde->bhte", q, torch.einsum("bhsd,bhse->bhde", k, v))
        return m.o(merged(top / torch.einsum("bhtd,bhd->bht", q, k.sum(2))[..., None]))
    return Parts(forward, q=nn.Linear(3, 6), k=nn.Linear(3, 6), v=nn.Linear(3, 8),
                 o=nn.Linear(8, 5)), (x(1, 2, 3),)


@network(F(2) ** 2)  # two groups that go different ways
def group_norm_in_halves():
    def forward(m, x):
        h = m.norm(m.a(x))
        return m.b(torch.relu(h[:, :2])) + m.c(torch.tanh(h[:, 2:]))
    return Parts(forward, a=nn.Conv1d(1, 4, 1), norm=nn.GroupNorm(2, 4), b=nn.Conv1d(2, 3, 1),
                 c=nn.Conv1d(2, 3, 1)), (x(2, 1, 3),)



@network(F(4))  # an LSTM written out, its gates cut from one axis
def lstm_cell_by_hand():
    def forward(m, x):
        h = c = torch.zeros(2, 4, dtype=x.dtype)
        for t in range(2):
            i, f, g, o = (m.w(x[:, t]) + m.u(h)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return m.head(h)
    return Parts(forward, w=nn.Linear(3, 16), u=nn.Linear(4, 16), head=nn.Linear(4, 2)), (x(2, 2, 3),)


@network(F(4) * F(3))  # writes in place, and a slice of the hidden units
def in_place():
    def forward(m, x):
        h = m.a(x).relu_()
        g = torch.zeros(2, 7, dtype=x.dtype)
        g[:, :4] = h
        g[:, 4:] = torch.tanh(m.c(x))
        return m.b(g)
    return Parts(forward, a=nn.Linear(2, 4), c=nn.Linear(2, 3), b=nn.Linear(7, 5)), (x(2, 2),)


# == submodules that are alike: whole parameters change places ================================================


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def several(number: int, build: Callable[[], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(build() for _ in range(number))


@network(F(2) ** 3, whole=F(3) * F(2) ** 3)  # experts with their router's rows, hidden units of each
def list_of_experts():
    def forward(m, x):
        weights = torch.softmax(m.router(x), -1)
        return torch.stack([weights[:, e:e + 1] * expert(x) for e, expert in enumerate(m.experts)]).sum(0)
    return Parts(forward, router=nn.Linear(4, 3), experts=several(3, lambda: Expert(4, 2))), (x(2, 4),)


@network(F(3) ** 2, whole=F(2) * F(3) ** 2)  # a loop that adds up
def loop_over_experts():
    def forward(m, x):
        weights, total = torch.sigmoid(m.router(x)), 0
        for e, expert in enumerate(m.experts):
            total = total + weights[:, e, None] * expert(x)
        return x + total
    return Parts(forward, router=nn.Linear(4, 2), experts=several(2, lambda: Expert(4, 3))), (x(2, 4),)


@network((F(2) ** 2) ** 3, whole=F(3) * (F(2) ** 2) ** 3)  # heads; query/key units and value units of each
def list_of_heads():
    def forward(m, x):
        heads = [torch.softmax(h[0](x) @ h[1](x).transpose(1, 2), -1) @ h[2](x) for h in m.heads]
        return m.out(torch.cat(heads, -1))
    return Parts(forward, heads=several(3, lambda: several(3, lambda: nn.Linear(3, 2))), out=nn.Linear(6, 3)), (x(1, 2, 3),)


@network(F(3) ** 2, whole=F(2) * F(3) ** 2)  # convolutions with statistics of their own, averaged
def parallel_branches():
    def forward(m, x):
        return torch.stack([branch(x) for branch in m.branches]).mean(0)
    return Parts(forward, branches=several(2, lambda: nn.Sequential(
        nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3), nn.ReLU(), nn.Conv1d(3, 2, 2)))), (x(2, 2, 3),)


@network((F(2) ** 2) ** 2, whole=F(2) * (F(2) * F(2) ** 2) ** 2)  # mixtures, experts in each, units in each
def mixture_of_mixtures():
    def forward(m, x):
        parts = []
        for mixture in m.mixtures:
            weights = torch.softmax(mixture[0](x), -1)
            parts.append(torch.tanh(sum(weights[:, e, None] * mixture[1 + e](x) for e in range(2))))
        return torch.stack(parts).sum(0)
    return Parts(forward, mixtures=several(2, lambda: nn.ModuleList(
        [nn.Linear(3, 2), Expert(3, 2), Expert(3, 2)]))), (x(2, 3),)


@network(F(4), whole=F(3) * F(4))  # the units of all experts meet in one matrix
def experts_that_share_a_matrix():
    def forward(m, x):
        weights = torch.softmax(m.router(x), -1)
        return torch.stack([weights[:, e:e + 1] * m.down(torch.tanh(up(x))) for e, up in enumerate(m.ups)]).sum(0)
    return Parts(forward, router=nn.Linear(2, 3), ups=several(3, lambda: nn.Linear(2, 4)), down=nn.Linear(4, 2)), (x(2, 2),)


@network(F(2) ** 3, whole=F(2) * F(2) ** 3)  # the first expert is used elsewhere too
def expert_used_alone():
    def forward(m, x):
        together = torch.stack([expert(x) for expert in m.experts]).sum(0)
        return together, m.experts[0](x)
    return Parts(forward, experts=several(3, lambda: Expert(3, 2))), (x(2, 3),)


@network(F(2) ** 3)  # results side by side, in an order that counts
def experts_side_by_side():
    def forward(m, x):
        return torch.cat([expert(x) for expert in m.experts], -1)
    return Parts(forward, experts=several(3, lambda: Expert(3, 2))), (x(2, 3),)


@network(F(2) ** 3)  # a factor that is another for each
def experts_told_apart():
    def forward(m, x):
        return torch.stack([(1 + e) * expert(x) for e, expert in enumerate(m.experts)]).sum(0)
    return Parts(forward, experts=several(3, lambda: Expert(3, 2))), (x(2, 3),)
