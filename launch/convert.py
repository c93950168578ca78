"""Write a base model in a form that every process of a pod reads its own rows of, for fast starts.

    python launch/convert.py --base=HuggingFaceTB/SmolVLM2-2.2B-Instruct --out=bases/smolvlm2
    python launch/train.py --config=configs/pretrain.py --config.model.base=bases/smolvlm2

The folder can stand wherever a base's directory can, for any number of tuned blocks and devices,
and what was trained on one is accepted on the other. PyTorch does not read it: exports go back to
the files it was made of.
"""

from absl import flags

from vtalign_jax import commandline
from vtalign_jax.errors import UserError
from vtalign_jax.interop.base_files import CONVERTED, resolve_base
from vtalign_jax.wording import typed_command

_BASE = flags.DEFINE_string("base", "", "directory or hub id of the base model")
_OUT = flags.DEFINE_string(
    "out", "", "folder to write, on a disk that the pod's machines share, or in a bucket"
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a converted base that is there")


def main() -> None:
    """Convert."""
    # Imported here because --help needs none of it.
    import jax

    from vtalign_jax.interop import converted, weights
    from vtalign_jax.interop.folders import new_folder

    jax.config.update("jax_platforms", "cpu")  # nothing is computed: leave the accelerator alone
    with new_folder(_OUT.value, CONVERTED, overwrite=_OVERWRITE.value) as folder:
        directory = resolve_base(_BASE.value)
        if (directory / CONVERTED).is_file():
            raise UserError(f"{directory} is converted already; use it as it is")
        arrays = weights.views(directory)
        size = sum(array.nbytes for array in arrays.values()) / 1e9
        _say(f"writing {size:.1f} GB from {directory}; a disk takes some 10 s a GB")
        converted.write(folder, arrays, directory, _BASE.value)
    _say(f"wrote {_OUT.value}")
    run = weights.run_file(weights.read_config(directory))
    given = f"--config={run}", f"--config.model.base={_OUT.value}"
    _say(f"next: {typed_command('train', *given)}")


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    commandline.run(main, required=("base", "out"))
