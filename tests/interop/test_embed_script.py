"""`embed.py` of an export where nothing else of the project is installed."""

import functools
import importlib.metadata
import json

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from tests.commands import run
from tests.hidden_packages import hiding
from tests.interop.checkpoints import export_unverified, make_config, write_base, write_checkpoint
from vtalign_jax.dst.images import FITS, ROTATIONS, make_square
from vtalign_jax.interop.forms import MERGED, PEFT
from vtalign_jax.training import trained

_NEEDED = ("torch", "transformers", "peft", "pillow", "numpy")
_SCRIPT = """
import json, sys
import numpy as np
from safetensors.numpy import load_file
from embed import Embedder
inputs, stored = json.load(open("certificate.json")), load_file("certificate.safetensors")
embedder = Embedder(".")
clips = zip(inputs["times"], inputs["windows"])
z_video = [embedder.clip(stored[f"clip_{k}"], *x).numpy() for k, x in enumerate(clips)]
z_text = [embedder.text(text).numpy() for text in inputs["texts"]]
spread = embedder.clip(stored["clip_0"], window_seconds=inputs["windows"][0]).numpy()
print(json.dumps([
    float(np.abs(np.stack(z_video) - stored["z_video"]).max()),
    float(np.abs(np.stack(z_text) - stored["z_text"]).max()),
    float(np.abs(spread - z_video[0]).max()),
    sorted(hidden & set(sys.modules)),
]))
"""


@pytest.fixture(scope="module")
def export_of(tmp_path_factory):
    """A function that exports in a form, once; frames are turned and cropped."""
    folder = tmp_path_factory.mktemp("embed")
    workdir = write_checkpoint(folder / "run", make_config(write_base(folder / "base", "smolvlm")))

    @functools.cache
    def make(form):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trained, "SQUARE", {"fit": "center_crop", "rotate": 90})
            return export_unverified(workdir, folder / form, form)

    return make


@pytest.mark.parity
@pytest.mark.parametrize("form", [PEFT, MERGED])
def test_the_folder_alone_embeds_with_torch_and_transformers(export_of, tmp_path, form):
    hidden = _installed_besides([name for name in _NEEDED if (form, name) != (MERGED, "peft")])
    assert {"jax", "flax", "orbax", "vtalign_jax", "torchvision", "num2words"} <= hidden
    assert ("peft" in hidden) == (form == MERGED)
    folder = str(export_of(form))
    start = f"{hiding(*hidden)}\nimport os\nos.chdir({folder!r})\nsys.path.insert(0, {folder!r})"
    output = run("-c", start + _SCRIPT)
    *errors, leaked = json.loads(output.splitlines()[-1])
    assert max(errors) < 1e-5
    assert leaked == []


@pytest.mark.parity
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("rotate", ROTATIONS)
def test_frames_are_made_square_bit_by_bit_as_prepare_makes_them(fit, rotate):
    from vtalign_jax.interop.torch_scripts.embed import _square

    rng = np.random.default_rng(0)
    for shape in ((40, 71), (71, 40), (33, 33), (64, 64), (200, 65), (3, 90)):
        frame = rng.integers(0, 256, (*shape, 3), np.uint8)
        ours = make_square(Image.fromarray(frame), 64, fit, rotate)
        theirs = _square(frame, {"image_size": 64, "fit": fit, "rotate": rotate})
        np.testing.assert_array_equal(np.asarray(theirs), np.asarray(ours))


def test_it_has_at_most_60_lines_and_is_the_same_in_both_forms(export_of):
    scripts = {(export_of(form) / "embed.py").read_text() for form in (PEFT, MERGED)}
    assert len(scripts) == 1
    assert len(scripts.pop().splitlines()) <= 60


def _installed_besides(needed):
    """Return the import names of all installed packages that these do not bring along."""
    kept, waiting = set(), [canonicalize_name(name) for name in needed]
    while waiting:
        kept.add(name := waiting.pop())
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            other, marker = canonicalize_name(requirement.name), requirement.marker
            is_meant = marker is None or marker.evaluate({"extra": ""})
            if is_meant and other not in kept and _is_installed(other):
                waiting.append(other)
    names = importlib.metadata.packages_distributions()
    return {
        name
        for name, packages in names.items()
        if not kept.intersection(map(canonicalize_name, packages))
    } | {"vtalign_jax"}


def _is_installed(name):
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False
