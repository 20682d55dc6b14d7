"""One exception for everything a user can put right, and one for a run that cannot go on."""


class BadInput(ValueError):
    """What was given, the rule it breaks, and the way out. Entry points print the message without a stack trace."""


class RunStopped(Exception):
    """The run cannot go on, through no fault of what was given: what it has is to be kept, and the message told.

    Args:
        message: For the user.
        everywhere: All processes of the run raise it, at the same place.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def error_text(error: BaseException) -> str:
    """What an error and its causes say, once each, without the lines in which OmegaConf describes its own tree."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        for line in map(str.strip, str(cause).splitlines()):
            if line and line not in told and not line.startswith(("full_key:", "object_type=", "reference_type=")):
                told.append(line)
        cause = cause.__cause__
    return " ".join(line if line.endswith((".", ":", "?")) else f"{line}." for line in told)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; the name of its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
