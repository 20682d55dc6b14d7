"""Memory and time of a step on a cluster, by hand arithmetic; docs/scaling.md shows the same figures."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from composing import load_config
from omegaconf import OmegaConf

from collab.app import memory
from collab.app.cluster import describe, devices, predict, read_rates
from collab.app.estimate import Calls, Estimate
from collab.app.memory import KNOWN, Setup, Shape
from collab.config.schema import ClusterConfig
from collab.util.errors import BadInput

TEXT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
LLAMA_8B, LLAMA_70B = KNOWN.values()
TABLE = {  # row of the page -> what it is about
    "8B LoRA, 1 GPU, or each of several with `ddp`": Setup(LLAMA_8B, 32),
    "8B LoRA, `fsdp`, N = 8": Setup(LLAMA_8B, 32, 8, fsdp=True),
    "8B all weights, `fsdp`, N = 8": Setup(LLAMA_8B, 0, 8, fsdp=True),
    "8B all weights, `fsdp`, N = 8, `engine.max_batch=24`": Setup(LLAMA_8B, 0, 8, fsdp=True, max_batch=24),
    "8B all weights, `fsdp`, N = 16": Setup(LLAMA_8B, 0, 16, fsdp=True),
    "8B all weights, 1 GPU, bf16": Setup(LLAMA_8B, 0),
    "70B LoRA, `fsdp`, N = 8, `engine=local`": Setup(LLAMA_70B, 32, 8, fsdp=True),
    "70B LoRA, `fsdp`, N = 8, `engine=vllm`": Setup(LLAMA_70B, 32, 8, fsdp=True, local=False),
    "70B LoRA, `fsdp`, N = 16, `engine=vllm`": Setup(LLAMA_70B, 32, 16, fsdp=True, local=False),
}
NOTHING = Estimate([], [], "training step")
# P = 2 * 100 * 10 + 2 * (2 * 10 * (10 + 5) + 3 * 10 * 20 + 2 * 10) + 10 = 3850; k = 2 * 2 * 5 * 2 = 40 bytes
TOY = Shape(width=10, inner=20, layers=2, queries=10, keys=5, vocabulary=100)
DEVICE = ClusterConfig(
    "toy", 80, bandwidth=1e-3, tflops=1e-6, link=1e-3, network=1e-4
)  # 1 MB/s, 1 MFLOP/s, 1 and 0.1 MB/s
OVERRIDES = (
    *("experiment=doc_edit", "algorithm=grpo", "model.path=toy", "precision=bf16", "sampler=paper", "task.max_turns=2"),
    *(
        "sampler.window=1",
        "sampler.last_turns=1",
        "trainer.goals_per_step=4",
        "task.max_new_tokens=10",
        "task.system_prompt=''",
    ),
    *("model.lora.r=2", "trainer.devices=1"),
)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(memory.KNOWN, "toy", TOY)


def config(*overrides):
    return load_config("train", [*OVERRIDES, *overrides])


@pytest.mark.parametrize("name", TABLE)
def test_the_page_has_the_memory(name):
    assert f"| {name} | {TABLE[name].row()} |" in TEXT


def test_all_rows_of_the_page_are_tried():
    table = TEXT[TEXT.index("| | between | rollout | update |") :].split("\n\n")[0]
    assert len(re.findall(r"^\| \d+B ", table, re.MULTILINE)) == len(TABLE)


def test_memory_by_hand():
    assert (TOY.parameters, TOY.kv(), TOY.adapter(2)) == (3850, 40, 2 * 2 * (2 * 20 + 2 * 15 + 3 * 30))
    alone = Setup(TOY, 2, max_batch=3, cache_gib=0, longest=7, packed=5)
    assert alone.between() == 2 * 3850 + 16 * 640
    assert alone.rollout() == [2 * 3 * 7 * 40, 0]
    assert alone.update() == [5 * 10 * 2 * 2 + 5 * (10 * 10 + 4 * 20) * 2]
    assert alone.peak() == ("update", pytest.approx((alone.between() + 2000) / 1e9))
    spread = replace(alone, rank=0, processes=2, fsdp=True)
    assert spread.between() == 10 * 3850 and spread.rollout()[0] == 2 * 3850 + 2 * 2000
    assert spread.update()[:2] == [2 * (2000 + 2 * 920) + 2 * 2000, 4 * (2000 + 2 * 920)]


def test_a_step_by_hand():
    found = predict(config(), 1, replace(DEVICE, user_seconds=0.5))
    # A context at turn 1 has 2 candidates and 6 futures of a turn; one at turn 2 has a reply before, and 2 candidates.
    assert found.replies == 4 * ((2 + 6) + (1 + 2)) / 2
    assert found.decoded == 10 * found.replies
    steps, length = 2 * 10 * 2, 0 + 2 * (10 + 64) / 2
    assert found.decoding == pytest.approx(
        steps * 2 * 3850 / 1e6 + found.decoded * (2 * 3850 / 1e6 + length * 40 / 1e6)
    )
    assert found.reading == pytest.approx(found.replies * 64 * 2 * 3850 / 1e6)
    assert found.waiting == 2 * 0.5
    assert found.trained == 4 * (1.5 * 64 + 0.5 * 10 + 2 * 10)
    assert found.update == pytest.approx(found.trained * 2 * 3850 * 2 / 1e6)
    assert found.sync == 0 and found.idle == pytest.approx(1 / found.total)
    assert found.total == pytest.approx(found.reading + found.decoding + found.waiting + found.update)


def test_more_processes_decode_less_each_and_send_gradients():
    one, two = predict(config(), 1, DEVICE), predict(config("strategy=ddp"), 2, DEVICE)
    assert two.update == one.update / 2 and two.decoded == one.decoded
    assert one.decoding / 2 < two.decoding < one.decoding  # both read all weights in each step
    assert two.sync == pytest.approx(2 * 4 * 640 / 2 / 1e6)
    far = predict(config("strategy=fsdp", "trainer.num_nodes=2"), 2, DEVICE)
    assert far.sync == pytest.approx((2 * 4 * 640 + 2 * 3850 * (1 + 2)) / 2 / 1e5)


def test_overlap_hides_waiting():
    slow = replace(DEVICE, user_seconds=1000.0)
    plain, overlapped = (predict(config(f"rollout.max_staleness={k}"), 1, slow) for k in (0, 1))
    assert overlapped.total == pytest.approx(plain.total / 2) and overlapped.idle < plain.idle
    busy = predict(config("rollout.max_staleness=3"), 1, DEVICE)
    assert busy.total == pytest.approx(busy.reading + busy.decoding + busy.update) and busy.idle == 0


def test_servers_decode_while_the_others_wait():
    served = ("engine=vllm", "strategy=fsdp")
    found = predict(config(*served), 2, replace(DEVICE, servers=1, server_devices=2))
    assert found.decoding == pytest.approx(predict(config(), 1, DEVICE).decoding / 2)
    assert found.idle == pytest.approx((found.reading + found.decoding) / found.total)
    with pytest.raises(BadInput, match=r"cluster.servers \(0\): with engine=vllm servers decode"):
        predict(config(*served), 2, DEVICE)


def run_folder(folder, config, rollout, speed, update):
    (folder / "csv").mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    columns = ("train/rollout_seconds", "train/rollout_tokens_per_s", "train/update_seconds")
    with (folder / "csv" / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *[(rollout, speed, update)] * 3, ("", "", "")])
    return str(folder)


def test_a_run_is_predicted_as_it_was_measured(tmp_path):
    rates = read_rates(run_folder(tmp_path, config(), 30.0, 7.0, 5.0), DEVICE)
    found = predict(config(), 1, DEVICE, rates)
    assert found.decoded == pytest.approx(210)
    assert found.reading + found.decoding == pytest.approx(30) and found.update + found.sync == pytest.approx(5)
    more = predict(config("trainer.goals_per_step=8"), 1, DEVICE, rates)
    assert more.update == pytest.approx(10) and 30 < more.reading + more.decoding < 60


def test_what_cannot_be_predicted_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"trainer.devices \(auto\) depends on the machine"):
        devices(config("trainer.devices=auto"))
    with pytest.raises(
        BadInput, match=r"goals_per_step \(4\) must be a multiple .* \(3\). Set trainer.goals_per_step=6"
    ):
        predict(config(), 3, DEVICE)
    with pytest.raises(BadInput, match="algorithm=dpo learns from stored conversations"):
        predict(config("algorithm=dpo", "algorithm.data=x.jsonl"), 1, DEVICE)
    with pytest.raises(BadInput, match="No such file or directory: .*config.yaml. Name the folder of a run"):
        read_rates(str(tmp_path), DEVICE)
    stored = run_folder(tmp_path / "stored", config(), 1, 1, "")
    with pytest.raises(BadInput, match="has no train/update_seconds"):
        read_rates(stored, DEVICE)
    hosted = run_folder(tmp_path / "hosted", config("user=llm", "user.endpoint.model=x"), 1, 1, 1)
    with pytest.raises(BadInput, match=r"a server played the user or the judge.*user=agenda judge=none"):
        read_rates(hosted, DEVICE)
    old = Path(run_folder(tmp_path / "old", config(), 1, 1, 1))
    (old / "config.yaml").write_text("user: {}\njudge: {}\n")
    with pytest.raises(BadInput, match="is of another version"):
        read_rates(str(old), DEVICE)


@pytest.mark.parametrize("name", ["memory_gb", "bandwidth", "tflops", "link", "network"])
def test_a_device_without_a_figure_is_refused(name):
    with pytest.raises(BadInput, match=rf"cluster.{name} \(0\) must be above 0"):
        predict(config(), 1, replace(DEVICE, **{name: 0}))


def test_each_figure_says_where_it_comes_from(tmp_path):
    paper = load_config(
        "train",
        [
            *("experiment=paper/doc_edit", "cluster=h100", "trainer.devices=8", "strategy=ddp"),
            *("cluster.price=2", "cluster.user_seconds=0", "trainer.max_steps=10"),
        ],
    )
    hosted = [Calls("user", "gpt-4o", 1, 1e6, 0)]
    text = describe(paper, Estimate(hosted, hosted, "training step", hosted))
    assert "on 8 x h100 (1 node(s)), P = 8.03e+09" in text and "NOT MEASURED: assumed are 50% of 3350 GB/s" in text
    assert "of 80 GB: fits" in text and "2.50 $  expected" in text and "no waiting for the hosted models" in text
    step = float(re.search(r"step +([\d.]+) s  the sum", text)[1])
    assert float(re.search(r"devices +([\d.]+) \$", text)[1]) == pytest.approx(step / 3600 * 10 * 8 * 2, abs=0.01)
    assert "DOES NOT FIT" in describe(
        load_config("train", ["experiment=paper/doc_edit", "cluster=cpu", "trainer.devices=1"]), NOTHING
    )
    measured = config(f"cluster.rates={run_folder(tmp_path / 'run', config(), 30.0, 8.0, 5.0)}", "cluster=h100")
    assert "measured: medians of 3 steps" in describe(measured, NOTHING)
