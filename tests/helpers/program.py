"""A program that runs no training: it writes down with what it was called, and ends as its seed says."""

import json
import os
import signal
import sys

from collab.app.cli import main
from collab.config.schema import Config
from collab.util.errors import BadInput


def run(config: Config) -> None:
    with open("ran.jsonl", "a") as file:
        file.write(json.dumps({"seed": config.seed, "dir": config.output_dir, "lr": config.algorithm.lr}) + "\n")
    if config.seed == 2:
        raise BadInput("seed two is refused.")
    if config.seed == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 5:
        raise RuntimeError("a defect")
    if config.seed == 6:
        raise KeyboardInterrupt
    if __name__ == "__main__":
        assert "torch" not in sys.modules


if __name__ == "__main__":
    main("train", run)
