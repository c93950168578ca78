"""Exports onto the Hugging Face hub."""

import re
from pathlib import Path

from vtalign_jax import remote
from vtalign_jax.errors import UserError
from vtalign_jax.interop.forms import SETTINGS, read_json

_OF_THE_HUB = {".gitattributes"}  # in every repository


def check(repository: str) -> None:
    """Refuse what cannot work, before any work is done.

    Raises:
      UserError: not a repository's name, or nobody is logged in.
    """
    import huggingface_hub  # takes half a second, and only a push needs it

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"--push_to_hub={repository!r} is no repository; give organisation/name")
    if not huggingface_hub.get_token():
        raise UserError("--push_to_hub needs a token; run hf auth login, or set HF_TOKEN")


def warnings(folder: Path) -> list[str]:
    """Return what others than the owner of this machine would miss, a line each."""
    base = read_json(folder, SETTINGS)["base"]
    if not Path(base).is_absolute() and not remote.is_remote(base):
        return []
    return [
        f"the export names {base} as its base model, a folder of yours; export with "
        "--base=organisation/name for others to find it"
    ]


def push(folder: Path, repository: str, *, private: bool, overwrite: bool) -> str:
    """Upload an export in one commit; return its address.

    Args:
      folder: the export.
      repository: `organisation/name`, made if absent.
      private: whether only its owners may see it.
      overwrite: replace an export that is there (its history stays).

    Raises:
      UserError: the repository holds something already, is public where it should be private, or
        the hub refuses.
    """
    import huggingface_hub

    token = huggingface_hub.get_token() or ""
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        found = api.repo_info(repository)
        files = {file.rfilename for file in found.siblings or ()} - _OF_THE_HUB
        _check_free(repository, files, overwrite)
        if private and not found.private:
            raise UserError(f"{repository} exists and is public; make it private on its page first")
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Export of vtalign_jax, {_form(folder)}",
            delete_patterns="*" if files else None,
        )
    except UserError:
        raise
    except Exception as error:  # the client's own, its transport's and the system's
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if token:
            said = said.replace(token, "<token>")
        raise UserError(
            f"cannot push to {repository} on the hub ({said}); the export stays in {folder}, "
            "check name, rights and network, then push it with "
            f"--verify={folder} --push_to_hub={repository}"
        ) from None
    return str(commit.repo_url)


def _check_free(repository: str, files: set[str], overwrite: bool) -> None:
    if files and SETTINGS not in files:
        raise UserError(f"{repository} holds no export (no {SETTINGS}) and is left alone")
    if files and not overwrite:
        raise UserError(f"{repository} holds an export; replace it with --overwrite")


def _form(folder: Path) -> str:
    return read_json(folder, SETTINGS)["form"]
