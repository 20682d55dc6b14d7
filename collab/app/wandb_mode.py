"""Whether a run is logged to W&B online, offline or not at all: by the config, the environment and `wandb login`."""

from __future__ import annotations

import functools
import time
from typing import Any

import wandb
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth

from collab.config.schema import Config
from collab.util.errors import BadInput, first_line
from collab.util.network import unreachable, within
from collab.util.processes import rank

_SECONDS = 10.0  # to wait for the server, in all


@functools.cache
def wandb_mode(wanted: str) -> tuple[str, str]:
    """How this run is logged to W&B.

    W&B's own settings (`WANDB_MODE`, `wandb offline`) may only restrict what the config wants. With a key, the first
    process asks the server whether it takes it, for 10 s at most; the others, which log nothing, are offline.

    Args:
        wanted: `logger.wandb`.

    Returns:
        "online", "offline" or "disabled"; and why a run with a key is offline, or "".

    Raises:
        BadInput: W&B refuses its own settings; for "online", there is no key that the server takes.
    """
    if wanted == "disabled":
        return "disabled", ""
    settings = _settings()
    if settings.mode == "disabled":
        return "disabled", ""
    if wanted == "offline" or settings.mode in ("offline", "dryrun") or rank() > 0:
        return "offline", ""
    url = str(settings.base_url)
    problem, key = "there is none", None
    try:
        # As `wandb.login` looks for it: the environment, netrc, the settings. Asks nobody and changes nothing.
        key = wbauth.authenticate_session(host=url, source="collab", prompt=False, update_session=False)
        if key is not None:
            if away := _unreachable(url, key):
                return "offline", away
            return "online", ""
    except wandb.Error as error:
        problem = first_line(error)
    if wanted == "online":
        raise BadInput(
            f"logger.wandb=online needs a key that {url} takes: {problem}. Run `wandb login`, set WANDB_API_KEY, or "
            "set logger.wandb=offline."
        )
    return "offline", "" if problem == "there is none" else f"{url} does not take the key: {problem}"


def offline_note(config: Config) -> str:
    """What to say of a run that has a key and is logged offline; "" of every other one."""
    why = wandb_mode(config.logger.wandb)[1]
    sync = f"`wandb sync {config.output_dir}/wandb/offline-run-*`"
    return why and f"{why}. The run is logged offline; afterwards, {sync}."


def _settings() -> Any:
    """W&B's settings, from its environment and its files."""
    try:
        return wandb_setup.singleton().settings
    except (ValueError, wandb.Error) as error:
        lines = " ".join(str(error).split())
        raise BadInput(
            f"W&B refuses its own settings: {lines[:300]}. Correct the variables WANDB_... of the environment, or set "
            "logger.wandb=disabled."
        ) from error


def _unreachable(url: str, key: wbauth.Auth) -> str:
    """Why the server cannot be asked; "" if it takes the key. Raises `wandb.Error` if it refuses the key."""
    began = time.monotonic()
    try:
        problem = unreachable(url, _SECONDS / 2)
    except BadInput as error:  # proxy or certificates; no reason to refuse the run
        return str(error).removesuffix(".")
    if problem:
        return f"{url} cannot be reached: {problem}"
    try:
        within(_SECONDS - (time.monotonic() - began), key.verify)
    except TimeoutError:
        return f"{url} does not say within {_SECONDS:g} s whether it takes the key"
    return ""
