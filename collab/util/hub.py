"""The Hugging Face hub: says what is looked for there, and does not wait for a hub that cannot be reached."""

from __future__ import annotations

import functools
import sys

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


def _say(text: str) -> None:
    if rank() == 0:
        print(f"note: {text}", flush=True)
