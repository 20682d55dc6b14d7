"""The Hugging Face hub: names that are looked for there, without a long wait if it is away, and what is put there."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Literal

from collab.util.errors import BadInput, first_line
from collab.util.network import unreachable
from collab.util.processes import rank

_SECONDS = 5.0  # to wait for the hub; its own clients retry for half a minute


@functools.cache
def look_for(name: str) -> None:
    """Call it before `name` is loaded from the hub. Without the hub, this process uses copies on this machine alone.

    Raises:
        BadInput: Certificates or proxy of the environment cannot be used.
    """
    from huggingface_hub import constants

    offline = constants.is_offline_mode()
    what = "an earlier download from the Hugging Face hub" if offline else "it on the Hugging Face hub"
    _say(f"{name} is no path on this machine: looking for {what}.")
    if offline:
        return
    if problem := unreachable(constants.ENDPOINT, _SECONDS):
        _say(f"{constants.ENDPOINT} cannot be reached ({problem}): only earlier downloads are used.")
        constants.HF_HUB_OFFLINE = True
        if datasets := sys.modules.get("datasets"):
            datasets.config.HF_HUB_OFFLINE = True


Kind = Literal["model", "dataset"]


def check_push(repo: str, kind: Kind, private: bool) -> None:
    """Ask the hub whether `push` may put files into a repository, before the work that makes them. Nothing is made.

    Args:
        repo: OWNER/NAME; it need not exist.
        kind: What it holds.
        private: Whether only its owner is to see it.

    Raises:
        BadInput: The hub cannot be reached or used, there is no token, or one that may not write there, or `private` is
            asked for and the repository is public.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    later = f"leave it out, and upload later by `{_command(repo, kind, 'FOLDER', private)}`"
    if constants.is_offline_mode():
        raise BadInput(f"push_to_hub={repo}: HF_HUB_OFFLINE forbids to ask the hub. Unset it, or {later}.")
    if get_token() is None:
        raise BadInput(
            f"push_to_hub={repo}: there is no token of the Hugging Face hub. Log in by `hf auth login`, or put a token "
            f"that may write into HF_TOKEN; or {later}."
        )
    if problem := unreachable(constants.ENDPOINT, _SECONDS):
        raise BadInput(
            f"push_to_hub={repo}: {constants.ENDPOINT} cannot be reached ({problem}). Try again, or {later}."
        )
    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        user = api.whoami()
        try:
            public = not api.repo_info(repo, repo_type=kind).private
        except RepositoryNotFoundError:
            public = False
    except HTTPError as error:
        raise BadInput(
            f"push_to_hub={repo}: the hub refuses the token ({first_line(error)}). Check it, or {later}."
        ) from None
    owners = [user["name"], *(each["name"] for each in user.get("orgs", []))]
    if repo.partition("/")[0] not in owners:
        raise BadInput(
            f"push_to_hub={repo}: the token is of {owners[0]}, who may write to {', '.join(owners)}. Set "
            f"push_to_hub={owners[0]}/{repo.partition('/')[2]}, or take another token."
        )
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise BadInput(f"push_to_hub={repo}: the token may only read. Make one that may write, or {later}.")
    if public and private:
        raise BadInput(
            f"push_to_hub={repo}: this repository is public, and hub_private is true. Name another one, or set "
            "hub_private=false."
        )


def push(folder: Path, repo: str, kind: Kind, private: bool) -> str:
    """Put a folder into a repository of the hub, which is made if it is missing; returns its address.

    Args:
        folder: Its files go to the top of the repository. Other files there stay.
        repo: OWNER/NAME.
        kind: What it holds.
        private: Whether only its owner sees it, if it is made now.

    Raises:
        BadInput: The hub refused, or could not be reached. The message has the command that does it later.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError  # of the HTTP client that it uses

    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        address = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder, commit_message=f"Upload {folder.name}")
    except (HTTPError, OSError) as error:
        raise BadInput(
            f"push_to_hub={repo}: {first_line(error)}. Everything is in {folder}. Put it there by "
            f"`{_command(repo, kind, str(folder), private)}`."
        ) from error
    return str(address)


def _command(repo: str, kind: Kind, folder: str, private: bool) -> str:
    return f"hf upload {repo} {folder} . --repo-type {kind}{' --private' if private else ''}"


def _say(text: str) -> None:
    if rank() == 0:
        print(f"note: {text}", flush=True)
