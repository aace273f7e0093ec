"""The kernels of `norm_act_pool`: forward, backward, and backward of that. `tile.py` has the tiles.

With m and r the mean and 1 / deviation of the group's n entries, xhat = (x - m) r,
y = gamma xhat + beta + residual, g the gradient of `out` spread over the entries that it is the
mean of, u = act'(y) g and P(v) = v - mean v - xhat mean(v xhat):

    out        mean of act(y) over a window
    backward   dx = r P(gamma u),  dgamma = sum u xhat,  dbeta = sum u,  dresidual = u

For cotangents v of dx, w of dgamma, b of dbeta, s of dresidual, act' being constant:

    of g       act'(y) (gamma r P(v) + w xhat + b + s), pooled
    of gamma   r sum u P(v)
    of x       r P(c) - r^2 xhat / n sum v P(gamma u),
               c = w u - r (v mean(gamma u xhat) + gamma u mean(v xhat))

Sums of u, u xhat, v, v xhat and u v over each channel are all that is needed of them, since P is
its own transpose. Gradients of gamma and beta are written row by row, `(rows, channels)`, to be
added up in their order. Absent tensors are None. Arguments of all kernels, by name:

    x, residual, ... (rows, CHANNELS, HEIGHT, WIDTH), contiguous, or LAST: channels last
    out, grad (rows, CHANNELS, HEIGHT // POOL, WIDTH // POOL)
    weight, bias (sets, CHANNELS); set_rows: rows of a set
    slope of the activation below 0; eps that is added to the variance
    END: windows of a map, or where HELD those of the tile, which has them all

Sizes of maps are known at compile time: a network has few, places are then constants apart, and a
program of other sizes would have another tile anyway.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cmikernels.norm.tile import (
    before_activation,
    channel_sum,
    cotangent,
    entries_of,
    group_sum,
    load,
    moments,
    normalised_gradient,
    own_channels,
    parameter,
    store,
    through,
    windows_of,
)


@triton.jit(do_not_specialize=["set_rows"])
def forward(
    x, residual, weight, bias, out, slope: tl.float64, eps: tl.float64, set_rows,
    ARITHMETIC: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_P: tl.constexpr, END: tl.constexpr, HELD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The pooled activation of normalised maps."""
    row, c, c_valid = own_channels(CHANNELS, GROUPS, BLOCK_G, BLOCK_J)
    start = row * (CHANNELS * HEIGHT * WIDTH)
    out_start = row * (CHANNELS * (HEIGHT // POOL) * (WIDTH // POOL))
    x += start
    out += out_start
    if residual is not None:
        residual += start
    places, valid = entries_of(c, c_valid, 0, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
    held = load(x, places, valid, ARITHMETIC, EVEN)
    mean, inverse = moments(
        held, x, c, c_valid, eps, GROUPS, ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P,
        END, HELD, EVEN,
    )  # fmt: skip
    slope = tl.full((), slope, ARITHMETIC)
    of_set = row // set_rows * CHANNELS + c
    gamma = parameter(weight, of_set, c_valid, 1.0, ARITHMETIC)
    beta = parameter(bias, of_set, c_valid, 0.0, ARITHMETIC)
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        z = held
        if not HELD:
            z = load(x, places, valid, ARITHMETIC, EVEN)
        xhat = (z - mean) * inverse
        y = before_activation(xhat, gamma, beta, residual, places, valid, ARITHMETIC, EVEN)
        below = tl.where(slope == 0, 0.0, y * slope)  # 0 times infinity is NaN
        y = tl.where(y < 0, below, y)
        window, whole = windows_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        pooled = tl.sum(y, 3)[:, :, :, None] * (1.0 / (POOL * POOL))
        store(out, window, whole, pooled, EVEN)


@triton.jit(do_not_specialize=["set_rows"])
def backward(
    x, residual, weight, bias, grad, x_grad, residual_grad, weight_shares, bias_shares,
    slope: tl.float64, eps: tl.float64, set_rows,
    ARITHMETIC: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_P: tl.constexpr, END: tl.constexpr, HELD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The gradients of x and residual, and each row's shares of those of weight and bias."""
    row, c, c_valid = own_channels(CHANNELS, GROUPS, BLOCK_G, BLOCK_J)
    start = row * (CHANNELS * HEIGHT * WIDTH)
    out_start = row * (CHANNELS * (HEIGHT // POOL) * (WIDTH // POOL))
    x += start
    x_grad += start
    grad += out_start
    if residual is not None:
        residual += start
        residual_grad += start
    places, valid = entries_of(c, c_valid, 0, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
    held = load(x, places, valid, ARITHMETIC, EVEN)
    mean, inverse = moments(
        held, x, c, c_valid, eps, GROUPS, ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P,
        END, HELD, EVEN,
    )  # fmt: skip
    slope = tl.full((), slope, ARITHMETIC)
    of_set = row // set_rows * CHANNELS + c
    gamma = parameter(weight, of_set, c_valid, 1.0, ARITHMETIC)
    beta = parameter(bias, of_set, c_valid, 0.0, ARITHMETIC)
    if HELD:
        held_xhat, _, held_u = normalised_gradient(
            held, x, residual, grad, c, c_valid, 0, mean, inverse, gamma, beta, slope,
            ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P, EVEN,
        )  # fmt: skip
    sum_u = tl.zeros_like(gamma)
    sum_u_xhat = tl.zeros_like(gamma)
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        if HELD:
            xhat, u = held_xhat, held_u
        else:
            xhat, _, u = normalised_gradient(
                None, x, residual, grad, c, c_valid, at, mean, inverse, gamma, beta, slope,
                ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P, EVEN,
            )  # fmt: skip
        sum_u += channel_sum(u)
        sum_u_xhat += channel_sum(u * xhat)
        if residual is not None:
            places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
            store(residual_grad, places, valid, u, EVEN)
    tl.store(weight_shares + row * CHANNELS + c, sum_u_xhat, mask=c_valid)
    tl.store(bias_shares + row * CHANNELS + c, sum_u, mask=c_valid)

    count: tl.constexpr = CHANNELS // GROUPS * HEIGHT * WIDTH
    mean_h = group_sum(gamma * sum_u) / count
    mean_h_xhat = group_sum(gamma * sum_u_xhat) / count
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        if HELD:
            xhat, u = held_xhat, held_u
        else:
            xhat, _, u = normalised_gradient(
                None, x, residual, grad, c, c_valid, at, mean, inverse, gamma, beta, slope,
                ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P, EVEN,
            )  # fmt: skip
        places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        dx = (u * gamma - mean_h - xhat * mean_h_xhat) * inverse
        store(x_grad, places, valid, dx, EVEN)


@triton.jit(do_not_specialize=["set_rows"])
def double_backward(
    x, residual, weight, bias, grad, x_cotangent, residual_cotangent, weight_cotangent,
    bias_cotangent, grad_grad, x_grad, weight_shares, slope: tl.float64, eps: tl.float64, set_rows,
    ARITHMETIC: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, POOL: tl.constexpr, LAST: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_J: tl.constexpr, BLOCK_P: tl.constexpr, END: tl.constexpr, HELD: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """The gradients of grad and x, and each row's share of that of weight."""
    row, c, c_valid = own_channels(CHANNELS, GROUPS, BLOCK_G, BLOCK_J)
    start = row * (CHANNELS * HEIGHT * WIDTH)
    out_start = row * (CHANNELS * (HEIGHT // POOL) * (WIDTH // POOL))
    x += start
    x_grad += start
    grad += out_start
    grad_grad += out_start
    if residual is not None:
        residual += start
    if x_cotangent is not None:
        x_cotangent += start
    if residual_cotangent is not None:
        residual_cotangent += start
    places, valid = entries_of(c, c_valid, 0, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
    held = load(x, places, valid, ARITHMETIC, EVEN)
    mean, inverse = moments(
        held, x, c, c_valid, eps, GROUPS, ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P,
        END, HELD, EVEN,
    )  # fmt: skip
    slope = tl.full((), slope, ARITHMETIC)
    of_set = row // set_rows * CHANNELS + c
    gamma = parameter(weight, of_set, c_valid, 1.0, ARITHMETIC)
    beta = parameter(bias, of_set, c_valid, 0.0, ARITHMETIC)
    w = parameter(weight_cotangent, of_set, c_valid, 0.0, ARITHMETIC)
    b = parameter(bias_cotangent, of_set, c_valid, 0.0, ARITHMETIC)
    if HELD:
        held_xhat, held_active, held_u = normalised_gradient(
            held, x, residual, grad, c, c_valid, 0, mean, inverse, gamma, beta, slope,
            ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P, EVEN,
        )  # fmt: skip
    sum_u = tl.zeros_like(gamma)
    sum_u_xhat = tl.zeros_like(gamma)
    sum_v = tl.zeros_like(gamma)
    sum_v_xhat = tl.zeros_like(gamma)
    sum_u_v = tl.zeros_like(gamma)
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        if HELD:
            xhat, u = held_xhat, held_u
        else:
            xhat, _, u = normalised_gradient(
                None, x, residual, grad, c, c_valid, at, mean, inverse, gamma, beta, slope,
                ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P, EVEN,
            )  # fmt: skip
        places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        v = cotangent(x_cotangent, places, valid, u, ARITHMETIC, EVEN)
        sum_u += channel_sum(u)
        sum_u_xhat += channel_sum(u * xhat)
        sum_v += channel_sum(v)
        sum_v_xhat += channel_sum(v * xhat)
        sum_u_v += channel_sum(u * v)

    count: tl.constexpr = CHANNELS // GROUPS * HEIGHT * WIDTH
    mean_h = group_sum(gamma * sum_u) / count
    mean_h_xhat = group_sum(gamma * sum_u_xhat) / count
    mean_v = group_sum(sum_v) / count
    mean_v_xhat = group_sum(sum_v_xhat) / count
    u_projected_v = sum_u_v - mean_v * sum_u - mean_v_xhat * sum_u_xhat
    tl.store(weight_shares + row * CHANNELS + c, u_projected_v * inverse, mask=c_valid)
    mean_c = group_sum(w * sum_u) / count
    mean_c -= inverse * (mean_v * mean_h_xhat + mean_h * mean_v_xhat)
    mean_c_xhat = group_sum(w * sum_u_xhat) / count - 2.0 * inverse * mean_v_xhat * mean_h_xhat
    tilt = mean_c_xhat + inverse * group_sum(gamma * u_projected_v) / count
    of_u = w - inverse * gamma * mean_v_xhat
    of_v = inverse * mean_h_xhat
    for at in tl.range(0, END, BLOCK_P, num_stages=2):
        places, valid = entries_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        if HELD:
            xhat, active, u = held_xhat, held_active, held_u
        else:
            xhat, active, u = normalised_gradient(
                None, x, residual, grad, c, c_valid, at, mean, inverse, gamma, beta, slope,
                ARITHMETIC, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P, EVEN,
            )  # fmt: skip
        v = cotangent(x_cotangent, places, valid, u, ARITHMETIC, EVEN)
        store(x_grad, places, valid, (u * of_u - v * of_v - mean_c - xhat * tilt) * inverse, EVEN)
        a = (v - mean_v - xhat * mean_v_xhat) * (gamma * inverse) + xhat * w + b
        if residual_cotangent is not None:
            a += load(residual_cotangent, places, valid, ARITHMETIC, EVEN)
        window, whole = windows_of(c, c_valid, at, CHANNELS, HEIGHT, WIDTH, POOL, LAST, BLOCK_P)
        pooled = tl.sum(through(a, active, slope), 3)[:, :, :, None] * (1.0 / (POOL * POOL))
        store(grad_grad, window, whole, pooled, EVEN)


@triton.jit(do_not_specialize=["set_rows"])
def add_rows(
    weight_shares, bias_shares, weight_grad, bias_grad, set_rows, CHANNELS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias, from what each row of a set gives to them."""
    blocks: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    of_set = (tl.program_id(0) // blocks).to(tl.int64)
    c = (tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    weight_sum = tl.zeros((BLOCK_R, BLOCK_C), weight_grad.dtype.element_ty)
    bias_sum = tl.zeros((BLOCK_R, BLOCK_C), weight_grad.dtype.element_ty)
    for at in tl.range(0, set_rows, BLOCK_R, num_stages=2):
        row = (at + tl.arange(0, BLOCK_R))[:, None]
        places = (of_set * set_rows + row) * CHANNELS + c
        valid = (row < set_rows) & (c < CHANNELS)
        weight_sum += tl.load(weight_shares + places, mask=valid, other=0.0)
        if bias_shares is not None:
            bias_sum += tl.load(bias_shares + places, mask=valid, other=0.0)
    to = of_set * CHANNELS + c
    tl.store(weight_grad + to, tl.sum(weight_sum, 0)[None, :], mask=c < CHANNELS)
    if bias_shares is not None:
        tl.store(bias_grad + to, tl.sum(bias_sum, 0)[None, :], mask=c < CHANNELS)
