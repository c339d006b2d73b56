"""Rows of a cache: what stored channels are worth, and storing them. The layouts are those of `dsv4_kernels.rows`."""

import triton
import triton.language as tl

from dsv4_kernels.triton_lang.device.numbers import VARIABLE, e2m1_code, e2m1_value, power_of_two, scale_byte, to_e4m3


@triton.jit
def load_channels(row, valid, FROM: tl.constexpr, COUNT: tl.constexpr, FORMAT: tl.constexpr, WIDTH: tl.constexpr,
                  ROPE: tl.constexpr):  # fmt: skip
    """What channels FROM … FROM + COUNT - 1 of stored rows are worth, float32 [J, COUNT]; zeros where none are.

    row: pointers to the first byte of each row [J]; valid [J].
    """
    d = FROM + tl.arange(0, COUNT)
    start = row[:, None]
    here = valid[:, None] & (d < WIDTH)[None, :]
    if FORMAT == "fp32":
        values = tl.load(start.to(tl.pointer_type(tl.float32)) + d[None, :], mask=here, other=0.0)
    elif FORMAT == "bf16":
        values = tl.load(start.to(tl.pointer_type(tl.bfloat16)) + d[None, :], mask=here, other=0.0).to(tl.float32)
    elif FORMAT == "fp8":
        codes = tl.load(start + d[None, :], mask=here, other=0).to(tl.float8e4nv, bitcast=True)
        scale = tl.load((row + WIDTH).to(tl.pointer_type(tl.float32)), mask=valid, other=0.0)
        values = codes.to(tl.float32) * scale[:, None]
    elif FORMAT == "fp4":
        codes = tl.load(start + (d // 2)[None, :], mask=here, other=0).to(tl.int32) >> ((d & 1) * 4)[None, :]
        scales = tl.load(start + (WIDTH + 1) // 2 + (d // 32)[None, :], mask=here, other=0)
        values = e2m1_value(codes & 15) * power_of_two(scales)
    else:
        values = load_packed(row, valid, FROM, COUNT, WIDTH, WIDTH - ROPE)
    return values


@triton.jit
def load_packed(row, valid, FROM: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr, CODES: tl.constexpr):
    """`load_channels` of "packed" rows: e4m3 before channel CODES, bf16 from there on.

    What a range of channels does not hold is not loaded, and a scale is loaded once per row and group: all of it would
    stand in registers.
    """
    d = FROM + tl.arange(0, COUNT)
    values = tl.zeros([row.shape[0], COUNT], tl.float32)
    if FROM < CODES:
        is_code = valid[:, None] & (d < CODES)[None, :]
        codes = tl.load(row[:, None] + d[None, :], mask=is_code, other=0).to(tl.float8e4nv, bitcast=True)
        scales = tl.zeros([row.shape[0], COUNT], tl.float32)
        for group in tl.static_range(FROM // 64, (FROM + COUNT + 63) // 64):
            byte = tl.load(row + CODES + group, mask=valid & (group * 64 < CODES), other=0)
            scales = tl.where((d // 64 == group)[None, :], power_of_two(byte)[:, None], scales)
        values = codes.to(tl.float32) * scales
    if FROM + COUNT > CODES:
        SCALES: tl.constexpr = ((CODES + 63) // 64 + 7) // 8 * 8
        tail = (row + CODES + SCALES).to(tl.pointer_type(tl.bfloat16))[:, None] + (d - CODES)[None, :]
        is_tail = valid[:, None] & ((d >= CODES) & (d < WIDTH))[None, :]
        values += tl.load(tail, mask=is_tail, other=0.0).to(tl.float32)
    return values


@triton.jit(do_not_specialize=VARIABLE)
def pack_groups(values, data, num_rows, stride_v, ROW_BYTES: tl.constexpr, WIDTH: tl.constexpr,
                GROUP: tl.constexpr, SCALE_AT: tl.constexpr, NUM_SCALES: tl.constexpr, KIND: tl.constexpr,
                BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Group g (second grid axis) of BLOCK_R rows per program: codes and the scale byte; groups past WIDTH pad with 0.

    KIND: "packed" e4m3 with a scale byte, "fp8" e4m3 with a float32 scale, "fp4" two codes to a byte.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    group = tl.program_id(1)
    there = row < num_rows
    start = data + row.to(tl.int64) * ROW_BYTES
    source = values + row.to(tl.int64)[:, None] * stride_v
    if KIND == "fp4":
        low = group * GROUP + 2 * tl.arange(0, BLOCK_D // 2)
        a = tl.load(source + low[None, :], mask=there[:, None] & (low < WIDTH)[None, :], other=0.0).to(tl.float32)
        b = tl.load(source + low[None, :] + 1, mask=there[:, None] & (low + 1 < WIDTH)[None, :], other=0.0)
        b = b.to(tl.float32)
        amax = tl.maximum(tl.max(tl.abs(a), 1), tl.max(tl.abs(b), 1))
        byte = scale_byte(tl.maximum(amax, 7.052966104933725e-38), 6.0)
        inverse = power_of_two(254 - byte)[:, None]
        high = tl.where((low + 1 < WIDTH)[None, :], e2m1_code(b * inverse), 0)
        codes = e2m1_code(a * inverse) | (high << 4)
        tl.store(start[:, None] + (low // 2)[None, :], codes.to(tl.uint8), mask=there[:, None] & (low < WIDTH)[None, :])
    else:
        d = tl.arange(0, BLOCK_D)
        channel = group * GROUP + d
        inside = there[:, None] & ((d < GROUP) & (channel < WIDTH))[None, :]
        x = tl.load(source + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        byte = scale_byte(tl.maximum(tl.max(tl.abs(x), 1), 1e-4), 448.0)
        codes = to_e4m3(x * power_of_two(254 - byte)[:, None]).to(tl.uint8, bitcast=True)
        tl.store(start[:, None] + channel[None, :], codes, mask=inside)
    if KIND == "fp8":
        tl.store((start + SCALE_AT).to(tl.pointer_type(tl.float32)), power_of_two(byte), mask=there)
    else:
        byte = tl.where(group < NUM_SCALES, byte, 0)
        tl.store(start + SCALE_AT + group, byte.to(tl.uint8), mask=there)


@triton.jit(do_not_specialize=VARIABLE)
def copy_tail(values, data, num_rows, stride_v, FIRST: tl.constexpr, COUNT: tl.constexpr, AT: tl.constexpr,
              ROW_BYTES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Channels FIRST … FIRST + COUNT - 1 of BLOCK_R rows, as bf16 from byte AT on."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.arange(0, BLOCK_D)
    inside = (row < num_rows)[:, None] & (d < COUNT)[None, :]
    x = tl.load(values + row.to(tl.int64)[:, None] * stride_v + FIRST + d[None, :], mask=inside, other=0.0)
    out = (data + row.to(tl.int64) * ROW_BYTES + AT).to(tl.pointer_type(tl.bfloat16))
    tl.store(out[:, None] + d[None, :], x.to(tl.float32).to(tl.bfloat16), mask=inside)
