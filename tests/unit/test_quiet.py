"""What is left out of a run's output, and what has to stay in it."""

import logging
import warnings

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from transformers.utils import logging as transformers_logging

from collab.util.quiet import LOGGERS, keeps, quiet


def put_back():
    transformers_logging.enable_progress_bar()
    for name in LOGGERS:
        logging.getLogger(name).removeFilter(keeps)


@pytest.fixture(autouse=True)
def as_libraries_are():
    put_back()  # a test before this one may have started a run in this process
    with warnings.catch_warnings():
        yield
    put_back()


def said(caplog, text):
    logger = logging.getLogger(LOGGERS[0])
    logger.addHandler(caplog.handler)
    try:
        rank_zero_info(text)
    finally:
        logger.removeHandler(caplog.handler)
    return text in caplog.messages


def test_lines_of_every_run_are_left_out_and_others_stay(caplog):
    tip = "💡 Tip: For seamless cloud logging and experiment tracking, try installing something."
    assert said(caplog, tip)
    caplog.clear()
    quiet()
    assert not said(caplog, tip)
    assert not said(caplog, "`Trainer.fit` stopped: `max_epochs=1` reached.")
    assert said(caplog, "`Trainer.fit` stopped: No training batches.")


def test_known_warnings_are_left_out_and_others_stay():
    quiet()
    with warnings.catch_warnings(record=True) as caught:  # keeps the filters
        rank_zero_warn("Found 7 module(s) in eval mode at the start of training. This may lead to unexpected behavior.")
        rank_zero_warn(
            "You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable."
        )
        rank_zero_warn("GPU available but not used.")
    assert [str(warning.message) for warning in caught] == ["GPU available but not used."]


def test_bars_of_loading_go_and_bars_of_downloads_stay():
    quiet()
    assert not transformers_logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()
