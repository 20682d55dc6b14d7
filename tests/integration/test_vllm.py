"""The vLLM engine against a server on loopback that computes with real adapters, and in other cases does not."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import load_config
from huggingface_hub import constants
from tiny_vllm import TinyVLLM
from tokenizers.models import WordLevel
from trainee import (
    HELLO,
    KEY,
    Trainee,
    assert_speaks_as,
    make_engine,
    make_model,
    make_tokenizer,
    says,
    taken_up,
)

from collab.app.preflight import check_hosted, check_machine
from collab.chat.base import ContextFull
from collab.chat.structured import schema_of
from collab.config.checks import check
from collab.conversation import Message
from collab.datamodules.goals import load_splits
from collab.generation import replicas, vllm
from collab.generation.vllm import VLLMEngine
from collab.lm.chat_format import ChatFormat
from collab.util.errors import BadInput, RunStopped
from collab.util.hub import look_for


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(make_tokenizer(), tmp_path_factory.mktemp("base") / "base", 0)


@pytest.fixture
def server(base: Path) -> Iterator[TinyVLLM]:
    with TinyVLLM(base) as there:
        yield there


@pytest.fixture
def trainee(base: Path) -> Trainee:
    return Trainee(base)


def refusal(engine: VLLMEngine, trainee: Trainee, state: dict[str, Any] | None = None) -> str:
    with pytest.raises(RunStopped) as caught:
        engine.sync_weights(trainee.logprobs, lambda value: value, state)
    assert caught.value.everywhere
    return str(caught.value)


# --- replies ---------------------------------------------------------------------------------------------------------


def test_replies_are_the_ids_that_were_sampled_with_the_logprobs_of_what_they_were_sampled_from(
    server: TinyVLLM, trainee: Trainee, tmp_path: Path
) -> None:
    trainee.learn()
    engine = taken_up(make_engine(server, trainee, tmp_path), trainee)
    reply = says(engine)
    assert list(reply.prompt_ids) == ChatFormat(trainee.tokenizer).encode(HELLO)[0]
    assert reply.text == trainee.tokenizer.decode(reply.token_ids, skip_special_tokens=True).strip()
    assert (len(reply.token_ids), reply.finish_reason, reply.num_tokens) == (12, "length", 12)
    assert_speaks_as(trainee, reply)
    assert reply.logprobs != pytest.approx(trainee.logprobs(reply.prompt_ids, reply.token_ids, 0.7, False), abs=0.05)
    assert_speaks_as(trainee, says(engine, adapter=False), adapter=False)
    assert engine.new_tokens == 24
    # A second turn enters as it was sampled.
    later = says(engine, [*HELLO, Message("assistant", "whatever", reply.token_ids), Message("user", "Go on.")])
    assert later.prompt_ids[: len(reply.prompt_ids) + 12] == (*reply.prompt_ids, *reply.token_ids)


def test_a_request_leaves_nothing_to_the_servers_defaults(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    engine = taken_up(make_engine(server, trainee, tmp_path), trainee)
    says(engine, top_p=0.9, top_k=7, stop=("END",))
    sent = {name: value for name, value in server.calls[-1].items() if name != "prompt"}
    assert 0 <= sent.pop("seed") < 2**31 and sent.pop("model") == server.loaded[-1]
    assert sent == {
        **{"max_tokens": 12, "min_tokens": 0, "temperature": 0.7, "top_p": 0.9, "top_k": 7, "min_p": 0.0, "n": 1},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop": ["END"]},
        **{"stop_token_ids": [2], "ignore_eos": False, "logprobs": 0, "return_token_ids": True},
    }
    says(engine, ignore_eos=True, schema=schema_of(note={"type": "string", "maxLength": 9}))
    assert server.calls[-1]["stop_token_ids"] == [] and server.calls[-1]["ignore_eos"]
    form = server.calls[-1]["response_format"]["json_schema"]["schema"]
    assert form["properties"] == {"note": {"type": "string"}}


def test_a_seed_belongs_to_the_key(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    engine = taken_up(make_engine(server, trainee, tmp_path), trainee)
    assert says(engine) == says(engine)
    assert says(engine).token_ids != says(engine, key=KEY.at(sample=1)).token_ids


def test_ends_and_stop_strings(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    engine = taken_up(make_engine(server, trainee, tmp_path), trainee)
    whole = says(engine)
    stop = whole.text[6:9]
    cut = says(engine, stop=(stop,))
    assert cut.finish_reason == "stop" and stop not in cut.text
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    trainee.lm.get_base_model().generation_config.eos_token_id = [whole.token_ids[4]]
    ended = says(taken_up(make_engine(server, trainee, tmp_path), trainee))
    assert (ended.finish_reason, ended.token_ids) == ("stop", whole.token_ids[:5])


def test_what_does_not_fit_the_server_is_refused(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    engine = make_engine(server, trainee, tmp_path)
    with pytest.raises(ContextFull, match="plus max_new_tokens=1020 does not fit the model's 1024 positions"):
        says(engine, max_new_tokens=1020)


# --- adapters --------------------------------------------------------------------------------------------------------


def test_each_update_is_loaded_under_a_fresh_name_and_two_are_there_at_most(
    server: TinyVLLM, trainee: Trainee, tmp_path: Path
) -> None:
    engine = make_engine(server, trainee, tmp_path)
    for _ in range(4):
        trainee.learn()
        taken_up(engine, trainee)
        assert len(server.adapters) <= 2
        assert sorted(server.adapters) == sorted(path.name for path in (tmp_path / "adapters").iterdir())
        assert_speaks_as(trainee, says(engine))
        assert server.calls[-1]["model"] == server.loaded[-1]
        engine.clear_cache()
    assert len(set(server.loaded)) == 4
    engine.close()
    assert not server.adapters and not (tmp_path / "adapters").exists()


def test_a_fresh_adapter_says_what_the_base_says(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    engine = taken_up(make_engine(server, trainee, tmp_path), trainee)
    assert says(engine).token_ids == says(engine, adapter=False).token_ids


def test_a_policy_without_an_adapter_loads_none(server: TinyVLLM, base: Path, tmp_path: Path) -> None:
    plain = Trainee(base, adapter=False)
    engine = taken_up(make_engine(server, plain, tmp_path), plain)
    assert_speaks_as(plain, says(engine))
    assert not server.loaded and not (tmp_path / "adapters").exists()


def test_what_a_killed_run_left_behind_is_tidied_away_and_nothing_else(
    server: TinyVLLM, trainee: Trainee, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    killed, other = (make_engine(server, trainee, tmp_path / run, adapters=str(shared)) for run in ("a", "b"))
    taken_up(killed, trainee)
    taken_up(other, trainee)
    again = taken_up(make_engine(server, trainee, tmp_path / "a", adapters=str(shared)), trainee)
    assert sorted(server.adapters) == sorted(server.loaded[1:])
    assert {path.name for path in shared.iterdir()} == set(server.adapters)
    again.close()
    assert set(server.adapters) == {server.loaded[1]} and shared.is_dir()
    other.close()


def test_weights_may_come_as_a_state_dict(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    trainee.learn()
    state = {name: value.clone() for name, value in trainee.lm.state_dict().items()}
    for name, parameter in trainee.lm.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()  # as where they are on other processes
    engine = make_engine(server, trainee, tmp_path)
    message = refusal(engine, trainee, state)
    assert "nats a token from ours" in message  # the server got the state's, and what is here is nothing
    trainee.lm.load_state_dict(state)
    again = make_engine(server, trainee, tmp_path)
    again.sync_weights(trainee.logprobs, lambda value: value, state)
    assert_speaks_as(trainee, says(again))


def test_an_adapter_that_is_not_in_effect_stops_the_run(server: TinyVLLM, trainee: Trainee, tmp_path: Path) -> None:
    trainee.learn()
    engine = make_engine(server, trainee, tmp_path)
    server.faults = {"ignores adapters"}
    message = refusal(engine, trainee)
    assert "its log-probs of a short conversation are" in message and "more than 0.1 (engine.tolerance)" in message
    assert server.loaded[-1] in message and "engine=local" in message
    assert "--enable-lora --max-lora-rank 4 " in message


def test_a_server_that_is_stuck_at_an_earlier_adapter_is_found_out(
    server: TinyVLLM, trainee: Trainee, tmp_path: Path
) -> None:
    server.faults = {"stuck"}
    engine = make_engine(server, trainee, tmp_path)
    trainee.learn()
    taken_up(engine, trainee)  # the first one is right
    trainee.learn()
    assert "is not in effect" in refusal(engine, trainee)


# --- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["", "no lora", "ignores adapters"])
def test_the_first_process_loads_and_all_go_on_or_stop_together(
    fault: str, server: TinyVLLM, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, barrier = threading.local(), threading.Barrier(2, timeout=60)
    monkeypatch.setattr(vllm, "rank", lambda: here.rank)
    passed: list[Any] = [None]
    ends: dict[int, Any] = {}

    def share_out(value: Any) -> Any:
        if here.rank == 0:
            passed[0] = value
        barrier.wait()
        found = passed[0]
        barrier.wait()
        return found

    def process(rank: int, trainee: Trainee) -> None:
        here.rank = rank
        engine = make_engine(server, trainee, tmp_path)
        try:
            engine.sync_weights(trainee.logprobs, share_out)
            ends[rank] = says(engine)
        except RunStopped as error:
            ends[rank] = (str(error), error.everywhere)

    server.faults = {fault}
    trainees = [Trainee(base) for _ in range(2)]
    for trainee in trainees:
        torch.manual_seed(5)
        trainee.learn()
    threads = [threading.Thread(target=process, args=pair) for pair in enumerate(trainees)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ends[0] == ends[1]
    if not fault:
        asked = {call["model"] for call in server.calls if "prompt_logprobs" not in call}
        assert asked == set(server.loaded) and len(server.loaded) == 1
    else:
        text = {"no lora": "--enable-lora", "ignores adapters": "is not in effect"}[fault]
        assert text in ends[0][0] and ends[0][1] and len(server.loaded) == (0 if fault == "no lora" else 1)


# --- servers that will not do ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raw", "or returns log-probs of another. Start it with --logprobs-mode processed_logprobs"),
        ("hot", "it samples from another distribution"),
        ("no ids", "the server returns no token ids (return_token_ids)"),
        ("cuts", "has read another prompt than the one it was sent (8 tokens for"),
        ("no route", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ("no lora", "LoRA is switched off at the server"),
        ("blind", "Set engine.adapters to a folder that both machines share."),
    ],
)
def test_a_server_that_will_not_do_stops_the_run(
    fault: str, words: str, server: TinyVLLM, trainee: Trainee, tmp_path: Path
) -> None:
    server.faults = {fault}
    assert words in refusal(make_engine(server, trainee, tmp_path, temperature=0.7), trainee)


def test_a_server_with_other_weights_is_told_from_the_policys(trainee: Trainee, base: Path, tmp_path: Path) -> None:
    other = make_model(trainee.tokenizer, tmp_path / "other", 1)
    with TinyVLLM(other) as server:
        message = refusal(make_engine(server, trainee, tmp_path), trainee)
    assert f"has tiny ({other})" in message and f"those of the policy's base {base}" in message
    assert "more than engine.tolerance=0.1 allows" in message and f"vllm serve {base} --enable-lora" in message


def test_a_server_that_was_started_anew_is_given_the_adapter_again(
    server: TinyVLLM, trainee: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "TRY_AGAIN", 0.05)
    trainee.learn()
    engine = taken_up(make_engine(server, trainee, tmp_path), trainee)
    server.adapters.clear()
    assert_speaks_as(trainee, says(engine))
    assert server.loaded == [server.loaded[0]] * 2 and not engine.logged()


# --- before the start ------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(base: Path, tmp_path: Path) -> Callable[..., None]:
    """Composes a config and holds it against the server, as the command line does before a model is read."""

    def check_all(server: TinyVLLM | str, *overrides: str, entry: str = "train") -> None:
        url = server if isinstance(server, str) else server.url
        given = ["engine=vllm", f"engine.base_url={url}", f"model.path={base}", "model.lora.r=4", "precision=fp32"]
        config = load_config(entry, [*given, "trainer.accelerator=cpu", *overrides], str(tmp_path / "runs" / "new"))
        check(config, entry)
        splits = load_splits(config.task)
        check_hosted(config, splits, entry)
        check_machine(config, splits, entry)

    return check_all


def early(checked: Callable[..., None], server: TinyVLLM | str, *overrides: str, entry: str = "train") -> str:
    with pytest.raises(BadInput) as caught:
        checked(server, *overrides, entry=entry)
    return str(caught.value)


def test_a_server_that_will_do_is_left_as_it_was(
    checked: Callable[..., None], server: TinyVLLM, tmp_path: Path
) -> None:
    checked(server)
    assert len(server.loaded) == 1 and not server.adapters  # one was tried
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no models", "answers HTTP 404: no message. Set engine.base_url"),
        ("no route", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ("no lora", "Start it with --enable-lora."),
        ("blind", "Set engine.adapters to a folder that both machines share."),
        ("raw", "Start it with --logprobs-mode processed_logprobs."),
        ("no ids", "Use vLLM 0.10.2 or later."),
    ],
)
def test_a_server_that_will_not_do_is_refused_before_a_model_is_read(
    fault: str, words: str, checked: Callable[..., None], server: TinyVLLM, tmp_path: Path
) -> None:
    server.faults = {fault}
    assert words in early(checked, server)
    assert list(tmp_path.iterdir()) == [] and not server.adapters


def test_reach_rank_length_and_name(checked: Callable[..., None], server: TinyVLLM) -> None:
    message = early(checked, "http://127.0.0.1:1/v1")
    assert "Nothing answers at http://127.0.0.1:1/v1/models (ConnectError)" in message and "vllm serve" in message
    assert "the adapter's rank is more than the server" in early(checked, server, "model.lora.r=32")
    assert "engine.model=big: " in early(checked, server, "engine.model=big")
    server.positions = 100
    assert "takes sequences of 100 tokens. Start it with a larger --max-model-len" in early(checked, server)


def test_another_base_is_refused_as_far_as_can_be_seen(
    checked: Callable[..., None], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("others")
    with TinyVLLM(make_model(make_tokenizer(), folder / "deeper", 0, layers=3)) as server:
        message = early(checked, server)
    assert f"is another base model than the policy's {base}: its num_hidden_layers is 3, and not 2" in message
    assert f"vllm serve {base} --enable-lora --max-lora-rank 4 " in message
    shuffled = make_tokenizer()
    words = shuffled.get_vocab()
    words["Dear"], words["lift"] = words["lift"], words["Dear"]
    shuffled.backend_tokenizer.model = WordLevel(words, unk_token="<unk>")
    with TinyVLLM(make_model(shuffled, folder / "shuffled", 0)) as server:
        assert "it has another tokenizer" in early(checked, server)


def test_a_base_that_cannot_be_read_here_is_not_compared(
    checked: Callable[..., None],
    server: TinyVLLM,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path_factory.mktemp("broken")
    (broken / "config.json").write_text('{"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}}')
    for place in (broken, Path("/no/such/folder")):
        server.folder = place
        checked(server)
        assert "note:" not in capsys.readouterr().out
    server.folder = Path("someone/base")
    look_for.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    checked(server)
    assert time.monotonic() - began < 20  # the hub's own client retries for longer
    assert "note: someone/base is no path on this machine: looking for it on" in capsys.readouterr().out


def test_rows_of_an_evaluation_are_adapters_to_the_one_base(
    checked: Callable[..., None],
    server: TinyVLLM,
    trainee: Trainee,
    base: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    trainee.lm.save_pretrained(folder / "mine")
    shutil.copytree(base, folder / "whole")
    checked(server, f"policies=[base,mine:{folder / 'mine'}]", entry="evaluate")
    assert len(server.loaded) == 1
    server.faults = {"no route", "raw"}
    checked(server, entry="evaluate")  # base and proactive need neither
    message = early(checked, server, f"policies=[base,whole:{folder / 'whole'}]", entry="evaluate")
    assert f"policies: whole has the base model {folder / 'whole'}" in message and "engine=local" in message


@pytest.mark.parametrize(
    ("override", "entry", "words"),
    [
        ("model.lora.enabled=false", "train", "Set model.lora.enabled=true, or engine=local."),
        ("export.merge=true", "train", "Set export.merge=false, or engine=local."),
        ("model.lora.r=4", "synthesize", "Set engine=local teacher=vllm."),
        ("engine.base_url=http://user:secret@127.0.0.1/v1", "train", "engine: the base_url has a user, a password"),
        ("engine.base_url=localhost", "train", "engine: the base_url (localhost) must be the address of a server"),
        ("engine.key_env=sk-abc", "train", "engine.key_env must be the NAME of an environment variable"),
        ("engine.tolerance=0", "train", "engine.tolerance (0.0) must be above 0"),
    ],
)
def test_rules_of_the_config(override: str, entry: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(load_config(entry, ["engine=vllm", override]), entry)
    assert words in str(caught.value) and "secret" not in str(caught.value)
