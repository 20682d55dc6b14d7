"""The model card: its metadata read back by the hub's own classes, and what its text says."""

import pytest
from composing import load_config
from huggingface_hub import ModelCard

from collab.app.model_card import model_card, write_card
from collab.datamodules.goals import load_splits

ESTIMATE = {"mean": 1.23456, "ci95": [1.00004, 1.5], "n": 32}
MISSING = {"mean": None, "ci95": [None, None], "n": 0}
RESULTS = {
    "policies": {
        "base": {"reward": ESTIMATE | {"mean": 0.25}, "coverage": ESTIMATE},
        "trained": {"reward": ESTIMATE, "coverage": ESTIMATE, "pertinent": MISSING},
    },
    "difference": {"trained": {"reward": ESTIMATE | {"mean": 0.98456}}},
}
GOALS = ("task.num_train=4", "task.num_val=3", "task.num_test=2")


@pytest.fixture
def base(tmp_path):
    """A folder that passes for a model; no weights are read."""
    folder = tmp_path / "some base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def written(config, tmp_path, results=None):
    """The card of a run, read back from its file."""
    file = tmp_path / "README.md"
    file.write_text(model_card(config, load_splits(config.task), results), encoding="utf-8")
    return ModelCard.load(file)


def test_the_metadata_have_the_figures_of_the_trained_policy(base, tmp_path):
    config = load_config("train", ["experiment=doc_edit", *GOALS], output_dir="outputs/doc_edit/mine")
    config.model.path = str(base)
    card = written(config, tmp_path, RESULTS)
    figures = {figure.metric_type: figure for figure in card.data.eval_results}
    assert figures.keys() == {"reward", "coverage"}  # a missing value is none of them
    assert figures["reward"].metric_value == 1.2346
    assert figures["reward"].metric_args == {"ci95": [1.0, 1.5], "num_goals": 32}
    assert {(one.dataset_type, one.dataset_split, one.metric_name) for one in figures.values()} == {
        ("doc_edit", "test", "R*"),
        ("doc_edit", "test", "coverage"),
    }
    assert card.data.model_name == "mine" and card.data.library_name == "peft"
    assert {"collab", "doc_edit", "grpo", "lora"} <= set(card.data.tags)


def test_the_text_has_intervals_weights_and_differences(base, tmp_path):
    config = load_config("train", ["experiment=doc_edit", *GOALS])
    config.model.path = str(base)
    text = written(config, tmp_path, RESULTS).text
    assert "| R\\* | – | 0.250 [1.000, 1.500] | 1.235 [1.000, 1.500] | +0.985 [1.000, 1.500] |" in text
    assert "| coverage | 2 | 1.235 [1.000, 1.500] | 1.235 [1.000, 1.500] | – |" in text
    assert "| trained - base |" in text and "goals: 4 train, 3 val, 2 test" in text
    assert "| base model | some base |" in text and str(base.parent) not in text
    assert "> You help the user write a short text." in text and "rules read English only" in text


def test_without_results_there_are_no_figures(base, tmp_path):
    config = load_config("train", ["experiment=doc_edit", "export.merge=true", "seed=7", *GOALS])
    config.model.path = str(base)
    card = written(config, tmp_path)
    assert card.data.eval_results is None and "model-index" not in card.data.to_dict()
    assert card.data.library_name == "transformers" and "lora" not in card.data.tags
    assert "The test goals were not played with this policy." in card.text and "seed 7" in card.text


def test_names_of_the_hub_are_linked(base, tmp_path):
    (base / "adapter_config.json").write_text('{"base_model_name_or_path": "lab/base"}')
    config = load_config("train", ["experiment=doc_edit_sft", *GOALS])
    config.model.path, config.algorithm.data = str(base), "lab/chats:train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collab.lm.loading.look_for", lambda name: None)
        card = written(config, tmp_path)
    assert card.data.base_model == "lab/base" and card.data.datasets == ["lab/chats"]
    assert "[lab/base](https://huggingface.co/lab/base)" in card.text and "an adapter to it" in card.text
    assert "on stored conversations" in card.text


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("user=agenda", "a simulated user that follows rules"),
        ("user=openai", "the language model MODEL plays the user"),
        ("user=local", "a language model (the policy's own base) plays the user"),
        ("judge=openai", "the language model MODEL rates interactivity"),
    ],
)
def test_the_card_says_who_the_user_and_the_judge_were(typed, told, base, tmp_path):
    config = load_config("train", ["experiment=doc_edit", typed, *GOALS])
    config.model.path = str(base)
    for part in (config.user, config.judge):
        told = told.replace("MODEL", getattr(getattr(part, "endpoint", None), "model", None) or "MODEL")
    assert f"| {told} |" in written(config, tmp_path).text


def test_the_command_is_the_one_that_was_typed_without_folders_and_addresses(base, tmp_path):
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text(
        "- experiment=doc_edit\n- name=a b\n- output_dir=elsewhere\n"
        f"- model.path={base}\n- endpoint.base_url=http://10.0.0.1/v1\n"
    )
    (run / "policy").mkdir()
    config = load_config("train", ["experiment=doc_edit", *GOALS], output_dir=str(run))
    config.model.path = str(base)
    write_card(config, load_splits(config.task), RESULTS)
    text = (run / "policy" / "README.md").read_text(encoding="utf-8")
    assert f"\ncollab train experiment=doc_edit 'name=a b' 'model.path={base.name}'\n" in text
