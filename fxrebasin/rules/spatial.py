"""Ops on grids of positions: pooling, resizing, patches. Positions stay where they are; channels pass."""

from __future__ import annotations

from .call import Call
from .rule import rearrangement, rule


_STILL = "windows that do not overlap, and places within one, could change places; grids stay as they are"


def _grid(ops: str, dims: int, sample) -> None:
    inside, outside = " ".join(f"h{d}!" for d in range(dims)), " ".join(f"z{d}" for d in range(dims))
    rule(ops, f"*n {inside} -> *n {outside}", whatever="*", sample=sample, missing=_STILL)


_grid("max_pool1d.default avg_pool1d.default", 1, lambda T: (T(2, 3, 8), [2], [2]))
_grid("max_pool2d.default avg_pool2d.default", 2, lambda T: (T(2, 3, 8, 6), [2, 2], [2, 2]))
_grid("max_pool3d.default avg_pool3d.default", 3, lambda T: (T(2, 3, 4, 4, 4), [2, 2, 2], [2, 2, 2]))
_grid("adaptive_avg_pool1d.default", 1, lambda T: (T(2, 3, 8), [2]))
_grid("adaptive_avg_pool2d.default _adaptive_avg_pool2d.default", 2, lambda T: (T(2, 3, 8, 6), [2, 1]))
_grid("adaptive_avg_pool3d.default _adaptive_avg_pool3d.default", 3, lambda T: (T(2, 3, 4, 4, 4), [2, 1, 1]))
_grid("upsample_nearest1d.vec upsample_linear1d.vec", 1,
      lambda T: (T(2, 3, 4), [8], None) if "nearest" in T.op else (T(2, 3, 4), [8], False, None))
_grid("upsample_nearest2d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec _upsample_bilinear2d_aa.vec "
      "_upsample_bicubic2d_aa.vec _upsample_nearest_exact2d.vec", 2,
      lambda T: (T(2, 3, 4, 4), [8, 8], None) if "nearest" in T.op else (T(2, 3, 4, 4), [8, 8], False, None))
_grid("upsample_nearest2d.default", 2, lambda T: (T(2, 3, 4, 4), [8, 8]))
_grid("upsample_bilinear2d.default upsample_bicubic2d.default", 2, lambda T: (T(2, 3, 4, 4), [8, 8], False))
_grid("upsample_nearest3d.vec upsample_trilinear3d.vec", 3,
      lambda T: (T(2, 3, 2, 2, 2), [4, 4, 4], None) if "nearest" in T.op else (T(2, 3, 2, 2, 2), [4, 4, 4], False, None))


def _pool_with_indices(ops: str, dims: int, sample) -> None:
    inside, outside = " ".join(f"h{d}!" for d in range(dims)), " ".join(f"z{d}" for d in range(dims))
    rule(ops, f"*n {inside} -> *n {outside}, *n {outside}", whatever="*", sample=sample, missing=_STILL)


_pool_with_indices("adaptive_max_pool1d.default", 1, lambda T: (T(2, 3, 8), [2]))
_pool_with_indices("adaptive_max_pool2d.default", 2, lambda T: (T(2, 3, 8, 6), [2, 1]))
_pool_with_indices("max_pool2d_with_indices.default", 2, lambda T: (T(2, 3, 8, 6), [2, 2], [2, 2]))

rule("pixel_shuffle.default", "*b (c r s) h w -> *b c (h r) (w s)", r="upscale_factor", s="upscale_factor",
     sample=lambda T: (T(2, 12, 3, 5), 2))
rule("pixel_unshuffle.default", "*b c (h r) (w s) -> *b (c r s) h w", r="downscale_factor", s="downscale_factor",
     sample=lambda T: (T(2, 3, 6, 4), 2))
rule("channel_shuffle.default native_channel_shuffle.default", "n (g c) *s -> n (c g) *s", g="groups",
     sample=lambda T: (T(2, 6, 3, 3), 2))


@rearrangement("im2col.default", whatever="*", missing=_STILL, sample=lambda T: (T(2, 3, 4, 4), [2, 2], [1, 1], [0, 0], [2, 2]))
def im2col(call: Call):
    kernel = call.args["kernel_size"]
    return call.relate("*n c h! w! -> *n (c k) p", k=kernel[0] * kernel[1])


@rearrangement("col2im.default", whatever="*", missing=_STILL, sample=lambda T: (T(2, 12, 4), [4, 4], [2, 2], [1, 1], [0, 0], [2, 2]))
def col2im(call: Call):
    kernel = call.args["kernel_size"]
    return call.relate("*n (c k!) p! -> *n c h w", k=kernel[0] * kernel[1])


@rearrangement("grid_sampler.default grid_sampler_2d.default", whatever="align_corners",
               sample=tuple(lambda T, mode=mode: (T(2, 3, 4, 4), T(2, 5, 5, 2), mode, mode, False) for mode in (0, 1, 2)))
def grid_sampler(call: Call):
    return call.relate("n c h! w!, n y x t! -> n c y x")
