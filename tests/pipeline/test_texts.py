import numpy as np
import pytest

from tests.pipeline.clip_fixtures import make_clip, write_dataset
from vtalign_jax.config import DataConfig
from vtalign_jax.errors import UserError
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.texts import cut_texts, evaluation_identity, padded_length, with_parent


def test_a_node_without_parent_is_its_name():
    assert with_parent("{parent}: {name}", "build car", "push") == "build car: push"
    assert with_parent("{parent}: {name}", "", "push") == "push"


@pytest.mark.parametrize("template", ["{parent}: {nme}", "{", "{0}", "{name.x}"])
def test_a_template_with_another_field_is_refused_even_without_a_parent(template):
    with pytest.raises(UserError, match=r"config\.data\.parent_text"):
        with_parent(template, "", "push")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    named = [
        ("a", "attach wheel", "build car"),
        ("b", "attach wheel", "build truck"),
        ("c", "attach wheel", "Build the car"),  # the same after normalisation
        ("d", "attach wheel", ""),
        ("e", "lift", "build car"),
    ]
    clips = [
        make_clip(uid, "S1", 9.0, text, parent_text=parent, text_key=f"key of {text}")
        for uid, text, parent in named
    ]
    write_dataset(directory, {"val": clips})
    return open_split(str(directory), "val")


def equal_texts(split, identity):
    """Return the uids that share each text."""
    of_text = {}
    for uid, text in zip(split.table["uid"].to_pylist(), identity.text.tolist(), strict=True):
        of_text.setdefault(text, set()).add(uid)
    return sorted(map(sorted, of_text.values()))


def test_texts_are_the_same_by_the_nodes_names_unless_parents_are_shown(split):
    assert equal_texts(split, split.identity) == [["a", "b", "c", "d"], ["e"]]
    assert evaluation_identity(split, DataConfig()) is split.identity


def test_shown_parents_make_equal_names_other_texts_and_change_nothing_else(split):
    found = evaluation_identity(split, DataConfig(eval_parent_text=True))
    assert equal_texts(split, found) == [["a", "c"], ["b"], ["d"], ["e"]]
    assert found.text.dtype == np.int32
    for field in set(found._fields) - {"text"}:
        assert getattr(found, field) is getattr(split.identity, field)


def test_a_template_without_the_parent_gives_the_names_texts(split):
    found = evaluation_identity(split, DataConfig(eval_parent_text=True, parent_text="{name}"))
    assert equal_texts(split, found) == [["a", "b", "c", "d"], ["e"]]


def test_texts_that_are_cut_and_become_equal_are_counted_once_each():
    def encode(text, most):
        ids = np.array([ord(letter) for letter in text], np.int32)
        return ids if most is None else ids[:most]

    texts = ["push", "push left", "push lever", "push", "lift", "lift the box", "turn around"]
    assert cut_texts(texts, encode, 6) == (4, 2)
    assert cut_texts(texts, encode, 4) == (4, 3)
    assert cut_texts(texts, encode, 20) == (0, 0)


@pytest.mark.parametrize(
    ("most", "has_parents", "expected"),
    [(64, False, 16), (64, True, 32), (12, False, 12), (20, True, 20)],
)
def test_texts_are_padded_to_the_longest_that_may_be_shown(split, most, has_parents, expected):
    def encode(text, most_tokens):
        assert most_tokens is None
        return np.zeros(len(text))

    assert max(map(len, split.texts)) == len("attach wheel")
    data = DataConfig(max_text_tokens=most)  # "Build the car: attach wheel" has 27 letters
    assert padded_length(split, encode, data, has_parents=has_parents) == expected
