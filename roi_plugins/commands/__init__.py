"""The commands of ``roi-plugins``, a module each, which :mod:`roi_plugins.cli` calls.

``tools/*.py`` call them too. A module has ``main(arguments, prog)``, which returns the exit status; it is
imported when its command is called, for its needs are an extra of the package, ``roi_plugins[tools]``.
"""


def called_as(prog: str) -> list[str]:
    """The start of a command line that calls ``tools/compare.py`` or ``roi-plugins compare`` again."""
    return ['python', prog] if prog.endswith('.py') else prog.split()
