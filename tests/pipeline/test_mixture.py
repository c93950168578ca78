import fractions

import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.mixture import describe, epoch_counts

SIZES = {"a": 300, "b": 1000, "c": 40}


def counts(weights, *sizes):
    return epoch_counts(dict(zip("abc", sizes, strict=False)), weights)


def test_without_weights_an_epoch_takes_everything():
    assert epoch_counts(SIZES, "") == epoch_counts(SIZES, " ") == [300, 1000, 40]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("1,1,0", [300, 300, 0]),
        ("0.5, 0.25, 0.25", [80, 40, 40]),
        ("3,10,0.4", [300, 1000, 40]),  # in proportion
        ("0,1e-3,0", [0, 1000, 0]),
    ],
)
def test_weights_are_shares_of_the_longest_epoch_without_a_clip_twice(weights, expected):
    assert epoch_counts(SIZES, weights) == expected


@pytest.mark.parametrize("sizes", [(7, 11, 13), (1, 1, 1), (100, 99, 98), (5, 10**6, 17)])
@pytest.mark.parametrize("weights", ["1,1,1", "0.7,0.2,0.1", "1,2,3", "1/3,1/3,1/3"])
def test_shares_hold_to_the_clip_no_dataset_is_overdrawn_and_one_more_would_not_fit(sizes, weights):
    found = counts(weights, *sizes)
    shares = [fractions.Fraction(part) for part in weights.split(",")]
    exact = [sum(found) * share / sum(shares) for share in shares]
    assert all(abs(n - wanted) < 1 + 1e-9 for n, wanted in zip(found, exact, strict=True))
    assert all(n <= size for n, size in zip(found, sizes, strict=True))
    longer = [(sum(found) + 1) * share / sum(shares) for share in shares]
    assert any(n > size for n, size in zip(longer, sizes, strict=True))


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ("1,1", "must give each dataset .* a number .* in this order: a, b, c"),
        ("1,-1,1", ">= 0"),
        ("0,0,0", "not all of them 0"),
        ("1,x,1", "not comma-separated numbers"),
        ("1,nan,1", "not comma-separated numbers"),
        ("1,,1", "not comma-separated numbers"),
        ("1,1/0,1", "not comma-separated numbers"),
    ],
)
def test_wrong_weights_are_named(weights, why):
    with pytest.raises(UserError, match=rf"config\.data\.weights .*{why}"):
        epoch_counts(SIZES, weights)


def test_a_share_of_a_dataset_without_clips_is_refused():
    with pytest.raises(UserError, match="gives b a share, but it has no clips"):
        counts("1,1", 5, 0)
    assert counts("1,0", 5, 0) == [5, 0]
    assert counts("", 5, 0) == [5, 0]


def test_the_line_says_what_is_taken_and_what_there_is():
    assert describe(SIZES, [300, 500, 0]) == (
        "300 clips of a, 500 of 1,000 clips of b, 0 of 40 clips of c"
    )
