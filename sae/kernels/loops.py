"""The inner loops of the CPU backend, compiled by Numba at first use and cached on disk.

Each loop works on a range of rows (or latents) given by `start, stop`, releases the GIL, and
touches no memory outside its own part of the output, so that `cpu.py` may run ranges at once.
Sums are reassociated for SIMD; nothing else of IEEE arithmetic is given up, so a NaN stays one.
"""

import numpy as np
from numba import njit

from sae.kernels.adam import BETA1, BETA2, PULL

FAST = {"reassoc", "contract", "nsz"}
LOW, HIGH = np.int64(-(2**31)), np.int64(2**31 - 1)  # of a key


@njit(nogil=True, cache=True)
def _count_at_least(values, n, bound):
    count = np.int32(0)
    for i in range(n):
        count += np.int32(values[i] >= bound)
    return count


@njit(nogil=True, cache=True)
def _kth_largest(keys, n, k, low, high):
    """The k-th largest of keys[:n], by bisection on its value: no branch depends on the data."""
    while low < high:
        middle = low + (high - low + 1) // 2
        if _count_at_least(keys, n, keys.dtype.type(middle)) >= k:
            low = middle
        else:
            high = middle - 1
    return keys.dtype.type(low)


@njit(nogil=True, cache=True)
def _sortable(bits, b, keys, floats, shift):
    """keys = scores + b as integers in the order of the floats; `floats` is a view of `keys`.

    `bits` are the bits of the scores: all of a float32, or the upper half (a bfloat16).
    """
    for i in range(len(keys)):
        keys[i] = np.int32(bits[i]) << shift
    for i in range(len(keys)):
        floats[i] += b[i]
    for i in range(len(keys)):
        keys[i] ^= (keys[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)


@njit(nogil=True, cache=True)
def _keys_and_maxima(bits_F, b_F, keys_F, floats_F, group_max):
    """Fills `keys_F`, and `group_max` with the largest key of each group.

    Keys are dealt out to groups like cards, a round at a time, while a round is in the cache.
    """
    width, groups = len(keys_F), len(group_max)
    shift = np.int32(32 - 8 * bits_F.itemsize)
    for base in range(0, width, groups):
        end = min(base + groups, width)
        dealt = keys_F[base:end]  # a slice: LLVM vectorises no offset arithmetic here
        _sortable(bits_F[base:end], b_F[base:end], dealt, floats_F[base:end], shift)
        if base == 0:
            group_max[:] = dealt
        else:
            for g in range(end - base):
                key, best = dealt[g], group_max[g]
                group_max[g] = key if key > best else best


@njit(nogil=True, cache=True)
def _largest(keys_F, count, group_max, found, found_keys, out):
    """Writes the positions of the `count` largest keys, in ascending order, to `out`.

    The count-th largest of the groups' maxima bounds the count-th largest key from below, so
    only groups that reach it are looked into.
    """
    width, groups = len(keys_F), len(group_max)
    bound = _kth_largest(group_max, groups, count, LOW, HIGH)
    n = 0
    for g in range(groups):
        if group_max[g] >= bound:
            for i in range(g, width, groups):
                if keys_F[i] >= bound:
                    found[n] = i
                    found_keys[n] = keys_F[i]
                    n += 1
    bound = _kth_largest(found_keys, n, count, np.int64(bound), HIGH)
    above = 0
    for i in range(n):
        above += found_keys[i] > bound
    ties = count - above
    m = 0
    for i in range(n):
        tie = found_keys[i] == bound
        if found_keys[i] > bound or (tie and ties > 0):
            ties -= tie
            out[m] = found[i]
            m += 1


@njit(nogil=True, cache=True, fastmath=FAST)
def _dots(x, W_FD, latents, count, out):
    """out[c] = x · W[latents[c]]; four rows of W at a time, so that their loads overlap."""
    real = W_FD.dtype.type
    c = 0
    while c + 4 <= count:
        w0, w1 = W_FD[latents[c]], W_FD[latents[c + 1]]
        w2, w3 = W_FD[latents[c + 2]], W_FD[latents[c + 3]]
        s0, s1, s2, s3 = real(0), real(0), real(0), real(0)
        for d in range(len(x)):
            s0 += x[d] * w0[d]
            s1 += x[d] * w1[d]
            s2 += x[d] * w2[d]
            s3 += x[d] * w3[d]
        out[c], out[c + 1], out[c + 2], out[c + 3] = s0, s1, s2, s3
        c += 4
    while c < count:
        w, total = W_FD[latents[c]], real(0)
        for d in range(len(x)):
            total += x[d] * w[d]
        out[c] = total
        c += 1


@njit(nogil=True, cache=True)
def select_rows(bits_RF, x_RD, W_FD, b_F, candidates, start, stop, index_RK, pre_RK):
    """The K latents of largest x·W + b of rows [start, stop), and these values.

    `bits_RF` are the bits of the products x·W, as signed integers of their size: the
    `candidates` that look best by them are scored again in float32, and the K best stay.
    """
    width, k = bits_RF.shape[1], index_RK.shape[1]
    groups = min(width, max(2 * candidates, int(np.sqrt(candidates * width)) // 64 * 64))
    keys, group_max = np.empty(width, np.int32), np.empty(groups, np.int32)
    floats = keys.view(np.float32)
    found, found_keys = np.empty(width, np.int32), np.empty(width, np.int32)
    chosen = np.empty(candidates, np.int64)
    scores = np.empty(candidates, W_FD.dtype)
    for r in range(start, stop):
        _keys_and_maxima(bits_RF[r], b_F, keys, floats, group_max)
        _largest(keys, candidates, group_max, found, found_keys, chosen)
        _dots(x_RD[r], W_FD, chosen, candidates, scores)
        for c in range(candidates):
            scores[c] += b_F[chosen[c]]
        left = candidates
        while left > k:  # drop the least; few are in excess
            least = 0
            for c in range(1, left):
                if scores[c] < scores[least]:
                    least = c
            left -= 1
            for c in range(least, left):
                scores[c] = scores[c + 1]
                chosen[c] = chosen[c + 1]
        for c in range(k):
            index_RK[r, c] = chosen[c]
            pre_RK[r, c] = scores[c]


@njit(nogil=True, cache=True, fastmath=FAST)
def gathered_dots(x_BD, W_FD, offsets, indices_N, start, stop, out_N):
    """out[n] = x[b] · W[indices[n]] for the entries n of rows b in [start, stop)."""
    for b in range(start, stop):
        own = slice(offsets[b], offsets[b + 1])
        _dots(x_BD[b], W_FD, indices_N[own], offsets[b + 1] - offsets[b], out_N[own])


@njit(nogil=True, cache=True, fastmath=FAST)
def weighted_sums(values_N, order_N, rows_N, table, offsets, start, stop, out):
    """out[s] = Σ values[order[n]] * table[rows[n]] over the entries n of segment s.

    Four table rows at a time, so that the sum is read and written a quarter as often.
    """
    for s in range(start, stop):
        n, end = offsets[s], offsets[s + 1]
        total = out[s]
        total[:] = 0
        while n + 4 <= end:
            v0, v1 = values_N[order_N[n]], values_N[order_N[n + 1]]
            v2, v3 = values_N[order_N[n + 2]], values_N[order_N[n + 3]]
            t0, t1, t2, t3 = (
                table[rows_N[n]],
                table[rows_N[n + 1]],
                table[rows_N[n + 2]],
                table[rows_N[n + 3]],
            )
            for d in range(len(total)):
                total[d] += v0 * t0[d] + v1 * t1[d] + v2 * t2[d] + v3 * t3[d]
            n += 4
        while n < end:
            v, t = values_N[order_N[n]], table[rows_N[n]]
            for d in range(len(total)):
                total[d] += v * t[d]
            n += 1


@njit(nogil=True, cache=True)
def sort_by_latent(indices_N, offsets_B1, order_N, row_N, offsets_F1):
    """Counting sort of the entries by latent, rows ascending within one."""
    offsets_F1[:] = 0
    for n in range(len(indices_N)):
        offsets_F1[indices_N[n] + 1] += 1
    for f in range(len(offsets_F1) - 1):
        offsets_F1[f + 1] += offsets_F1[f]
    place = offsets_F1[:-1].copy()
    for b in range(len(offsets_B1) - 1):
        for n in range(offsets_B1[b], offsets_B1[b + 1]):
            latent = indices_N[n]
            order_N[place[latent]] = n
            row_N[place[latent]] = b
            place[latent] += 1


@njit(nogil=True, cache=True, fastmath=FAST)
def tangent_square(grad_UD, W_FD, rows_U, start, stop):
    """Σ over rows of ‖g − (g·w) w‖² = ‖g‖² − (g·w)², for rows w of unit norm."""
    total = 0.0
    for u in range(start, stop):
        g, w = grad_UD[u], W_FD[rows_U[u]]
        square = g.dtype.type(0)
        along = g.dtype.type(0)
        for d in range(len(g)):
            square += g[d] * g[d]
            along += g[d] * w[d]
        total += max(0.0, float(square) - float(along) * float(along))
    return total


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")  # no test for division by 0
def _catch_up(w, m, v, slept, step_size, root_correction, eps):
    """What `slept` steps without a gradient would have done to one row (see `adam`)."""
    real = w.dtype.type
    moves = PULL * (1 - PULL**slept) / (1 - PULL)
    size, root, eps_r = real(step_size * moves), real(root_correction), real(eps)
    fade_m, fade_v = real(BETA1**slept), real(BETA2**slept)
    for d in range(len(w)):
        w[d] -= size * m[d] / (np.sqrt(v[d]) * root + eps_r)
        m[d] *= fade_m
        v[d] *= fade_v


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _adam_row(w, g, m, v, scale, step_size, root_correction, eps, unit):
    real = w.dtype.type
    b1, one_b1, b2, one_b2 = real(BETA1), real(1 - BETA1), real(BETA2), real(1 - BETA2)
    size, root, eps_r, factor = real(step_size), real(root_correction), real(eps), real(scale)
    along = real(0)
    if unit:
        for d in range(len(w)):
            along += g[d] * w[d]
    square = real(0)
    for d in range(len(w)):
        gd = (g[d] - along * w[d]) * factor
        md = b1 * m[d] + one_b1 * gd
        vd = b2 * v[d] + one_b2 * gd * gd
        m[d] = md
        v[d] = vd
        wd = w[d] - size * md / (np.sqrt(vd) * root + eps_r)
        w[d] = wd
        square += wd * wd
    if unit and square > 0:
        inverse = real(1) / np.sqrt(square)
        for d in range(len(w)):
            w[d] *= inverse


@njit(nogil=True, cache=True)
def adam_rows(
    W_FD,
    grad_UD,
    m_FD,
    v_FD,
    rows_U,
    slept_U,
    scale,
    step_size,
    root_correction,
    eps,
    unit,
    _seed,
    start,
    stop,
):
    """`adam.adam_rows` on rows_U[start:stop], moments in the precision of W."""
    for u in range(start, stop):
        f = rows_U[u]
        w, m, v = W_FD[f], m_FD[f], v_FD[f]
        if slept_U[u] > 0:
            _catch_up(w, m, v, slept_U[u], step_size, root_correction, eps)
        _adam_row(w, grad_UD[u], m, v, scale, step_size, root_correction, eps, unit)


@njit(nogil=True, cache=True)
def _mixed(x):
    """A hash of 32 bits (the finaliser of MurmurHash3, public domain)."""
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(0x85EBCA6B))
    x ^= x >> np.uint32(13)
    x = np.uint32(x * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(nogil=True, cache=True)
def _load_bfloat16(half, bits):
    for d in range(len(half)):
        bits[d] = np.uint32(half[d]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _store_bfloat16(m_bits, v_bits, m_half, v_half, key):
    """Rounds up with the probability of the share that is cut off: m by the lower half of one
    random word per element, v by its upper half."""
    for d in range(len(m_half)):
        noise = _mixed(np.uint32(key + np.uint32(d) * np.uint32(0x9E3779B9)))
        m_half[d] = np.uint16(np.uint32(m_bits[d] + (noise & np.uint32(0xFFFF))) >> np.uint32(16))
        v_half[d] = np.uint16(np.uint32(v_bits[d] + (noise >> np.uint32(16))) >> np.uint32(16))


@njit(nogil=True, cache=True)
def adam_rows_bfloat16(
    W_FD,
    grad_UD,
    m_FD,
    v_FD,
    rows_U,
    slept_U,
    scale,
    step_size,
    root_correction,
    eps,
    unit,
    seed,
    start,
    stop,
):
    """As `adam_rows`; the moments are the bits of bfloat16, rounded stochastically."""
    width = W_FD.shape[1]
    m_bits, v_bits = np.empty(width, np.uint32), np.empty(width, np.uint32)
    m, v = m_bits.view(np.float32), v_bits.view(np.float32)
    for u in range(start, stop):
        f = rows_U[u]
        w = W_FD[f]
        _load_bfloat16(m_FD[f], m_bits)
        _load_bfloat16(v_FD[f], v_bits)
        if slept_U[u] > 0:
            _catch_up(w, m, v, slept_U[u], step_size, root_correction, eps)
        _adam_row(w, grad_UD[u], m, v, scale, step_size, root_correction, eps, unit)
        key = _mixed(np.uint32(_mixed(np.uint32(seed)) + np.uint32(f)))
        _store_bfloat16(m_bits, v_bits, m_FD[f], v_FD[f], key)
