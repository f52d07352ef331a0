"""Which rows a step takes depends on ids, seed and step alone, and keeps what a rule demands."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.order import batches_from, epoch_batches, order, share, steps_of_epoch

classes = st.lists(st.booleans(), min_size=1, max_size=60)


def named(n: int) -> list[str]:
    return [f"row-{i}" for i in range(n)]


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 9), even=st.booleans())
def test_an_epoch_takes_every_row_once_in_the_order_of_its_hashes(n, size, seed, even):
    made = epoch_batches(named(n), size=size, seed=seed, epoch=1, even=even)
    assert [i for rows in made for i in rows] == order(named(n), seed=seed, epoch=1).tolist()
    assert len(made) == steps_of_epoch(named(n), size=size, even=even)
    sizes = [len(rows) for rows in made]
    if even:
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= min(size, n)
    else:
        assert sizes == [size] * (n // size) + [n % size] * (n % size > 0)


@settings(deadline=None, max_examples=100)
@given(labels=classes, size=st.integers(1, 20))
def test_every_step_has_both_classes_where_each_has_as_many_rows_as_there_are_steps(labels, size):
    n = len(labels)
    made = epoch_batches(named(n), size=size, seed=0, epoch=0, labels=labels)
    assert sorted(i for rows in made for i in rows) == list(range(n))
    assert len(made) == steps_of_epoch(named(n), size=size, even=True)
    kinds = [{labels[i] for i in rows} for rows in made]
    if min(sum(labels), n - sum(labels)) >= len(made):
        assert kinds == [{True, False}] * len(made)
        assert all(len(rows) >= min(size, n) - 1 for rows in made)
    else:
        with pytest.raises(ValueError, match="desirable, for"):
            next(batches_from(0, named(n), size=size, seed=0, labels=labels))


def test_too_few_rows_of_a_class_are_refused_with_the_batch_size_that_would_do():
    labels = [i % 10 == 0 for i in range(40)]
    with pytest.raises(ValueError, match=r"of 40 rows 4 are desirable, for 10 steps: set batch_size to 9 or more"):
        next(batches_from(0, named(40), size=4, seed=0, labels=labels))
    epoch = epoch_batches(named(40), size=9, seed=0, epoch=0, labels=labels)
    assert [sum(labels[i] for i in rows) for rows in epoch] == [1, 1, 1, 1]
    assert next(batches_from(0, named(40), size=9, seed=0, labels=labels)) == epoch[0].tolist()


@settings(deadline=None, max_examples=40)
@given(labels=classes, size=st.integers(1, 9), step=st.integers(0, 30), seed=st.integers(0, 9))
def test_a_resumed_run_takes_the_steps_that_it_would_have_taken(labels, size, step, seed):
    options = {"size": size, "seed": seed, "even": True}
    whole = batches_from(0, named(len(labels)), **options)
    taken = [next(whole) for _ in range(step + 1)]
    assert next(batches_from(step, named(len(labels)), **options)) == taken[-1]


def test_a_new_row_moves_no_other_in_the_ranking():
    before = [named(30)[i] for i in order(named(30), seed=3, epoch=0)]
    after = [named(31)[i] for i in order(named(31), seed=3, epoch=0)]
    assert [name for name in after if name != "row-30"] == before


@settings(deadline=None, max_examples=60)
@given(tokens=st.lists(st.integers(1, 500), max_size=40), world=st.integers(1, 8))
def test_each_row_of_a_step_is_run_by_one_process_and_none_has_much_more_than_another(tokens, world):
    shares = [share(tokens, rank, world) for rank in range(world)]
    assert sorted(i for rows in shares for i in rows) == list(range(len(tokens)))
    loads = [sum(tokens[i] for i in rows) for rows in shares]
    assert max(loads) - min(loads) <= max(tokens, default=0)
    if len(tokens) >= world:
        assert all(shares)
