"""Train a policy and compare it with its base: `python train.py --help`."""

from collab.app.cli import main

if __name__ == "__main__":
    main("train")
