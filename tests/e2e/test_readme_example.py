"""The last Python example of docs/python.md runs as it stands, with the real model, and shows what the page says."""

import re
from pathlib import Path

from commands import finished

ROOT = Path(__file__).parents[2]


def test_the_example_runs_and_the_question_comes_out_ahead(smollm2, tmp_path):
    *_, example = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.M | re.S
    )
    program = tmp_path / "example.py"
    program.write_text(example, encoding="utf-8")
    done = finished(str(program), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {text: float(mr) for mr, text in re.findall(r"^MR (\S+)  (.*)$", done.stdout, re.MULTILINE)}
    assert found["What should the sign say to visitors?"] > found["Welcome to the bench! Enjoy the lovely view."]
