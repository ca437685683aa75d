"""Arrays of keys and codes say the same as lists of texts."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, strategies as st

from prefect_augment.storage.keys import (
    KEY,
    Coded,
    group_ids,
    hex_column,
    key_texts,
    pairs_of_equals,
    ranks_within,
    shared_names,
    sort_order,
    unhex,
)

# Zeros at the end of a key are where an array of bytes could lose them.
keys = st.lists(
    st.one_of(st.binary(min_size=16, max_size=16), st.sampled_from([bytes(16), b"a" + bytes(15)])),
    max_size=30,
)


@given(found=keys)
def test_keys_go_to_text_and_back(found: list[bytes]) -> None:
    texts = [key.hex() for key in found]
    array = unhex(pa.array(texts, pa.string()))
    assert hex_column(array).to_pylist() == texts == key_texts(array)
    assert unhex(pa.chunked_array([pa.array(texts, pa.string()).slice(1)])).tolist() == (
        array[1:].tolist()
    )


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="not 32 hexadecimal digits"):
        unhex(pa.array(["abc"]))


@given(found=keys)
def test_keys_sort_and_group_as_their_texts_do(found: list[bytes]) -> None:
    array = np.array(found, dtype=KEY)
    texts = [key.hex() for key in found]
    assert [texts[i] for i in sort_order(array)] == sorted(texts)
    ranks = {text: i for i, text in enumerate(sorted(set(texts)))}
    assert group_ids(array).tolist() == [ranks[text] for text in texts]


@given(values=st.lists(st.integers(0, 5), max_size=40))
def test_ranks_count_equal_ones_before(values: list[int]) -> None:
    assert ranks_within(np.array(values, dtype=np.int64)).tolist() == [
        values[:i].count(value) for i, value in enumerate(values)
    ]


@given(
    theirs=st.lists(st.integers(0, 5), max_size=30), ours=st.lists(st.integers(0, 5), max_size=30)
)
def test_each_takes_the_first_equal_one_that_is_left(theirs: list[int], ours: list[int]) -> None:
    rows = [[i for i, v in enumerate(theirs) if v == value] for value in range(6)]
    expected = [rows[value].pop(0) if rows[value] else -1 for value in ours]
    found = pairs_of_equals(np.array(theirs, dtype=np.int64), np.array(ours, dtype=np.int64))
    assert found.tolist() == expected


@given(texts=st.lists(st.text(max_size=3), max_size=20), more=st.lists(st.text(max_size=2)))
def test_coded_texts_come_back_and_share_their_names(texts: list[str], more: list[str]) -> None:
    one, other = Coded.of(texts), Coded.of(more)
    assert list(one) == texts
    assert one.names.tolist() == sorted(set(texts))
    a, b = shared_names(one, other)
    assert (list(a), list(b)) == (texts, more)
    assert a.counts() == {text: texts.count(text) for text in texts}
    assert a.only_used().names.tolist() == sorted(set(texts))
