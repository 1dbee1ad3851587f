"""The commands of ``roi-plugins``, each in a module. :mod:`roi_plugins.cli` and ``tools/*.py`` call them.

A module has ``main(arguments, prog)``, which returns the exit status. It is imported only when its command is
called, because it needs packages of the extra ``roi_plugins[tools]``.
"""


def called_as(prog: str) -> list[str]:
    """Returns the start of a command line that calls a tool again.

    Args:
        prog: what the tool was called as: ``tools/compare.py`` or ``roi-plugins compare``.
    """
    return ['python', prog] if prog.endswith('.py') else prog.split()
