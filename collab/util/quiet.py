"""What libraries say in every run, and nobody can act on, is left out; whatever else they say stays.

A line belongs here only if it is true of every run alike, so that it tells nothing of this one.
"""

from __future__ import annotations

import logging
import warnings

# Beginnings of log lines of Lightning.
_LINES = (
    "💡 Tip:",  # advertises Lightning's own logging services
    "GPU available:",  # nothing to act on; that a GPU is there and not used is a warning, which stays
    "TPU available:",
    "LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES:",  # the only process, or the first: says what `trainer.devices` asked for
    "`Trainer(val_check_interval=1)` was configured",  # repeats `trainer.val_every`
    "Initializing distributed: GLOBAL_RANK:",  # what the launcher was asked for
    "-" * 100 + "\ndistributed_backend=",  # ours tells how many processes there are
    "Restoring states from the checkpoint path at",  # which is told already
    "Restored all states from the checkpoint at",
    "`Trainer.fit` stopped: `max_epochs=1` reached.",  # the regular end: a run is one pass over its schedule of goals
)
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)

# Regular expressions for the beginnings of warnings.
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch: theirs to change
    r"`is_gradient_checkpointing` is deprecated",  # peft's use of transformers: theirs to change
    # The training loader begins where the checkpoint was made.
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable",
    r"Using `DistributedSampler` with the dataloaders",  # conversations are gathered, and each goal counts once
    # Meant so: the policy plays in eval mode, and `training_step` puts it into training mode for its update alone.
    r"Found \d+ module\(s\) in eval mode at the start of training",
)


def quiet() -> None:
    """Leave out the lines above. Imports transformers; calling it again changes nothing."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_tells)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    # "Loading weights" comes at every evaluation and breaks into our own bars. The switch also hides the hub's bars of
    # downloads, which may take long: those stay as they were.
    downloads = not are_progress_bars_disabled()
    disable_progress_bar()
    if downloads:
        enable_progress_bars()


def _tells(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().startswith(_LINES)
