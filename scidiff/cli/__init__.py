"""The command line: flags become overrides, overrides become settings, settings go to `scidiff.api`.

Nothing heavy is imported before a command needs it; `scidiff --help` loads Typer alone.
"""
