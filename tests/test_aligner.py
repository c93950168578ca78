import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vtalign_jax as vt
from tests.index_video import constant_ticks, decode_all, write_video
from tests.interop.checkpoints import (
    FRAMES,
    export_unverified,
    make_config,
    write_base,
    write_checkpoint,
)
from vtalign_jax import export
from vtalign_jax.clips import Square, check_clips, read_spans
from vtalign_jax.dst.images import make_square
from vtalign_jax.errors import UserError
from vtalign_jax.interop.forms import FORMS, PEFT
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.sharding import make_mesh
from vtalign_jax.training.assemble import assemble, load
from vtalign_jax.training.trained import load_trained

TEXTS = ["attach wheel", "detach the second wheel from the chassis", "screw", "x " * 200, "turn it"]
SIZE = 64  # pixels, of the tiny base
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


@pytest.fixture(scope="module")
def aligners(base, aligner, tmp_path_factory):
    """By how they pool."""
    pooled, longer = FLOAT32 | {"pooling": "mean"}, {"max_text_tokens": 90}
    config = make_config(base, model=pooled, data=longer)
    mean = write_checkpoint(tmp_path_factory.mktemp("mean"), config)
    return {"last": aligner, "mean": vt.Aligner.load(mean)}


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


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_an_embedding_is_the_same_alone_in_a_batch_in_any_bucket_and_padded_on_either_side(
    aligners, pooling
):
    aligner, clips = aligners[pooling], _clips(5)
    uneven = [*clips, clips[0][:1]]  # the last one in a bucket of its own
    together, texts = aligner.encode_clips(uneven), aligner.encode_texts(TEXTS)
    for i, clip in enumerate(uneven):
        np.testing.assert_allclose(aligner.encode_clips([clip])[0], together[i], atol=1e-5)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(aligner.encode_texts([text])[0], texts[i], atol=1e-5)
    (given,) = check_clips(clips[1:2], None, 4.0)
    for function, row, expected in (
        (aligner._clips, aligner._clip_row(given.squared(aligner.square)), together[1]),
        (aligner._texts, aligner._text_row(TEXTS[1]), texts[1]),
    ):
        wide = row._replace(tokens=row.tokens + 48, slots=row.slots and row.slots + 3)
        for by in (0, wide.tokens - len(row.ids)):  # padded on the right, on the left
            ids, mask, *frames = aligner._stack([wide])
            ids, mask = (np.roll(x, by, axis=1) for x in (ids, mask))
            assert mask[0, -1] == (by > 0)
            found = function(aligner._params, ids, mask, *frames)
            np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_a_handful_of_shapes_is_compiled_whatever_comes(aligners):
    aligner = vt.Aligner(aligners["mean"].trained)
    shapes = {"_clips": set(), "_texts": set()}
    for name, seen in shapes.items():  # what would be compiled; nothing is run

        def record(params, *rows, seen=seen):
            seen.add(tuple(x.shape for x in rows))
            return np.zeros((len(rows[0]), 24), np.float32)

        setattr(aligner, name, record)
    for count in range(1, 40):
        aligner.encode_texts([("screw " * (n * count % 50)) + "it" for n in range(count)])
        clips = [_clips(1, 8, 8, 1 + n % 8)[0] for n in range(count)]
        aligner.encode_clips(clips, window_seconds=[0.5 + 1.4 * n for n in range(count)])
    assert len({ids for ids, _ in shapes["_texts"]}) == 6  # 32 and 90 tokens
    assert len(shapes["_clips"]) <= 9
    assert {shape[0][0] for shape in shapes["_clips"] | shapes["_texts"]} == {1, 4, 16}


def test_pictures_of_any_kind_and_size_give_what_their_squares_give(aligner):
    clips = _clips(2)
    expected = aligner.encode_clips(clips)
    pictures = [[Image.fromarray(frame) for frame in clip] for clip in clips]
    np.testing.assert_array_equal(aligner.encode_clips(pictures), expected)
    np.testing.assert_array_equal(aligner.encode_clips(list(map(list, clips))), expected)
    sizes = (pictures[0][0], _clips(1, 90, 30)[0, 1], pictures[0][2].convert("L"))
    squares = [np.asarray(make_square(_picture(x), SIZE, "square", 0)) for x in sizes]
    np.testing.assert_array_equal(
        aligner.encode_clips([sizes, pictures[1]]),
        aligner.encode_clips([np.stack(squares), clips[1]]),
    )
    mask = [[True, False, True], [True] * FRAMES]
    masked = aligner.encode_clips([sizes, pictures[1]], mask)
    np.testing.assert_allclose(masked[1], expected[1], atol=1e-5)
    other = (sizes[0], Image.new("RGB", (9, 5)), sizes[2])
    np.testing.assert_array_equal(aligner.encode_clips([other, pictures[1]], mask), masked)


