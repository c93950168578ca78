"""Same texts weigh 0: EPIC-KITCHENS-100's validation set, from its CSV to weights of batches."""

import numpy as np
import pytest

from tests.epic_kitchens import FRAMES, SEGMENTS, SIZE, prepare_validation
from tests.pipeline.clip_fixtures import FakeTokenizer
from vtalign_jax.config import resolve
from vtalign_jax.dst.identity import text_key
from vtalign_jax.objectives.negatives import class_weights, pair_classes
from vtalign_jax.pipeline.loader import make_loader

pytestmark = pytest.mark.samples

BATCH = 512


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return prepare_validation(tmp_path_factory.mktemp("epic"))


def test_every_pair_of_equal_texts_of_an_epoch_weighs_nothing_but_a_clip_with_itself(split):
    config = resolve(
        {
            "data": {"frames": FRAMES, "max_text_tokens": 256},
            "train": {"contrastive_batch": BATCH},
        }
    )
    weights = class_weights(config.objective)
    batches = make_loader(
        split,
        FakeTokenizer(SIZE),
        config,
        start_step=0,
        num_steps=-(-SEGMENTS // BATCH),
        process_index=0,
        process_count=1,
        train=True,
    )
    seen, same, elsewhere = 0, 0, 0
    for _, batch in batches:
        real = np.flatnonzero(batch.identity.row_mask)
        shown = [FakeTokenizer.text(batch.text_ids[row], batch.text_mask[row]) for row in real]
        keys = np.array([text_key(text) for text in shown])
        classes = pair_classes(batch.identity, batch.identity, config.objective)
        w = weights[np.asarray(classes)][np.ix_(real, real)]
        is_same = (keys[:, None] == keys[None, :]) & ~np.eye(len(real), dtype=bool)
        assert not w[is_same].any()
        np.testing.assert_array_equal(np.diag(w), 1.0)
        recordings = batch.identity.recording[real]
        is_foreign = recordings[:, None] != recordings[None, :]
        np.testing.assert_array_equal(w[is_foreign & ~is_same], 1.0)
        seen, same = seen + len(real), same + is_same.sum()
        elsewhere += (is_same & is_foreign).sum()
    assert seen == len(split) == SEGMENTS
    assert same > 5000
    assert elsewhere > 0.8 * same  # which nothing but the text tells
