from vtalign_jax.wording import counted


def test_a_noun_has_an_s_but_for_one():
    counts = [counted(number, "clip") for number in (0, 1, 2000)]
    assert counts == ["0 clips", "1 clip", "2,000 clips"]
