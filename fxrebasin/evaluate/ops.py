"""What kind of arithmetic an operation does, by its name without the overload; an unknown one rounds."""
from __future__ import annotations

from typing import Any

from torch import fx

# Results are numbers that were there before, or their magnitudes, or whole numbers: nothing is rounded.
EXACT = frozenset("""
    abs alias amax amin as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat ceil
    channel_shuffle chunk clamp clamp_max clamp_min clone column_stack concat concatenate conj constant_pad_nd
    contiguous copy detach diag diag_embed diagonal diagonal_scatter dropout dstack embedding empty empty_like
    expand expand_as fill flatten flip fliplr flipud floor fmax fmin full full_like gather getitem hardtanh
    hsplit hstack imag index index_fill index_select lift_fresh lift_fresh_copy masked_fill masked_scatter
    masked_select max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum
    median min minimum movedim narrow narrow_copy native_channel_shuffle neg new_empty new_full new_ones
    new_zeros ones ones_like pad permute permute_copy pixel_shuffle pixel_unshuffle positive prelu_kernel
    ravel real reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d reshape resolve_conj resolve_neg roll rot90 round
    select select_copy select_scatter sign slice slice_copy slice_scatter sort split split_copy
    split_with_sizes split_with_sizes_copy squeeze squeeze_copy stack swapaxes t take take_along_dim
    tensor_split threshold tile to _to_copy topk transpose transpose_copy tril triu trunc type_as unbind
    unflatten unfold unfold_copy unsafe_chunk unsafe_split unsqueeze unsqueeze_copy upsample_nearest1d
    upsample_nearest2d upsample_nearest3d view view_as view_as_complex view_as_real view_copy vsplit vstack
    where zero zeros zeros_like _reshape_alias _unsafe_index _unsafe_view
""".split())

# The places of numbers in an order are among the results: equal numbers, and nearly equal ones, may change
# places.
COMPARING = frozenset(
    "argmax argmin argsort cummax cummin kthvalue max median min mode msort nanmedian sort topk".split()
)

# Bits are read as they are stored: a wider number has others.
BITWISE = frozenset(("view.dtype", "frexp.Tensor", "nextafter.default"))


def base_name(node: fx.Node) -> str:
    """`softmax` for `aten.softmax.int`."""
    return overload(node).split(".")[0].rstrip("_")


def overload(node: fx.Node) -> str:
    """`softmax.int` for `aten.softmax.int`; the name of a function."""
    target: Any = node.target
    return str(getattr(target, "__name__", target)).removeprefix("aten.")


def rounds(node: fx.Node) -> bool:
    """Whether the results are new numbers; of casts between floating-point types none is left in float64."""
    return node.op == "call_function" and base_name(node) not in EXACT


def compares(node: fx.Node) -> bool:
    """Whether the places of numbers in an order are used."""
    if base_name(node) not in COMPARING:
        return False
    used = [user.args[1] for user in node.users if base_name(user) == "getitem"]
    return not used or 1 in used