def _picture(x):
    return x if isinstance(x, Image.Image) else Image.fromarray(x)


def test_frames_are_made_square_as_in_training_unless_asked_otherwise(aligner, workdir):
    trained, clips = load_trained(workdir), _clips(2)
    turned = vt.Aligner(
        trained._replace(facts=trained.facts | {"fit": "center_crop", "rotate": 90})
    )
    squares = np.stack(
        [
            np.stack([np.asarray(make_square(_picture(x), SIZE, "center_crop", 90)) for x in clip])
            for clip in clips
        ]
    )
    expected = aligner.encode_clips(squares)
    np.testing.assert_allclose(turned.encode_clips(clips), expected, atol=1e-6)
    assert np.abs(aligner.encode_clips(clips) - expected).max() > 1e-3
    upright = vt.Aligner(turned.trained, fit="square", rotate=0)
    assert upright.square == aligner.square


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos: 3 s of 20 frames a second, and 2 s of 10."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.mp4", constant_ticks(60, 20), rate=20)
    write_video(folder / "b.mkv", constant_ticks(20, 10), rate=10)
    return folder


def test_a_span_of_a_video_gives_what_its_frames_give(aligner, videos):
    a, b = videos / "a.mp4", str(videos / "b.mkv")
    spans = [(a, 1.0, 2.0), (b, 0.0, 2.0), (a, -1.0, 3.0), (a, 0.5, 1.5), (b, 1.0, 3.0)]
    found = aligner.encode_videos(spans)
    frames = {path: np.stack([np.asarray(x) for x in decode_all(path)]) for path in (a, b)}
    rates = {a: 20, b: 10}
    for z, (path, start, end) in zip(found, spans, strict=True):
        times = start + (np.arange(FRAMES) + 0.5) * (end - start) / FRAMES
        index = np.floor(times * rates[path] + 1e-6).astype(int)
        mask = (index >= 0) & (index < len(frames[path]))
        clip = frames[path][np.clip(index, 0, len(frames[path]) - 1)]
        expected = aligner.encode_clips(clip[None], mask[None], end - start)[0]
        np.testing.assert_allclose(z, expected, atol=1e-5)
    assert np.max(found @ found.T - np.eye(5)) < 0.9999
    fewer = aligner.encode_videos(spans[:1], frames=2)
    shown = frames[a][[25, 35]]
    np.testing.assert_allclose(fewer, aligner.encode_clips(shown[None], None, 1.0), atol=1e-5)
    assert aligner.encode_videos([]).shape == (0, 24)


def test_the_prompt_says_a_spans_whole_seconds_wherever_it_lies(videos):
    spans = [(videos / "a.mp4", 0.1, 4.1), (videos / "a.mp4", -0.1, 1.9)]
    assert 4.1 - 0.1 < 4
    square = Square(8, "square", 0)
    assert [clip.seconds for _, clip in read_spans(spans, FRAMES, square)] == [2.0, 4.0]


def test_many_spans_of_one_video_are_those_alone(aligner, videos):
    spans = [(videos / "a.mp4", 0.13 * n % 2, 0.13 * n % 2 + 0.8) for n in range(20)]
    together = aligner.encode_videos(spans)
    for n in (0, 7, 15, 16, 19):
        np.testing.assert_allclose(together[n], aligner.encode_videos([spans[n]])[0], atol=1e-5)


def test_mistakes_about_videos_are_named(aligner, videos, tmp_path):
    a, text = videos / "a.mp4", tmp_path / "text.mp4"
    text.write_text("no video")
    for spans, message in (
        (str(a), "one path; give a list of"),
        ([a], "span 0 is .*give a list of"),
        ([(a, 1.0)], "span 0 is"),
        ([(a, 2.0, 1.0)], "2.0 to 1.0 s; it needs a length"),
        ([(a, 0.0, float("nan"))], "needs a length"),
        ([(a, 0.0, 1e9)], "at most 86400 s"),
        ([(a, "0", "2")], "span 0, of .*a.mp4, is '0' to '2'; give a list"),
        ([3], "span 0 is 3; give a list"),
        (None, "spans are NoneType; give a list"),
        ([(a, 5.0, 6.0)], r"no frame from 5.0 to 6.0 s, it is 3.00 s long; give a span inside"),
        ([(a, 0.0, 1.0), (videos / "no.mp4", 0.0, 1.0)], r"cannot embed .*no\.mp4"),
        ([(text, 0.0, 1.0)], "cannot embed .*is it a video"),
    ):
        with pytest.raises(UserError, match=message):
            aligner.encode_videos(spans)
    for frames in (0, 2.5, "8"):
        with pytest.raises(UserError, match="frames must be 1 or more, a whole number"):
            aligner.encode_videos([(a, 0.0, 1.0)], frames=frames)


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


