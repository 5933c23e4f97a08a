"""The kernel that corrects moves ahead, in Triton; imported when it is launched."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def correction_kernel(  # type: ignore[no-untyped-def]
    addresses,
    sizes,
    firsts,
    block_of_chunk,
    scales,
    blocks,
    length: tl.constexpr,
    part: tl.constexpr,
    has_root: tl.constexpr,
    is_limited: tl.constexpr,
):
    """Put parameters back and move them, x <- keep (x + s)/keep° - pull u, in wrong blocks only.

    A program has one chunk of a block. `addresses` are those of x, B and v of each block, and
    `scales` has shape [8, blocks]: pull°, keep°, pull, keep, l, the largest u, and the scalars of
    u = scale B or u = B / (scale sqrt(v) + offset).
    """
    block = tl.load(block_of_chunk + tl.program_id(0))
    own = scales + block
    pull_ahead, keep_ahead = tl.load(own), tl.load(own + blocks)
    pull, keep = tl.load(own + 2 * blocks), tl.load(own + 3 * blocks)
    is_wrong = (pull_ahead != pull) | (keep_ahead != keep)
    limit = tl.load(own + 4 * blocks)
    if is_limited:
        # Not `>`, because a move that is not a number is wrong too.
        fits = tl.load(own + 5 * blocks) * pull_ahead <= limit
        is_wrong = is_wrong | (fits == 0)
    if is_wrong:
        scale, offset = tl.load(own + 6 * blocks), tl.load(own + 7 * blocks)
        pointer = scales.dtype
        x_start = tl.load(addresses + block * 3).to(pointer)
        buffer_start = tl.load(addresses + block * 3 + 1).to(pointer)
        square_start = tl.load(addresses + block * 3 + 2).to(pointer)
        size = tl.load(sizes + block)
        chunk = (tl.program_id(0) - tl.load(firsts + block)).to(tl.int64)
        for start in range(0, length, part):
            at = chunk * length + start + tl.arange(0, part)
            mask = at < size
            u = tl.load(buffer_start + at, mask)
            if has_root:
                v = tl.load(square_start + at, mask)
                # `sqrt` of float32 is an approximation, which flushes small v to 0.
                root = tl.sqrt_rn(v) if v.dtype == tl.float32 else tl.sqrt(v)
                u = u / (root * scale + offset)
            else:
                u = u * scale
            s = u * pull_ahead
            if is_limited:
                s = tl.minimum(tl.maximum(s, -limit), limit)
            x = (tl.load(x_start + at, mask) + s) / keep_ahead
            tl.store(x_start + at, x * keep - u * pull, mask)
