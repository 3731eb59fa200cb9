import torch

from p2pl.data.examples import Examples

WHOLE = Examples(torch.arange(10.0).view(5, 2), torch.tensor([0, 1, 2, 3, 4]))


def test_a_part_of_a_part_names_rows_of_the_part() -> None:
    part = WHOLE.part(torch.tensor([4, 2, 0])).part(torch.tensor([2, 0]))
    assert len(part) == 2
    assert part.take(torch.tensor([0, 1])).y.tolist() == [0, 4]
    assert part.take(torch.tensor([1])).x.tolist() == [[8, 9]]


def test_a_part_shares_the_data() -> None:
    part = WHOLE.part(torch.tensor([1, 3]))
    assert part.whole.x.data_ptr() == WHOLE.x.data_ptr()
    assert part.part(torch.tensor([0])).whole is part.whole


def test_batches_are_all_rows_in_order_whoever_holds_them() -> None:
    rows = torch.tensor([3, 1, 4])
    part, copy = WHOLE.part(rows), WHOLE.take(rows)
    for source in (part, copy):
        batches = list(source.batches(2))
        assert [len(batch) for batch in batches] == [2, 1]
        assert torch.cat([batch.y for batch in batches]).tolist() == [3, 1, 4]
