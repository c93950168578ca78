import shutil

import jax
import numpy as np
import pytest

import vtalign_jax as vt
from tests.interop.checkpoints import FRAMES, make_config, write_base, write_checkpoint
from vtalign_jax import export
from vtalign_jax.errors import UserError
from vtalign_jax.interop import certificate
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.sharding import make_mesh
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.trained import load_trained

TEXTS = ["attach wheel", "detach the second wheel from the chassis", "screw", "x " * 200, "turn it"]
FLOAT32 = {"compute_dtype": "float32", "frozen_dtype": "float32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("base"), "smolvlm")


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("run"), make_config(base, model=FLOAT32))


@pytest.fixture(scope="module")
def aligner(workdir):
    return vt.Aligner.load(workdir)


def _clips(count=3, height=40, width=56, frames=FRAMES):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, frames, height, width, 3), np.uint8)


def test_embeddings_are_float32_of_unit_norm(aligner):
    for z in (aligner.encode_clips(_clips()), aligner.encode_texts(TEXTS)):
        assert z.dtype == np.float32
        assert z.shape[1] == 24
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-6)
    assert aligner.encode_texts([]).shape == (0, 24)
    assert aligner.encode_clips(_clips(0)).shape == (0, 24)
    assert aligner.temperature == pytest.approx(0.05)


def test_an_embedding_does_not_depend_on_the_batch_around_it(aligner):
    clips = _clips()
    together, texts = aligner.encode_clips(clips), aligner.encode_texts(TEXTS * 4)
    for i, clip in enumerate(clips):
        np.testing.assert_allclose(aligner.encode_clips(clip[None])[0], together[i], atol=1e-5)
    for i, text in enumerate(TEXTS):  # alone: other padding, other bucket
        np.testing.assert_allclose(aligner.encode_texts([text])[0], texts[i], atol=1e-5)
        np.testing.assert_allclose(texts[i + 15], texts[i], atol=1e-5)


def test_a_masked_frame_counts_for_nothing_and_moves_no_other(aligner):
    clips, mask = _clips(), np.array([[False, True, True, True]] * 3)
    other = clips.copy()
    other[:, 0] = 255 - other[:, 0]
    masked = aligner.encode_clips(clips, mask)
    np.testing.assert_array_equal(aligner.encode_clips(other, mask), masked)
    assert np.abs(aligner.encode_clips(clips) - masked).max() > 0.01
    evenly = aligner.encode_clips(clips[:, 1:])  # the same frames at other times
    assert np.abs(evenly - masked).max() > 1e-4


def test_a_clips_window_is_its_own_and_by_default_that_of_the_clips_trained_on(aligner):
    clips = _clips()
    by_default, longer = aligner.encode_clips(clips), aligner.encode_clips(clips, None, 9.0)
    np.testing.assert_array_equal(aligner.encode_clips(clips, window_seconds=4.0), by_default)
    assert np.abs(longer - by_default).max() > 1e-4
    each = aligner.encode_clips(clips, window_seconds=[4.0, 9.0, 4.0])
    np.testing.assert_allclose(each[[0, 2]], by_default[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(each[1], longer[1], atol=1e-5)


def test_order_of_frames_pictures_and_texts_change_the_embedding(aligner):
    clips = _clips()
    z = aligner.encode_clips(clips)
    assert np.abs(aligner.encode_clips(clips[:, ::-1]) - z).max() > 0.01
    assert np.max(z @ z.T - np.eye(3)) < 0.999
    texts = aligner.encode_texts(TEXTS)
    assert np.max(texts @ texts.T - np.eye(5)) < 0.999


def test_a_text_s_embedding_is_the_head_s_of_its_last_token(aligner, workdir):
    trained = load_trained(workdir)
    assembly = assemble(trained.config)
    _, frozen = load(assembly, make_mesh(trained.config.mesh))
    model = assembly.bind({**frozen, **trained.params})
    text = TEXTS[1]
    ids = ClipTokenizer(assembly.directory).encode_text(text)[None]

    @jax.jit
    def embed(ids):
        hidden = model.base.hidden_states(ids, np.ones(ids.shape, bool))
        return model.project_texts(hidden[:, -1])

    np.testing.assert_allclose(aligner.encode_texts([text]), embed(ids), atol=1e-5)


def test_a_checkpoint_and_an_export_give_the_workdir_s_embeddings(
    aligner, workdir, tmp_path, monkeypatch
):
    monkeypatch.setattr(certificate, "missing_packages", lambda: ["torch"])
    export.export_peft(workdir, tmp_path / "out", say=lambda line: None)
    other, clips = vt.Aligner.load(tmp_path / "out"), _clips(3)
    np.testing.assert_array_equal(other.encode_texts(TEXTS), aligner.encode_texts(TEXTS))
    np.testing.assert_array_equal(other.encode_clips(clips), aligner.encode_clips(clips))
    shutil.copytree(workdir / "checkpoints" / "7", tmp_path / "moved")
    moved, trained = load_trained(tmp_path / "moved"), load_trained(workdir)
    jax.tree.map(np.testing.assert_array_equal, moved.params, trained.params)


def test_bfloat16_is_close_and_few_shapes_are_compiled(workdir, aligner):
    half = vt.Aligner.load(workdir, dtype="bfloat16")
    for count in (4, 5, 7, 8, 6):
        texts = (TEXTS * 2)[:count]
        cosines = np.sum(half.encode_texts(texts) * aligner.encode_texts(texts), axis=1)
        assert cosines.min() > 0.99
    assert half._texts._cache_size() <= 2


def test_mistakes_are_named(aligner, workdir):
    for frames, mask, message in (
        (_clips().astype(np.float32), None, "uint8"),
        (_clips()[0], None, "uint8"),
        (_clips(), np.ones((3, 2), bool), "frame_mask is"),
        (_clips(), np.zeros((3, 4), bool), "clip 0 has no valid frame"),
    ):
        with pytest.raises(UserError, match=message):
            aligner.encode_clips(frames, mask)
    for windows, message in (
        ([4.0, 5.0], r"window_seconds are \[2\], there are 3 clips"),
        (0.0, "must be above 0"),
        ([4.0, float("nan"), 4.0], "must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            aligner.encode_clips(_clips(), window_seconds=windows)
    with pytest.raises(UserError, match="list of texts"):
        aligner.encode_texts("attach wheel")
    with pytest.raises(UserError, match="dtype"):
        vt.Aligner.load(workdir, dtype="int8")
    with pytest.raises(UserError, match="no such checkpoint"):
        vt.Aligner.load(workdir / "nothing")
    with pytest.raises(UserError, match="no base model"):
        vt.Aligner.load(workdir, base="./nowhere")
