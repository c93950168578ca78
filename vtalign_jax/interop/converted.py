"""The converted form of a base model: its weights as an Orbax checkpoint, read slice by slice.

A folder with `vtalign_base.json` (what it was made of, the arrays' forms), the base's other files
byte for byte, and `weights`: one array a tensor in the stored dtype, its axes in this package's
order, named `text_model.layers.3.mlp.up_proj.kernel`. Blocks are apart, so that any split of the
decoder into tuned and other blocks reads it, and small chunks let a process read its devices' rows
alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from vtalign_jax import json_files, remote
from vtalign_jax.errors import UserError
from vtalign_jax.interop import base_files
from vtalign_jax.interop.base_files import CONVERTED, read_json

FORMAT = 1  # of vtalign_base.json
WEIGHTS = "weights"
_CHUNK_BYTES = 1 << 22
_CACHE_BYTES = 1 << 26  # slices of several devices may lie in one chunk
_HASHED = ("config.json", "tokenizer.json")  # in the fingerprint too
_AGAIN = "convert it again with launch/convert.py"
_KINDS = {"base": str, "fingerprint": str, "files": dict, "arrays": dict}
_DTYPES = ("float32", "float16", "bfloat16")


class OrbaxTensor:
    """One array of the checkpoint, read when sliced.

    Attributes:
      dtype: of the stored values.
      shape: in this package's order of axes.
    """

    def __init__(self, folder: Path, name: str, context: tensorstore.Context, form: Sequence[Any]):
        self.dtype, self.shape = jnp.dtype(form[0]), tuple(form[1])
        self._folder, self._context = folder, context
        self._spec = {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": {"driver": "file", "path": f"{folder.resolve()}/"},
                "path": f"{name}/",
            },
        }

    def array(self) -> "OrbaxTensor":
        """Return what reads a slice."""
        return self

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        try:
            store = tensorstore.open(self._spec, read=True, open=True, context=self._context)
            return store.result()[index].read().result()
        except ValueError as error:  # TensorStore's for all that it cannot read
            raise _damaged(self._folder, error) from error


def write(folder: Path, arrays: Mapping[str, np.ndarray], directory: Path, base: str) -> None:
    """Write the converted form.

    Args:
      folder: an empty folder.
      arrays: `{name: view of a stored tensor}`, see the module.
      directory: the base's.
      base: what the user called it: a hub id, a directory or "tiny".
    """
    import orbax.checkpoint as ocp  # only writing needs it, and it takes a second

    others = (
        file.name
        for file in sorted(directory.iterdir())
        if file.suffix not in (".safetensors", ".bin") and file.name != base_files.INDEX
    )
    base_files.copy_files(directory, folder, others)
    # The mantissas of weights hardly compress, and reading would be slower by the time it takes.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    arguments = ocp.args.PyTreeSave(
        dict(arrays),
        save_args={name: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES) for name in arrays},
    )
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(epath.Path(folder.resolve()) / WEIGHTS, args=arguments)
    is_path = Path(base).expanduser().is_dir()
    facts = {
        "format": FORMAT,
        "base": str(directory.resolve()) if is_path else base,
        "fingerprint": base_files.base_fingerprint(directory),
        "files": {name: _digest(folder / name) for name in _HASHED if (folder / name).is_file()},
        "arrays": {name: [array.dtype.name, array.shape] for name, array in arrays.items()},
    }
    (folder / CONVERTED).write_text(json.dumps(facts))


def read_facts(directory: Path) -> dict[str, Any]:
    """Return `vtalign_base.json`.

    Raises:
      UserError: it is damaged or of a later version, or a file beside it was changed.
    """
    facts = read_json(directory, CONVERTED)
    if facts.get("format") != FORMAT:
        raise UserError(
            f"{directory / CONVERTED} has format {facts.get('format')!r}, this version reads "
            f"{FORMAT}; update vtalign_jax"
        )
    json_files.require(facts, _KINDS, directory / CONVERTED, _AGAIN)
    for name, form in facts["arrays"].items():
        if not _is_form(form):
            raise UserError(f"{directory / CONVERTED}: {name} has no dtype and shape; {_AGAIN}")
    for name, digest in facts["files"].items():
        if name not in _HASHED:
            raise UserError(f"{directory / CONVERTED}: files names {name!r}; {_AGAIN}")
        if not (directory / name).is_file() or _digest(directory / name) != digest:
            raise UserError(
                f"{directory / name} is not the file that {facts['base']} was converted with; "
                f"{_AGAIN}"
            )
    return facts


def stored_arrays(directory: Path) -> dict[str, OrbaxTensor]:
    """Return every array of a converted base by its name; the weights are not looked at yet.

    Raises:
      UserError: see `read_facts`.
    """
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    return {
        name: OrbaxTensor(Path(directory) / WEIGHTS, name, context, form)
        for name, form in read_facts(directory)["arrays"].items()
    }


def original(base: str) -> str:
    """Return what a converted base was made of, which has Hugging Face's files; others as given.

    Raises:
      UserError: it is no longer there.
    """
    directory = remote.path(base)
    if not (directory / CONVERTED).exists():
        return base
    made_of = read_facts(remote.fetch(base))["base"]
    if made_of.startswith("/") and not Path(made_of).is_dir():
        raise UserError(
            f"{directory} was converted from {made_of}, which is not there any more; exports are "
            "made for Hugging Face's files: give their directory or hub id with --base"
        )
    return made_of


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = str(error).split("\n")[0][:200]
    return UserError(
        f"the converted weights in {folder} are damaged or not whole ({reason}); copy the folder "
        "again, or convert the base again with launch/convert.py"
    )


def _is_form(form: Any) -> bool:
    is_pair = isinstance(form, list) and len(form) == 2 and form[0] in _DTYPES
    return is_pair and isinstance(form[1], list) and all(type(n) is int for n in form[1])


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
