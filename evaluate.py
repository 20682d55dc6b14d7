"""Compare policies on the same goals: `python evaluate.py --help`."""

from collab.app.cli import main

if __name__ == "__main__":
    main("evaluate")
