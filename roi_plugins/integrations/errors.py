"""What the tools of either framework say in one line, with exit code 2."""


class RunError(RuntimeError):
    """A run that cannot be started as asked; the message names the cause and what to do."""


def describe_error(error: BaseException) -> str:
    """What an error of a config says, in one line."""
    # The text of a KeyError is in quotes.
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return ' '.join(message.split()) or type(error).__name__
