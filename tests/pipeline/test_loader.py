import json
import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from data.dst_clips.write import Listeners, Machines
from data.dst_clips.write import write_dataset as prepare
from tests.index_video import constant_ticks, read_index, write_video
from tests.pipeline.clip_fixtures import (
    FRAMES,
    FakeTokenizer,
    make_clip,
    make_clips,
    write_dataset,
)
from vtalign_jax.config import resolve
from vtalign_jax.dst.plan import Settings, make_plan
from vtalign_jax.errors import UserError
from vtalign_jax.interop.tiny import write_tiny_checkpoint
from vtalign_jax.interop.tokens import ClipTokenizer
from vtalign_jax.pipeline.dataset import open_split
from vtalign_jax.pipeline.loader import Batches, make_eval_loader, make_loader
from vtalign_jax.pipeline.transforms import decode_frame

ROOT = pathlib.Path(__file__).parents[2]
BATCH, STEPS = 16, 4  # 60 clips: the last step of an epoch has 12 rows


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    clips = make_clips(recordings=6, nodes=5, cameras=2)
    for clip in clips[::2]:
        clip["parent_text"] = "parent"
    broken = [make_clip("u", f"S{n}", 5.0, "x", frames=[b"no picture"] * FRAMES) for n in (0, 1)]
    write_dataset(directory, {"train": clips, "val": broken}, shards=2)
    return str(directory)


@pytest.fixture(scope="module")
def split(data_dir):
    return open_split(data_dir, "train")


def make_config(workers=0, batch=BATCH, **train):
    data = {
        "frames": FRAMES,
        "max_text_tokens": 24,
        "workers": workers,
        "parent_text_probability": 0.5,
    }
    train = {"contrastive_batch": batch, "eval_batch": 16, "seed": 3, **train}
    return resolve({"data": data, "train": train})


def load(split, config=None, start_step=0, num_steps=STEPS, process=0, count=1, train=True):
    return make_loader(
        split,
        FakeTokenizer(),
        config or make_config(),
        start_step=start_step,
        num_steps=num_steps,
        process_index=process,
        process_count=count,
        train=train,
    )


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def concatenated(batches):
    return jax.tree.map(lambda *rows: np.concatenate(rows), *batches)


def test_a_row_is_the_record_that_its_identity_names(split):
    is_parented = []
    for _, batch in load(split, num_steps=2 * STEPS):
        for row in np.flatnonzero(batch.identity.row_mask):
            record = split.record(int(batch.identity.record[row]))
            text = FakeTokenizer.text(batch.text_ids[row], batch.text_mask[row])
            assert text in (record.text, f"parent: {record.text}")
            is_parented.append(text != record.text)
            shown = [decode_frame(frame, 24, 24) for frame in record.frames]
            np.testing.assert_array_equal(batch.frames[row], shown)
            for field in ("recording", "uid", "text", "node", "window"):
                values = getattr(split.identity, field)[batch.identity.record[row]]
                np.testing.assert_array_equal(getattr(batch.identity, field)[row], values)
    assert 0 < sum(is_parented) < len(is_parented) / 2


def test_every_clip_comes_once_an_epoch_and_the_last_step_is_padded(split):
    steps, records = [], []
    for step, batch in load(split):
        steps.append(step)
        records.append(batch.identity.record)
        np.testing.assert_array_equal(batch.identity.row_mask, batch.identity.record >= 0)
    assert steps == list(range(STEPS))
    np.testing.assert_array_equal(np.sort(np.concatenate(records)), [-1] * 4 + list(range(60)))
    np.testing.assert_array_equal(records[-1][12:], [-1] * 4)


def test_padding_rows_are_marked_in_every_field_and_keep_one_token(split):
    *_, (_, batch) = load(split)
    padding = jax.tree.map(lambda values: values[12:], batch)
    assert not padding.frames.any()
    assert not padding.frame_mask.any()
    assert (padding.clip_mask.sum(1) == 1).all()
    assert (padding.text_mask.sum(1) == 1).all()
    assert not padding.identity.row_mask.any()
    for field in ("record", "recording", "uid", "level", "order", "node", "ancestors", "text"):
        assert (getattr(padding.identity, field) == -1).all()
    assert not padding.identity.window.any()
    assert not padding.identity.span.any()


def test_shapes_and_types_are_the_same_in_every_step(split):
    described = {
        jax.tree.map(lambda values: (values.shape, values.dtype), batch)
        for _, batch in load(split, num_steps=5)
    }
    (batch,) = described
    assert batch.frames == ((16, 4, 24, 24, 3), np.uint8)
    assert batch.clip_ids == ((16, 7), np.int32)
    assert batch.text_ids == ((16, 24), np.int32)
    assert batch.identity.ancestors == ((16, 3), np.int32)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_any_number_of_processes_gives_the_same_global_batches(split, count, train):
    alone = load(split, train=train)
    parts = [load(split, process=p, count=count, train=train) for p in range(count)]
    for (step, whole), *slices in zip(alone, *parts, strict=True):
        assert {part_step for part_step, _ in slices} == {step}
        assert_equal(whole, concatenated([batch for _, batch in slices]))


@pytest.mark.parametrize("start", [1, 4, 6])
def test_a_restart_at_any_step_continues_with_the_same_batches(split, start):
    through = list(load(split, num_steps=8))[start:]
    for (step, batch), (again_step, again) in zip(
        through, load(split, start_step=start, num_steps=8 - start), strict=True
    ):
        assert step == again_step
        assert_equal(batch, again)


