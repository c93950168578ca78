"""Coverage-guided fuzzing of the parsers, by atheris (libFuzzer).

    python tests/hostile/fuzz_parsers.py WORK [-runs=60000] [-max_total_time=120]

The first byte of an input says which parser gets the rest; the corpus starts from sound files.
Anything but `UserError` ends it with a traceback and the input that led there.
"""

import contextlib
import json
import pathlib
import sys

import atheris

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["vtalign_jax"]):
    from vtalign_jax import json_files
    from vtalign_jax.dst import readers, tree
    from vtalign_jax.dst.step_text import read_step_text
    from vtalign_jax.dst.templates import check_path_template, check_template, fill_path
    from vtalign_jax.errors import UserError
    from vtalign_jax.interop.base_files import file_tensors
    from vtalign_jax.models.configuration import SmolVLMConfig

WORK = pathlib.Path(sys.argv[1])


def _annotations(data: bytes) -> None:
    file = WORK / "train.json"
    file.write_bytes(data)
    rows, skips = readers.read_annotations(str(file))
    checked = tree.build_videos(rows)
    nodes = sum(len(row.nodes) for row in rows)
    if nodes:
        assert checked.videos or checked.skips, "nodes are neither used nor reported"
    json.dumps([skip.reason for skip in skips + checked.skips])


def _step_text(data: bytes) -> None:
    read_step_text(data.decode("utf-8", "surrogateescape"))


def _safetensors(data: bytes) -> None:
    file = WORK / "model.safetensors"
    file.write_bytes(data)
    for tensor in file_tensors(file).values():
        if 0 not in tensor.shape:
            assert tensor.array().nbytes <= len(data)


def _config(data: bytes) -> None:
    try:
        values = json_files.loads(data)
    except ValueError:
        return
    if isinstance(values, dict):
        SmolVLMConfig.from_hf(values)


def _template(data: bytes) -> None:
    text, _, uid = data.decode("utf-8", "replace").partition("\n")
    check_template(text, {"uid"}, "path_template", "uid_pattern")
    check_path_template(text, "path_template")
    try:
        path = fill_path(text, {"uid": uid})
    except ValueError:
        return
    assert not pathlib.PurePath(path).is_absolute()
    assert ".." not in pathlib.PurePath(path).parts


PARSERS = (_annotations, _step_text, _safetensors, _config, _template)


def one_input(data: bytes) -> None:
    """Give an input to the parser that it names."""
    if data:
        with contextlib.suppress(UserError):
            PARSERS[data[0] % len(PARSERS)](data[1:])


def _write_corpus(folder: pathlib.Path) -> None:
    node = {"id": "S1", "type": "step", "start_ts": 1, "end_ts": "00:00:02.5", "name": "take"}
    steps = {"steps": [{"step_id": "S1", "name": "x", "timestamps": {"start_ts": 0, "end_ts": 1}}]}
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    config = {"model_type": "smolvlm", "vision_config": {"hidden_size": 64}, "text_config": {}}
    samples = {
        0: [
            json.dumps([{"video_uid": "u", "dst": [node]}]).encode(),
            json.dumps({"video_uid": "u", "dst": steps}).encode(),
            b"type\tid\tstart_ts\tend_ts\tname\nstep\tS1\t0\t1\ttake",
            b"narration_id,video_id,start_timestamp,stop_timestamp,narration\nn,u,0,1,take",
        ],
        1: [b'[1.0s-2.0s] take\n - [1.5s] put (mistake: "x")\nSummary: y\n - [1s] user: "a"'],
        2: [len(header).to_bytes(8, "little") + header + bytes(8)],
        3: [json.dumps(config).encode()],
        4: [b"{uid}/a.mp4\nu1", b"*/{uid}\n.."],
    }
    folder.mkdir()
    for parser, found in samples.items():
        for number, data in enumerate(found):
            (folder / f"{parser}-{number}").write_bytes(bytes([parser]) + data)


if __name__ == "__main__":
    _write_corpus(WORK / "corpus")
    options = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(WORK / "corpus"), *options, *sys.argv[2:]], one_input)
    atheris.Fuzz()
