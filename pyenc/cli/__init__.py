"""The command line: `pyenc embed`, `pyenc info`, `pyenc verify`, `pyenc bench`.

Only `main` and `arguments` are imported before a command is known, and neither imports torch, so
that `--help` and mistakes in the arguments answer at once.
"""
