"""Whether a vLLM server can play the policy, asked before the policy's weights are read."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from collab.config.endpoints import engine_endpoints
from collab.config.policies import HostedPolicy, named_policies, policy_model
from collab.config.schema import Config, ModelConfig, VLLMEngineConfig
from collab.generation.vllm_server import VLLMServer, start_command
from collab.lm.checks import write_initial_adapter
from collab.lm.loading import UNREADABLE, locate
from collab.util.errors import BadInput
from collab.util.hub import look_for
from collab.util.processes import rank

_SAMPLE = "Dear neighbours,\n\nthe lift (built in 1987) stands still on the 12th of May; naïve, isn't it?"


def check_server(config: Config, engine: VLLMEngineConfig, tokenizer: Any, entry: str) -> None:
    """Refuse a vLLM server that cannot play the policy. Of several, each has to be there when a run starts.

    Only log-probs, which the engine compares before the first rollout, show whether its weights are the policy's base.
    """
    for endpoint in engine_endpoints(engine):
        _check_replica(config, engine, VLLMServer(endpoint), tokenizer, entry)


def _check_replica(config: Config, engine: VLLMEngineConfig, server: VLLMServer, tokenizer: Any, entry: str) -> None:
    served, base = server.base(), locate(config.model)[0]
    ids = tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
    differs = _differs(served.root, base, config.model.trust_remote_code)
    if not differs and server.tokenise(_SAMPLE) not in (None, ids):
        differs = "it has another tokenizer"
    if differs:
        raise BadInput(
            f"engine=vllm: the server at {server.url} has {served.name} ({served.root}), which is another base model "
            f"than the policy's {base}: {differs}. Start a server with the policy's base, "
            f"`{start_command(base, config.model.lora.r)}`."
        )
    needed = config.task.max_turns * config.task.max_new_tokens
    if served.positions is not None and needed > served.positions:
        raise BadInput(
            f"task.max_turns times task.max_new_tokens is {needed} tokens for the assistant alone, and the server at "
            f"{server.url} takes sequences of {served.positions} tokens. Start it with a larger --max-model-len, or "
            "set fewer or shorter turns."
        )
    sampler = config.sampler
    whole = sampler.temperature == 1 and sampler.top_p == 1 and sampler.top_k == 0
    if entry == "train" and not whole and not server.returns_sampled_logprobs(served, ids):
        raise BadInput(
            f"engine=vllm: the server at {server.url} returns log-probs of the whole distribution at temperature 1, "
            f"not of the one that is sampled from at sampler.temperature={sampler.temperature}. Start it with "
            "--logprobs-mode processed_logprobs."
        )
    if adapters := _adapters(config, entry, base):
        server.check_adapters()
    if rank() == 0:
        for model in adapters:
            _try_adapter(server, model, Path(engine.adapters or config.output_dir).expanduser().absolute())


def _adapters(config: Config, entry: str, base: str) -> list[ModelConfig]:
    """The policies that are adapters to the server's base model; any other base model is refused."""
    if entry != "evaluate":
        return [config.model] if entry == "train" else []
    adapters = []
    for name, row in named_policies(config.policies).items():
        if isinstance(row, HostedPolicy):
            continue
        model = policy_model(config, row)
        other, adapter = locate(model)
        if other != base:
            raise BadInput(
                f"policies: {name} has the base model {other}, and with engine=vllm all policies are adapters to "
                f"the server's base model, {base}. Play {name} with engine=local."
            )
        if adapter is not None:
            adapters.append(model)
    return adapters


def _differs(served: str, base: str, trust_remote_code: bool) -> str:
    """The first difference between the configs of two models; "" also if the server's config cannot be read."""
    if served == base:
        return ""
    try:
        if not (Path(served).is_absolute() or Path(served).is_dir()):
            look_for(served)
        there, here = (AutoConfig.from_pretrained(m, trust_remote_code=trust_remote_code) for m in (served, base))
    except UNREADABLE:
        return ""
    for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size"):
        theirs, ours = (getattr(c.get_text_config(), name, None) for c in (there, here))
        if theirs != ours:
            return f"its {name} is {theirs}, and not {ours}"
    return ""


def _try_adapter(server: VLLMServer, model: ModelConfig, place: Path) -> None:
    """Load and unload an adapter of the right shape, in the folder of the run's adapters or the nearest above it."""
    parent = next(folder for folder in (place, *place.parents) if folder.is_dir())
    folder = parent / f".collab-probe-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir()  # not by tempfile, whose folders other users, such as the server's, cannot read
        write_initial_adapter(model, folder)
        server.load(folder.name, folder)
        server.unload(folder.name)
    except OSError as error:
        raise BadInput(
            f"engine.adapters: nothing can be written in {parent} ({error}). Name another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
