import json

import pytest

from vtalign_jax.errors import UserError
from vtalign_jax.interop.embedding_files import EMBED, EMBED_SCRIPT
from vtalign_jax.interop.forms import FORMS, MERGED, PEFT, SENTENCE_TRANSFORMERS
from vtalign_jax.interop.programs import refuse_programs


def test_a_script_that_is_not_ours_is_not_run(tmp_path):
    (tmp_path / EMBED).write_bytes(EMBED_SCRIPT.read_bytes())
    refuse_programs(tmp_path, FORMS[PEFT])
    (tmp_path / EMBED).write_bytes(EMBED_SCRIPT.read_bytes() + b"import os\n")
    with pytest.raises(UserError, match=r"embed\.py is none of this version's programs"):
        refuse_programs(tmp_path, FORMS[PEFT])


def test_a_class_that_is_not_the_librarys_is_not_made(tmp_path):
    file = tmp_path / "modules.json"
    file.write_text(json.dumps([{"idx": 0, "type": "sentence_transformers.models.Pooling"}]))
    refuse_programs(tmp_path, FORMS[SENTENCE_TRANSFORMERS])
    file.write_text(json.dumps([{"idx": 0, "type": "modeling.Module"}]))
    with pytest.raises(UserError, match=r"names 'modeling\.Module'"):
        refuse_programs(tmp_path, FORMS[SENTENCE_TRANSFORMERS])
    file.unlink()
    (tmp_path / "0").mkdir()
    router = {"types": {"text": "os.system"}}
    (tmp_path / "0" / "router_config.json").write_text(json.dumps(router))
    with pytest.raises(UserError, match=r"names 'os\.system'"):
        refuse_programs(tmp_path, FORMS[SENTENCE_TRANSFORMERS])


def test_any_other_program_in_an_export_is_named(tmp_path):
    (tmp_path / "modeling.py").write_text("")
    with pytest.raises(UserError, match=r"modeling\.py is none"):
        refuse_programs(tmp_path, FORMS[SENTENCE_TRANSFORMERS])


@pytest.mark.parametrize(
    ("name", "shard", "is_safe"),
    [
        ("model.safetensors.index.json", "model-1-of-1.safetensors", True),
        ("model.safetensors.index.json", "model-1-of-1.weights", False),
        ("transformer/pytorch_model.bin.index.json", "model-1-of-1.safetensors", False),
    ],
)
def test_an_index_names_safetensors_alone(tmp_path, name, shard, is_safe):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    if is_safe:
        refuse_programs(tmp_path, FORMS[MERGED])
    else:
        with pytest.raises(UserError, match=r"index\.json may be a pickle"):
            refuse_programs(tmp_path, FORMS[MERGED])


@pytest.mark.parametrize("name", ["adapter_model.bin", "1_Dense/pytorch_model.bin", "head.pkl"])
def test_pickled_weights_are_refused(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    for form in (PEFT, MERGED, SENTENCE_TRANSFORMERS):
        refuse_programs(tmp_path, FORMS[form])
    file.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{name} may be a pickle.*: remove it"):
        refuse_programs(tmp_path, FORMS[PEFT])
