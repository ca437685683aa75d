"""How the records of a batch are dealt out to ranks."""

import pytest

torch = pytest.importorskip("torch", reason="the extra 'torch'")

from prefect_augment.nn import ranks  # noqa: E402


def dealt(
    n: int, n_ranks: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[int], float]]:
    """Records and share of each rank."""
    monkeypatch.setattr(ranks, "_joined", True)
    monkeypatch.setattr(ranks.dist, "get_world_size", lambda: n_ranks)
    parts = []
    for rank in range(n_ranks):
        monkeypatch.setattr(ranks.dist, "get_rank", lambda rank=rank: rank)
        (rows, twice), share = ranks.own_part((torch.arange(n), 2 * torch.arange(n)), together)
        assert (twice == 2 * rows).all()
        parts.append((rows.tolist(), share))
    return parts


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize(("n", "n_ranks"), [(64, 2), (64, 3), (11, 4), (10, 1)])
def test_each_record_has_one_rank_and_packs_stay_whole(
    n: int, n_ranks: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = dealt(n, n_ranks, together, monkeypatch)
    assert sorted(i for rows, share in parts if share for i in rows) == list(range(n))
    for rows, share in parts:
        assert share in (0.0, len(rows) / n)
        packs = [
            rows[i : i + together] for i in range(0, len(rows) // together * together, together)
        ]
        assert all(pack == list(range(pack[0], pack[0] + together)) for pack in packs)


def test_a_rank_without_records_computes_on_the_first_ones_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = dealt(3, 4, 2, monkeypatch)
    assert parts == [([0, 1, 2], 1.0), ([0, 1, 2], 0.0), ([0, 1, 2], 0.0), ([0, 1, 2], 0.0)]


def test_a_process_alone_keeps_its_batch() -> None:
    batch = (torch.arange(5),)
    assert ranks.own_part(batch) == (batch, 1.0)
