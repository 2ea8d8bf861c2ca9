"""The inner loops of the CPU backend, compiled by Numba at first use and cached on disk.

Each loop works on a range of rows (or latents) given by `start, stop`, releases the GIL, and
touches no memory outside its own part of the output, so that `cpu.py` may run ranges at once.
Sums are reassociated for SIMD; nothing else of IEEE arithmetic is given up, so a NaN stays one.
"""

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}
LOW, HIGH = np.int64(-(2**31)), np.int64(2**31 - 1)  # of a key
NANS = np.int32(0x7FFFFF)  # keys of NaNs with their sign bit set


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
def _cut(keys, n, k, low):
    """(the k-th largest of keys[:n], not below `low`; how many equal to it are among the k)."""
    bound = _kth_largest(keys, n, k, low, HIGH)
    ties = k
    for i in range(n):
        ties -= keys[i] > bound
    return bound, ties


@njit(nogil=True, cache=True)
def _sortable(bits, b, keys, floats, shift):
    """keys = scores + b as integers in the order of the floats; `floats` is a view of `keys`.

    `bits` are the bits of the scores: all of a float32, or the upper half (a bfloat16).
    """
    for i in range(len(keys)):
        keys[i] = np.int32(bits[i]) << shift
    for i in range(len(keys)):
        floats[i] += b[i]
    _order(keys)


@njit(nogil=True, cache=True)
def _order(keys):
    """Makes the bits of floats integers in the order of the floats, NaNs above all, as in torch.

    Of negative floats all bits but the sign are turned. That would put NaNs with their sign bit
    set (what x86 makes of 0 / 0) under −inf: the subtraction takes them below the least integer,
    and so to the other end.
    """
    for i in range(len(keys)):
        keys[i] = (keys[i] ^ ((keys[i] >> np.int32(31)) & np.int32(0x7FFFFFFF))) - NANS


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
    bound, ties = _cut(found_keys, n, count, np.int64(bound))
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
def _keep_best(chosen, scores, keys, index_K, pre_K):
    """The K candidates of largest key, in the order in which they come; of equals the last."""
    left = len(index_K)
    bound, ties = _cut(keys, len(keys), left, LOW)
    for c in range(len(keys) - 1, -1, -1):
        tie = keys[c] == bound
        if keys[c] > bound or (tie and ties > 0):
            ties -= tie
            left -= 1
            index_K[left], pre_K[left] = chosen[c], scores[c]


@njit(nogil=True, cache=True)
def select_rows(bits_RF, x_RD, W_FD, b_F, candidates, start, stop, index_RK, pre_RK):
    """The K latents of largest x·W + b of rows [start, stop), and these values.

    `bits_RF` are the bits of the products x·W, as signed integers of their size: the
    `candidates` that look best by them are scored again in float32, and the K best stay.
    """
    width = bits_RF.shape[1]
    groups = min(width, max(2 * candidates, int(np.sqrt(candidates * width)) // 64 * 64))
    keys, group_max = np.empty(width, np.int32), np.empty(groups, np.int32)
    floats = keys.view(np.float32)
    found, found_keys = np.empty(width, np.int32), np.empty(width, np.int32)
    chosen, again = np.empty(candidates, np.int64), np.empty(candidates, np.int32)
    scores = np.empty(candidates, np.float32)
    for r in range(start, stop):
        _keys_and_maxima(bits_RF[r], b_F, keys, floats, group_max)
        _largest(keys, candidates, group_max, found, found_keys, chosen)
        _dots(x_RD[r], W_FD, chosen, candidates, scores)
        for c in range(candidates):
            scores[c] += b_F[chosen[c]]
        again[:] = scores.view(np.int32)
        _order(again)
        _keep_best(chosen, scores, again, index_RK[r], pre_RK[r])


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


@njit(nogil=True, cache=True, fastmath=FAST)
def decode_residual(acts_N, W_FD, b_D, y_BD, offsets, indices_N, start, stop, residual_BD, dots_N):
    """residual[b] = y[b] − b − Σ acts · W, and dots[n] = residual[b] · W[indices[n]]; returns the
    sum of squares. The dots find the rows of W in the cache, where the sum has just left them.
    """
    total = 0.0
    for row in range(start, stop):
        n, end = offsets[row], offsets[row + 1]
        r, y = residual_BD[row], y_BD[row]
        for d in range(len(r)):
            r[d] = y[d] - b_D[d]
        while n + 4 <= end:
            a0, a1, a2, a3 = acts_N[n], acts_N[n + 1], acts_N[n + 2], acts_N[n + 3]
            w0, w1 = W_FD[indices_N[n]], W_FD[indices_N[n + 1]]
            w2, w3 = W_FD[indices_N[n + 2]], W_FD[indices_N[n + 3]]
            for d in range(len(r)):
                r[d] -= a0 * w0[d] + a1 * w1[d] + a2 * w2[d] + a3 * w3[d]
            n += 4
        while n < end:
            a, w = acts_N[n], W_FD[indices_N[n]]
            for d in range(len(r)):
                r[d] -= a * w[d]
            n += 1
        square = r.dtype.type(0)
        for d in range(len(r)):
            square += r[d] * r[d]
        total += square
        own = slice(offsets[row], end)
        _dots(r, W_FD, indices_N[own], end - offsets[row], dots_N[own])
    return total


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
