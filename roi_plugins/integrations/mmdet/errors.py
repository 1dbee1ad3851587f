"""The error of a run that cannot be started as asked."""


class RunError(RuntimeError):
    """A run that cannot be started as asked; the message names the cause and what to do."""
