import pathlib

import pyarrow as pa
import pytest
from etils import epath

from vtalign_jax.dst import mapped
from vtalign_jax.dst.mapped import open_mapped


def _write(path):
    table = pa.table({"row": list(range(1000))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return table


def test_a_file_of_this_machine_is_mapped_not_copied(tmp_path):
    table = _write(tmp_path / "t.arrow")
    before = pa.total_allocated_bytes()
    for path in (tmp_path / "t.arrow", str(tmp_path / "t.arrow"), epath.Path(tmp_path) / "t.arrow"):
        read = pa.ipc.open_file(open_mapped(path)).read_all()
        assert read.equals(table)
        assert pa.total_allocated_bytes() == before


def test_a_file_elsewhere_is_read_through_epath(tmp_path, monkeypatch):
    class Bucket(pathlib.PurePosixPath):
        def __str__(self):
            return f"gs://bucket/{self.name}"

        def open(self, mode):
            return (tmp_path / self.name).open(mode)

    table = _write(tmp_path / "t.arrow")
    monkeypatch.setattr(mapped.epath, "Path", Bucket)
    assert pa.ipc.open_file(open_mapped("gs://bucket/t.arrow")).read_all().equals(table)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"missing\.arrow"):
        open_mapped(tmp_path / "missing.arrow")
