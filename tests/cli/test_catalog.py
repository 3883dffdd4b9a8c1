"""list, show, copy, doctor, new and --version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import scidiff
from scidiff import config
from scidiff.cli.app import run
from scidiff.cli.catalog import KINDS
from scidiff.cli.new import create


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_listed(kind, elsewhere, capsys):
    assert run(["list", kind]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (config.options(KINDS[kind]) if KINDS[kind] else ()))


def test_a_group_name_lists_as_well_as_its_plural(elsewhere, capsys):
    assert run(["list", "solver"]) == 0
    assert "mixture" in capsys.readouterr().out


def test_the_overview_names_every_kind(elsewhere, capsys):
    assert run(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in KINDS)


def test_show_prints_yaml_with_the_origin_of_every_value(elsewhere, capsys):
    assert run(["show", "generate", "domain=molecule", "seed=9"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == config.compose("generate", ["domain=molecule", "seed=9"])
    assert re.search(r"^seed: 9 +# command line$", printed, re.M)
    assert re.search(r"^  name: molecule +# conf/domain/molecule.yaml$", printed, re.M)


def test_show_prints_one_file(elsewhere, capsys):
    assert run(["show", "data/qm9"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "qm9"


@pytest.mark.parametrize("to, lands", [
    (".", "conf/trainer/cpu.yaml"),
    ("project", "project/conf/trainer/cpu.yaml"),
    ("conf", "conf/trainer/cpu.yaml"),
    ("conf/trainer", "conf/trainer/cpu.yaml"),
])
def test_copy_puts_a_config_where_commands_find_it(elsewhere, to, lands, capsys):
    assert run(["copy", "trainer/cpu", to]) == 0
    assert Path(lands).is_file()
    assert run(["copy", "trainer/cpu", to]) == 2
    assert "already there" in capsys.readouterr().err
    assert run(["copy", "trainer/cpu", to, "--force"]) == 0


def test_a_copied_and_changed_config_wins(elsewhere, capsys):
    run(["copy", "trainer/cpu", "."])
    file = Path("conf/trainer/cpu.yaml")
    file.write_text(file.read_text().replace("batch: 192", "batch: 7"))
    assert config.compose("train")["trainer"]["batch"] == 7


def test_doctor_reports_versions_and_places(elsewhere, capsys):
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("python", "torch", "extra hub", "gpu", "cache", "SCIDIFF_DATA", "domains"):
        assert word in printed


def test_version_carries_the_commit_of_a_checkout(elsewhere, capsys):
    assert run(["--version"]) == 0
    assert re.match(rf"scidiff {re.escape(scidiff.__version__)}( \([0-9a-f]{{6,}}\+?\))?\n", capsys.readouterr().out)


@pytest.mark.parametrize("verb", ["", *config.VERBS, "list", "show", "copy", "fetch", "doctor", "new"])
def test_help_of_every_verb(verb, capsys):
    assert run([*verb.split(), "--help"]) == 0
    assert "Usage: scidiff" in capsys.readouterr().out


def test_help_names_the_override_of_each_flag(capsys):
    run(["generate", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for key in ("sampling.num", "sampling.steps", "sampling.sizes", "sampling.chunk", "sampling.only", "condition.K",
                "guidance.weight", "(seed)", "(out)", "(from)", "(device)", "(resume)"):
        assert key in printed


def test_new_replaces_three_words_in_names_and_contents(elsewhere, capsys):
    folder = elsewhere / "templates" / "domain" / "src" / "scidiff_@name@"
    folder.mkdir(parents=True)
    (folder / "__init__.py.template").write_text('"""About @title@."""\n\n\nclass @Name@:\n    name = "@name@"\n')
    made = create("domain", "protein-chain", elsewhere, elsewhere / "templates")
    assert made.name == "scidiff-protein-chain"
    text = (made / "src" / "scidiff_protein_chain" / "__init__.py").read_text()
    assert text == '"""About protein chain."""\n\n\nclass ProteinChain:\n    name = "protein_chain"\n'
    assert "pip install -e" in capsys.readouterr().out


def test_public_names_are_loaded_on_first_use():
    assert set(scidiff.__all__) <= set(dir(scidiff))
    assert scidiff.ScidiffError.__name__ == "ScidiffError"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = scidiff.nonsense
