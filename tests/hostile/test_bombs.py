"""Small files that claim, or unpack to, more than a machine has: refused by what they say."""

import io
import json
import resource
import zipfile
import zlib

import pyarrow as pa
import pytest
from PIL import Image

from tests.index_video import constant_ticks, write_video
from tests.pipeline.clip_fixtures import make_clips, write_dataset
from vtalign_jax.dst import video
from vtalign_jax.dst.arrow import ArrowFrames
from vtalign_jax.dst.faults import FrameError
from vtalign_jax.dst.images import open_picture
from vtalign_jax.errors import UserError
from vtalign_jax.evaluation.report import sample
from vtalign_jax.interop.base_files import base_fingerprint, stored_tensors
from vtalign_jax.interop.weights import read_config
from vtalign_jax.pipeline.dataset import open_split

_MOST = 2**28  # bytes that refusing one of them may take


@pytest.fixture(autouse=True)
def little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < _MOST


def _png(width, height):
    def chunk(kind, data):
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    body = zlib.compress(bytes(10**7))
    parts = (chunk(b"IHDR", size + b"\x08\x02\0\0\0"), chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_picture_of_many_pixels():
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG")
    jpeg = bytearray(stream.getvalue())
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    for data in (_png(60000, 60000), _png(2**31 - 1, 2**31 - 1), bytes(jpeg)):
        with pytest.raises(ValueError, match="too large"):
            open_picture(data)


def test_a_video_of_many_pixels(tmp_path, monkeypatch):
    write_video(tmp_path / "v.mp4", constant_ticks(5, 10))
    video.VideoFile(str(tmp_path / "v.mp4")).close()
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(FrameError):
        video.VideoFile(str(tmp_path / "v.mp4"))


def _write_arrow(path, column, writer, **options):
    schema = pa.schema([("frame", column.type)])
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.OSFile(str(path), "wb") as file, writer(file, schema, options=options) as stream:
        stream.write_batch(pa.record_batch([column], schema=schema))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_arrow_rows_that_unpack_to_many_bytes(tmp_path, codec):
    rows = pa.array([bytes(2**20)] * 4, pa.binary())
    _write_arrow(tmp_path / "a.arrow", rows, pa.ipc.new_stream, compression=codec)
    with pytest.raises(FrameError, match="compressed record batches"):
        ArrowFrames(str(tmp_path / "a.arrow"), 30.0)
    _write_arrow(tmp_path / "b.arrow", rows, pa.ipc.new_stream)
    assert ArrowFrames(str(tmp_path / "b.arrow"), 30.0).duration > 0


def test_arrow_lengths_that_no_file_has(tmp_path):
    _write_arrow(tmp_path / "a.arrow", pa.array([b"x" * 99], pa.binary()), pa.ipc.new_stream)
    sound = (tmp_path / "a.arrow").read_bytes()
    for place in range(8, len(sound) - 8, 4):
        huge = sound[:place] + b"\xff\xff\xff\x7f" + sound[place + 4 :]
        (tmp_path / "a.arrow").write_bytes(huge)
        try:
            frames = ArrowFrames(str(tmp_path / "a.arrow"), 30.0)
        except FrameError:
            continue
        list(frames.frames_at([0.1]))
        frames.close()


def test_a_compressed_table_of_a_dataset(tmp_path):
    written = write_dataset(tmp_path, {"train": make_clips(1, 2, 1)})
    file = written / "clips-train.arrow"
    table = pa.ipc.open_file(file).read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_file(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    with pytest.raises(UserError, match="compressed record batches"):
        open_split(str(tmp_path), "train")


@pytest.mark.parametrize("size", [10**11, 2**40, 2**64 - 1])
def test_a_safetensors_header_of_many_bytes(tmp_path, size):
    file = tmp_path / "model.safetensors"
    file.write_bytes(size.to_bytes(8, "little") + b"{}")
    with file.open("r+b") as stream:
        stream.truncate(min(size + 8, 2**42))  # as long as it says: holes take no room
    for read in (stored_tensors, base_fingerprint):
        with pytest.raises(UserError, match="its header is said to take"):
            read(tmp_path)


def test_a_tensor_larger_than_its_file(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(UserError, match="a is cut off"):
        stored_tensors(tmp_path)


def test_an_archive_that_unpacks_to_many_bytes(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / sample.FILE, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("z_video.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(2**20))
    assert (tmp_path / sample.FILE).stat().st_size < 2**20
    with pytest.raises(UserError, match="more than 256 MiB"):
        sample.read(tmp_path)


def test_json_of_many_bytes(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"a": "' + b"x" * (33 * 2**20) + b'"}')
    with pytest.raises(UserError, match="more than 32 MiB"):
        read_config(tmp_path)
