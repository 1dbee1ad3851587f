"""What the tools of either framework say in one line, with exit code 2."""


class RunError(RuntimeError):
    """A run that cannot be started as asked; the message names the cause and what to do."""
