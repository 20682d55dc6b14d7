"""Two exceptions, one for wrong input and one for a run that cannot continue; messages of errors."""


class BadInput(ValueError):
    """Wrong input. The message says what was given, the rule, and the way out; it is printed without a stack trace."""


class RunStopped(Exception):
    """The run cannot continue, although its input is right. Its results are kept and the message is printed.

    Args:
        message: For the user.
        everywhere: All processes of the run raise it at the same place.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


def error_text(error: BaseException) -> str:
    """The messages of an error and its causes, each line once, without OmegaConf's lines about its own tree."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        for line in map(str.strip, str(cause).splitlines()):
            if line and line not in lines and not line.startswith(("full_key:", "object_type=", "reference_type=")):
                lines.append(line)
        cause = cause.__cause__
    return " ".join(line if line.endswith((".", ":", "?")) else f"{line}." for line in lines)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; the name of its class if there is no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
