import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.store import BatchOrder


def _rows(order: BatchOrder, epoch: int) -> list[int]:
    found: list[int] = []
    for number, chunks in enumerate(order.windows(epoch)):
        slots = order.window_slots(epoch, number, chunks)
        found += list(
            chunks[slots // order.chunk_rows] * order.chunk_rows + slots % order.chunk_rows
        )
        assert order.window_length(chunks) == len(slots)
    return found


@settings(max_examples=50, deadline=None)
@given(
    sequences=st.integers(1, 60),
    context=st.integers(2, 9),
    per_chunk=st.integers(1, 5),
    window=st.integers(1, 7),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_an_epoch_is_a_permutation_of_all_rows_but_position_0(
    sequences: int, context: int, per_chunk: int, window: int, seed: int, epoch: int
) -> None:
    order = BatchOrder(sequences * context, per_chunk * context, context, 4, window, seed)
    wanted = [r for r in range(sequences * context) if r % context]
    assert sorted(_rows(order, epoch)) == wanted


def test_orders_differ_by_seed_and_epoch_and_repeat_exactly() -> None:
    orders = [BatchOrder(4096, 64, 8, 16, 8, seed) for seed in (0, 0, 1)]
    assert _rows(orders[0], 0) == _rows(orders[1], 0)
    assert _rows(orders[0], 0) != _rows(orders[2], 0)
    assert _rows(orders[0], 0) != _rows(orders[0], 1)


def test_rows_of_a_window_are_mixed() -> None:
    """Neighbours in the batch must not be neighbours in the text."""
    rows = np.array(_rows(BatchOrder(64 * 512, 512, 8, 16, 16, 0), 0))
    assert np.mean(np.abs(np.diff(rows)) < 8) < 0.02
