"""Compare policies on the same goals: `python evaluate.py --help`."""

from collab.cli import main

if __name__ == "__main__":
    main("evaluate")