def test_a_checkpoint_gives_the_workdir_s_leaves_wherever_it_lies(workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints" / "7", tmp_path / "moved")
    moved, trained = load_trained(tmp_path / "moved"), load_trained(workdir)
    jax.tree.map(np.testing.assert_array_equal, moved.params, trained.params)


def test_a_workdir_in_a_bucket_gives_its_leaves(workdir, bucket, cache):
    bucket.put_folder(workdir, "runs/a")
    there, here = load_trained(f"{bucket.url}/runs/a"), load_trained(workdir)
    assert there.source.startswith(f"checkpoint {bucket.url}/runs/a/checkpoints/7 (the best of")
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    # Orbax marks what is whole there by a file, where on a disk it renames.
    bucket.put("runs/b/checkpoints/7/state/part", b"")
    with pytest.raises(UserError, match=f"no finished checkpoint in {bucket.url}/runs/b"):
        load_trained(f"{bucket.url}/runs/b")


def test_an_export_in_a_bucket_is_read_as_one_on_a_disk_is(workdir, bucket, cache):
    out = f"{bucket.url}/exports/peft"
    export_unverified(workdir, out, PEFT)
    there, here = load_trained(out), load_trained(workdir)
    assert there.source == f"export {out}"
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    with pytest.raises(UserError, match=f"{out} exists; choose another --out"):
        export_unverified(workdir, out, PEFT)


@pytest.mark.parametrize("form", FORMS)
def test_an_export_of_every_form_gives_the_workdir_s_embeddings(
    aligner, workdir, tmp_path, monkeypatch, form
):
    monkeypatch.setattr(export, "Aligner", lambda *_: aligner)
    export_unverified(workdir, tmp_path / "out", form)
    other, clips = vt.Aligner.load(tmp_path / "out"), _clips(1)
    for found, expected in (
        (other.encode_texts(TEXTS[:1]), aligner.encode_texts(TEXTS[:1])),
        (other.encode_clips(clips), aligner.encode_clips(clips)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if form == PEFT else 1e-5)
    assert other.temperature == pytest.approx(aligner.temperature)


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
        (_clips(), np.ones((3, 2), bool), r"frame_mask is bool\[2\] for clip 0 of 4 frames"),
        (_clips(), np.ones((2, 4), bool), "frame_mask is for 2 clips, there are 3"),
        (list(_clips()[0]), None, "clip 0 is a single picture"),
        ([[Image.new("RGB", (4, 4)), "a.jpg"]], None, "frame 1 of clip 0 is str"),
        ([[np.zeros((4, 4), np.uint8)]], None, r"frame 0 of clip 0 is uint8\[4, 4\]"),
        ([[Image.new("I;16", (4, 4))]], None, "mode I;16"),
        ([[]], None, "clip 0 has no valid frame"),
        (Image.new("RGB", (4, 4)), None, "clips are Image"),
        (_clips(), np.zeros((3, 4), bool), "clip 0 has no valid frame"),
        ([[Image.new("RGB", (0, 4))]], None, "frame 0 of clip 0 is empty, 0 x 4 pixels"),
        ([None], None, "clip 0 is NoneType; give a list"),
        (_clips(), True, r"frame_mask is no bool\[B, F\]"),
    ):
        with pytest.raises(UserError, match=message):
            aligner.encode_clips(frames, mask)
    for windows, message in (
        ([4.0, 5.0], r"window_seconds are \[2\], there are 3 clips"),
        (0.0, "must be above 0"),
        (1e9, "at most 86400"),
        ("long", "must be numbers, got 'long'"),
        ([4.0, float("nan"), 4.0], "must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            aligner.encode_clips(_clips(), window_seconds=windows)
    for texts, message in (
        ("attach wheel", "list of texts, got one string"),
        (5, "list of texts, got int"),
        (["attach wheel", None], "text 1 is None, no string"),
        ([b"attach wheel"], "text 0 is b'attach wheel', no string"),
    ):
        with pytest.raises(UserError, match=message):
            aligner.encode_texts(texts)
    with pytest.raises(UserError, match="dtype is one of float32, bfloat16, got 'int8'"):
        vt.Aligner.load(workdir, dtype="int8")
    with pytest.raises(UserError, match="rotate is one of 0, 90, 180, 270, got 45"):
        vt.Aligner.load(workdir, rotate=45)
    with pytest.raises(UserError, match="fit is one of square, center_crop, got 'cover'"):
        vt.Aligner.load(workdir, fit="cover")
    with pytest.raises(UserError, match="no such checkpoint"):
        vt.Aligner.load(workdir / "nothing")
    with pytest.raises(UserError, match="no base model"):
        vt.Aligner.load(workdir, base="./nowhere")
