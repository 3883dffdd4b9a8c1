"""`scidiff new domain NAME`: writes a package from a template folder by plain replacement of three words.

A template is a folder below `scidiff/cli/templates/`; each file in it ends in `.template`, which is dropped. In paths
and contents the following words are replaced, and nothing else is interpreted:

    @name@      the name as a module, protein_chain
    @Name@      the name as a class, ProteinChain
    @title@     the name in words, protein chain
"""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.store.atomic import ensure_folder, write_text

TEMPLATES = Path(__file__).parent / "templates"
SUFFIX = ".template"
KINDS = ("domain",)


def create(kind: str, name: str, into: Path, templates: Path = TEMPLATES) -> Path:
    """Writes the package `into/scidiff-NAME` and returns it; refuses a name that Python or a package has taken."""
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise UsageError(f"{name!r} cannot name a {kind}.", "Use small letters, digits and _, a letter first.")
    from scidiff import config

    if module in config.options("domain"):
        raise UsageError(f"A domain named {module!r} is already installed.", "Choose another name.")
    sources = sorted((templates / kind).rglob(f"*{SUFFIX}"))
    if not sources:
        raise ScidiffError(f"The template for a {kind} is missing in {templates}.", "Install scidiff again.")
    words = {
        "@name@": module,
        "@Name@": "".join(part.capitalize() for part in module.split("_")),
        "@title@": module.replace("_", " "),
    }
    target = into.expanduser() / f"scidiff-{module.replace('_', '-')}"
    if target.exists():
        raise UsageError(f"{target} is already there.", "Choose another name, or another folder with --into.")
    ensure_folder(target)
    for source in sources:
        relative = source.relative_to(templates / kind).as_posix().removesuffix(SUFFIX)
        file = target / replaced(relative, words)
        ensure_folder(file.parent)
        write_text(file, replaced(source.read_text(encoding="utf-8"), words))
    print(f"Wrote {target}. Try it:")
    print(f"  pip install -e {target}")
    print(f"  scidiff train domain={module} trainer=debug")
    print(f"  pytest {target}")
    return target


def replaced(text: str, words: dict[str, str]) -> str:
    """The text with every word replaced."""
    for word, value in words.items():
        text = text.replace(word, value)
    return text
