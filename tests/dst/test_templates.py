import fnmatch

import pytest

from vtalign_jax.dst.templates import fill_glob, fill_path


def test_names_are_filled_in():
    assert fill_path("{dataset}/{a}_{b}.mp4", {"dataset": "d", "a": "x", "b": "y"}) == "d/x_y.mp4"


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{a}.mp4", "../x"),
        ("{a}/x.mp4", ".."),
        ("{a}/x.mp4", "."),
        ("{a}/x.mp4", ""),
        ("{a}{a}/x.mp4", "."),
        ("{a}.mp4", "/etc/passwd"),
        ("{a}.mp4", "x\\y"),
        ("{a}.mp4", "x\0y"),
    ],
)
def test_values_that_would_leave_their_place_in_the_path_are_refused(template, value):
    with pytest.raises(ValueError, match=r"slash|part"):
        fill_path(template, {"a": value})


def test_only_the_templates_own_star_stands_for_any_name():
    pattern = fill_glob("[x]?/*/{a}.mp4", {"a": "u*[1]"})
    assert fnmatch.fnmatchcase("[x]?/any/u*[1].mp4", pattern)
    assert not fnmatch.fnmatchcase("x1/any/u*[1].mp4", pattern)
    assert not fnmatch.fnmatchcase("[x]?/any/uu1.mp4", pattern)
