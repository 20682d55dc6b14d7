"""Hides lines and warnings that libraries print in every run and that no user can act on.

A line belongs here only if every run prints it. All other output stays.
"""

from __future__ import annotations

import logging
import warnings

# Beginnings of log lines of Lightning.
_LINES = (
    "💡 Tip:",  # advertises Lightning's own logging services
    "GPU available:",  # that a GPU is not used is a warning, which stays
    "TPU available:",
    "LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES:",  # repeats `trainer.devices`
    "`Trainer(val_check_interval=1)` was configured",  # repeats `trainer.val_every`
    "Initializing distributed: GLOBAL_RANK:",  # repeats what the launcher was asked for
    "-" * 100 + "\ndistributed_backend=",  # our own line says how many processes there are
    "Restoring states from the checkpoint path at",  # our own line says so
    "Restored all states from the checkpoint at",
    "`Trainer(limit_val_batches=1.0)` was configured",  # the first perplexity of a user model
    "`Trainer.fit` stopped: `max_epochs=1` reached.",  # the regular end of a run
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
)

# Regular expressions for the beginnings of warnings.
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch
    r"`is_gradient_checkpointing` is deprecated",  # peft's use of transformers
    # Our training loader starts at the checkpoint's step.
    r"You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable",
    r"Using `DistributedSampler` with the dataloaders",  # each goal counts once here
    # On purpose: the policy plays in eval mode, and `training_step` puts it into training mode for the update.
    r"Found \d+ module\(s\) in eval mode at the start of training",
)


def quiet() -> None:
    """Hide the lines and warnings above. Imports transformers; calling it again changes nothing."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    for name in LOGGERS:
        logging.getLogger(name).addFilter(keeps)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    # The bar "Loading weights" interrupts our own bars at every evaluation. The switch also hides the hub's bars of
    # downloads, which stay as they were.
    downloads = not are_progress_bars_disabled()
    disable_progress_bar()
    if downloads:
        enable_progress_bars()


def keeps(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not record.getMessage().startswith(_LINES)