def test_a_batch_that_processes_cannot_share_names_sizes_that_they_can(split):
    with pytest.raises(UserError, match=r"train.contrastive_batch is 30 .* 4 processes; 28 or 32"):
        load(split, make_config(batch=30), count=4)
    with pytest.raises(UserError, match=r"train.eval_batch is 2 .* 4 processes; 4 can"):
        load(split, make_config(eval_batch=2), count=4, train=False)


def test_evaluation_sees_every_record_once_in_order_with_plain_texts(split):
    batches = [batch for _, batch in make_eval_loader(split, FakeTokenizer(), make_config())]
    whole = concatenated(batches)
    np.testing.assert_array_equal(whole.identity.record[:60], np.arange(60))
    assert len(batches) == 4
    np.testing.assert_array_equal(np.flatnonzero(~whole.identity.row_mask), np.arange(60, 64))
    texts = map(FakeTokenizer.text, whole.text_ids[:60], whole.text_mask[:60])
    assert list(texts) == split.texts


def test_no_steps_give_no_batches(split):
    assert list(load(split, num_steps=0)) == []


def test_a_record_that_cannot_be_decoded_ends_the_loader_with_its_name(data_dir):
    broken = open_split(data_dir, "val")
    with pytest.raises(UserError, match=r"clip u/S. in .*val.*: .*prepare the dataset again"):
        next(load(broken))


def test_a_worker_ended_from_outside_is_told_in_one_line(data_dir, split):
    def killed():
        raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. Search")
        yield

    loader = load(split)
    loader.close()
    broken = Batches(killed(), loader._identity, loader._chunks, None)
    with pytest.raises(UserError, match=r"config\.data\.workers .* \(.*exit code -9\), .*fewer"):
        next(broken)


def test_closing_ends_the_threads_and_the_iteration(split):
    before = set(threading.enumerate())
    loader = load(split, num_steps=10**6)
    next(loader)
    assert set(threading.enumerate()) - before
    loader.close()
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    assert list(loader) == []


def test_worker_processes_give_the_same_batches_and_errors(data_dir, split):
    # 40 rows: three chunks of seven a worker, so that both padding and the order of chunks matter
    threads, workers = (load(split, make_config(n, batch=40), num_steps=6) for n in (0, 2))
    for (step, batch), (worker_step, from_workers) in zip(threads, workers, strict=True):
        assert step == worker_step
        assert type(from_workers.frames) is np.ndarray
        assert_equal(batch, from_workers)
    with pytest.raises(UserError, match="clip u/S"):
        next(load(open_split(data_dir, "val"), make_config(workers=1)))


SCRIPT = """
    import os, signal, sys
    from multiprocessing import active_children
    from tests.pipeline.clip_fixtures import FakeTokenizer
    from tests.pipeline.test_loader import load, make_config
    from vtalign_jax.pipeline.dataset import open_split

    if __name__ == "__main__":
        loader = load(open_split({data_dir!r}, "train"), make_config({workers}), num_steps=10**6)
        next(loader)
        {end}
"""


def run_script(tmp_path, data_dir, workers, end):
    script = tmp_path / "script.py"
    text = SCRIPT.format(data_dir=data_dir, workers=workers, end=end)
    script.write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_program_that_ends_while_loading_exits_in_silence(tmp_path, data_dir):
    done = run_script(tmp_path, data_dir, 0, "sys.exit(5)")
    assert (done.returncode, done.stderr) == (5, "")


def test_workers_told_to_terminate_go_on_until_their_parent_ends(tmp_path, data_dir):
    end = (
        "[os.kill(worker.pid, signal.SIGTERM) for worker in active_children() for _ in (1, 2)];"
        "[next(loader) for _ in range(50)]; sys.exit(5)"
    )
    done = run_script(tmp_path, data_dir, 1, end)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr


def test_workers_of_a_killed_program_end(tmp_path, data_dir):
    # The workers hold the pipe of stderr open: reading it to its end waits for them.
    done = run_script(tmp_path, data_dir, 1, "os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -9


def test_prepared_video_arrives_frame_by_frame_with_the_base_models_tokens(tmp_path):
    write_video(tmp_path / "v.mp4", constant_ticks(300, 30))
    nodes = [
        {"type": "step", "id": "S1", "start_ts": 5, "end_ts": 5, "name": "attach wheel"},
        {"type": "step", "id": "S2", "start_ts": 0, "end_ts": 1, "name": "at the start"},
    ]
    (tmp_path / "train.json").write_text(json.dumps([{"video_uid": "v", "dst": nodes}]))
    settings = Settings(f"{tmp_path}/train.json", str(tmp_path), image_size=96, frames=4)
    prepare(make_plan(settings), str(tmp_path / "out"), Machines(), Listeners())
    write_tiny_checkpoint(tmp_path / "base")
    tokenizer = ClipTokenizer(tmp_path / "base")
    split = open_split(str(tmp_path / "out"), "train")
    ((_, batch),) = make_eval_loader(split, tokenizer, make_config())
    whole, cut = (split.texts.index(text) for text in ("attach wheel", "at the start"))
    assert batch.frames.shape[1:] == (4, tokenizer.image_size, tokenizer.image_size, 3)
    shown = [read(frame) for frame in batch.frames[whole]]
    assert shown == [105, 135, 165, 195]  # 3.5, 4.5, 5.5, 6.5 s at 30 a second
    assert [read(frame) for frame in batch.frames[cut, :3]] == [0, 30, 60]
    assert batch.frame_mask[cut].tolist() == [True, True, True, False]
    clip = tokenizer.encode_clip([1.5, 2.5, 3.5], 4.0)  # 0, 1 and 2 s; the window begins at -1.5 s
    np.testing.assert_array_equal(batch.clip_ids[cut][batch.clip_mask[cut]], clip)


def read(frame):
    return read_index(Image.fromarray(frame), squashed_from=(128, 96))
