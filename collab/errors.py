"""One exception for everything a user can put right."""


class BadInput(ValueError):
    """What was given, the rule it breaks, and the way out. Entry points print the message without a stack trace."""


class RunStopped(Exception):
    """The run cannot go on, through no fault of what was given: what it has is to be kept, and the message told."""
