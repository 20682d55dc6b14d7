"""Shared fixtures. No test may reach the network or take more than the two cores that the figures are for."""

import gc
import os

# Before any import of torch, wandb or huggingface_hub, which read them once.
os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch's threads, here and in processes that a test starts

from contextlib import suppress
from pathlib import Path

import pytest

with suppress(ImportError):  # an environment for the GPU check has no hypothesis, and runs no test that needs it
    from hypothesis import settings

    # The same cases each time, and no limit in time, since the machine may be busy. `make test-all` takes `thorough`.
    settings.register_profile("usual", max_examples=50, deadline=None, derandomize=True)
    settings.register_profile("thorough", settings.get_profile("usual"), max_examples=300)
    settings.load_profile("usual")

# What the newest versions of libraries say of each other: no argument of ours avoids it. Any other FutureWarning fails.
_OF_OTHERS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch
    r"`is_gradient_checkpointing` is deprecated",  # peft's use of transformers
)


def pytest_collection_finish() -> None:
    gc.freeze()  # no collection looks at what is imported, which is most of what there is
    gc.set_threshold(20_000, 20, 20)  # nor so often at what tests keep


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Marks win over the ini file and over `-W error::FutureWarning`.
    for item in items:
        for message in _OF_OTHERS:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}:FutureWarning"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct; the first use on a machine converts it, about 15 s."""
    from collab.lm.smollm2 import smollm2_folder

    return smollm2_folder()


@pytest.fixture(scope="session")
def tiny_model(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama in fp32 with SmolLM2's chat template, as a folder; loads in no time.

    Its tokenizer has the first tokens of SmolLM2's: a run loads it several times, and all 49,152 take long.
    """
    from models import keep_tokens, tiny_lm
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    keep_tokens(folder / "tokenizer.json", 8192)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 2048, "initializer_range": 0.02}
    tiny_lm(len(tokenizer), tie_word_embeddings=True, **sizes, **special).save_pretrained(folder)
    return folder
