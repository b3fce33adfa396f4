"""The verbs of the command line, one module each: what it takes and what it calls.

A command module has ``add_arguments(parser)`` and ``run(options) -> dict``; heavy imports stand
inside ``run``, so that ``--help`` and a mistyped argument answer at once. Top floor; no maths here.
"""
