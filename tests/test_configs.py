"""Every shipped YAML composes, every target in it exists, and every wrong setting is answered by one sentence."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from scidiff import config
from scidiff.core.errors import MissingLibrary, UsageError
from scidiff.store import targets

CONF = Path(__file__).resolve().parents[1] / "conf"
FILES = sorted(file for file in CONF.rglob("*.yaml") if file.parent != CONF)
OPTIONS = [file.relative_to(CONF).with_suffix("").as_posix() for file in FILES]
NEEDED = {"data/smiles_file": ["data.path=my.smi"], "data/field_file": ["data.path=my.nc"],
          "data/graph_file": ["data.path=my.graphml"], "data/cif_dir": ["data.path=cells"],
          "data/csv_dir": ["data.path=tables"], "data/volume_file": ["data.path=scan.nii.gz"]}
IN_RECONSTRUCT = ("operator", "posterior")


def check_targets(settings):
    """Every target may be used and exists; `_target_: null` stands for nothing at all."""
    for dotted in targets.targets_in(settings):
        assert dotted is None or targets.locate(dotted)


@pytest.mark.parametrize("verb", config.VERBS)
def test_primary_configs_compose(verb):
    settings = config.compose(verb)
    assert settings["seed"] == 0 and settings["out"] is None
    assert "hydra" not in settings
    check_targets(settings)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_its_targets_exist(option):
    group, _, name = option.rpartition("/")
    verb = "reconstruct" if group in IN_RECONSTRUCT else "train"
    words = [f"{group}={name}", *NEEDED.get(option, [])]
    domain = (yaml.safe_load((CONF / f"{option}.yaml").read_text()) or {}).get("domain")
    if isinstance(domain, (str, list)) and group != "domain":
        name = domain if isinstance(domain, str) else domain[0]
        if not (CONF / "domain" / f"{name}.yaml").is_file():
            pytest.skip(f"the domain {name} is not offered yet")
        words.insert(0, f"domain={name}")
    if group == "hydra/launcher" and find_spec("submitit") is None:
        with pytest.raises(MissingLibrary, match="pip install"):
            config.compose(verb, words)
        return
    check_targets(config.compose(verb, words))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_says_what_it_is_in_one_line(option):
    from scidiff.cli.catalog import headline

    assert 10 < len(headline(CONF / f"{option}.yaml")) < 120


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith("experiment/")])
def test_an_experiment_bears_its_name_and_leaves_the_trainer_to_its_own_group(option):
    content = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    assert content["experiment"] == Path(option).name
    assert "trainer" not in content, "it would win over trainer=debug; write a trainer option instead"
    assert config.compose("train", [f"experiment={Path(option).name}", "trainer=debug"])["trainer"]["max_steps"] == 20


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.startswith(("data/", "backbone/"))])
def test_data_and_backbones_say_which_domain_they_serve(option):
    domain = yaml.safe_load((CONF / f"{option}.yaml").read_text()).get("domain")
    assert domain is None or isinstance(domain, (str, list))
    assert domain is not None or option.startswith("backbone/")


@pytest.mark.parametrize("name", [option.removeprefix("data/") for option in OPTIONS if option.startswith("data/")])
def test_data_sets_have_a_card_or_a_path(name):
    from scidiff.store import cards

    content = config.read_option("data", name)
    if "path" not in content:
        assert cards.find(content["name"]).domain == content["domain"]


def test_names_of_options_are_flat():
    assert all(option.count("/") == 1 or option.startswith("hydra/") for option in OPTIONS)


@pytest.mark.parametrize("verb, words, sentence", [
    ("train", ["experimnt=x"], "no setting 'experimnt'. Did you mean 'experiment'"),
    ("train", ["trainer.max_step=3"], "Did you mean 'trainer.max_steps'"),
    ("train", ["data=qm99"], "no data set named 'qm99'. Did you mean 'qm9'"),
    ("train", ["experiment=qm9_flw"], "no experiment named 'qm9_flw'. Did you mean 'qm9_flow'"),
    ("generate", ["domain=molecul"], "no domain named 'molecul'. Did you mean 'molecule'"),
    ("generate", ["solver=mixtur"], "no solver named 'mixtur'. Did you mean 'mixture'"),
    ("generate", ["domain=4"], "cannot be put together|no domain named"),
    ("generate", ["backbone=pairformer_small"], "takes the backbone from the model"),
    ("generate", ["data.limit=3"], "takes the data set from the model"),
    ("generate", ["seed"], "is not a setting"),
    ("generate", ["=3"], "is not a setting"),
    ("generate", ["seed=1,2"], "Add -m to run them all"),
    ("generate", ["sampling.sizes=[1,2"], "cannot be read"),
    ("generate", ["seed=-1"], "seed must be a whole number"),
    ("generate", ["seed=half"], "seed must be a whole number"),
    ("generate", ["seed=true"], "seed must be a whole number"),
    ("generate", ["sampling.num=0"], "sampling.num must be a whole number above 0"),
    ("generate", ["sampling.num=2.5"], "sampling.num must be a whole number above 0"),
    ("generate", ["sampling.steps=-3"], "sampling.steps must be a whole number above 0"),
    ("generate", ["out=${nowhere}"], "nowhere"),
    ("train", ["data=smiles_file"], "The setting 'data.path' has no value"),
    ("generat", [], "no verb 'generat'"),
])
def test_wrong_settings_are_answered_by_one_sentence(verb, words, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        config.compose(verb, words)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_a_mismatch_of_data_and_domain_is_refused(elsewhere):
    folder = elsewhere / "conf" / "data"
    folder.mkdir(parents=True)
    (folder / "salt.yaml").write_text("# Cooking salt.\nname: salt\ndomain: crystal\n")
    with pytest.raises(UsageError, match=r"data set 'salt' belongs to the domain crystal, not to 'molecule'.*qm9"):
        config.compose("train", ["domain=molecule", "data=salt"])


def test_the_local_folder_comes_first_and_is_announced_once_a_command(elsewhere, monkeypatch):
    folder = elsewhere / "conf" / "solver"
    folder.mkdir(parents=True)
    (folder / "mixture.yaml").write_text("# Mine.\n_target_: scidiff.core.solvers.jump.Mixture\neta: 77\n")
    said = []
    monkeypatch.setattr(config._log, "info", said.append)
    settings, origins = config.explain("train", [])
    assert settings["solver"]["eta"] == 77
    assert origins["solver.eta"] == "conf/solver/mixture.yaml"
    assert said == ["Configs in ./conf are searched first."]


def test_a_plug_in_package_brings_its_own_configs(elsewhere, monkeypatch):
    package = elsewhere / "site" / "protein_plugin"
    (package / "conf" / "domain").mkdir(parents=True)
    (package / "conf" / "data").mkdir()
    (package / "__init__.py").write_text("raise AssertionError('finding configs must not import the package')\n")
    (package / "conf" / "domain" / "protein.yaml").write_text(
        "# @package _global_\n# Proteins.\ndefaults:\n  - /data: barn\n"
        "domain:\n  name: protein\n  offers: [train]\n"
    )
    (package / "conf" / "data" / "barn.yaml").write_text("# Barnase.\nname: barn\ndomain: protein\n")
    monkeypatch.setattr(sys, "path", [str(elsewhere / "site"), *sys.path])
    monkeypatch.setattr(config, "plugin_packages", lambda: ("protein_plugin",))
    assert "protein" in config.options("domain") and "molecule" in config.options("domain")
    settings = config.compose("train", ["domain=protein"])
    assert settings["domain"]["name"] == "protein" and settings["data"]["name"] == "barn"
    with pytest.raises(UsageError, match=r"'protien'\. Did you mean 'protein'"):
        config.compose("train", ["domain=protien"])


def test_sampling_verbs_lay_single_solver_settings_over_the_models_own():
    assert config.compose("generate")["solver"] == {}
    assert config.compose("generate", ["solver.method.eta=9"])["solver"] == {"method": {"eta": 9}}
    assert "_target_" in config.compose("generate", ["solver=mixture", "solver.steps=7"])["solver"]
    assert not set(config.RECIPE) & set(config.compose("generate"))


def test_conditions_and_reader_options_are_free():
    assert config.compose("generate", ["condition.qed=0.8"])["condition"] == {"qed": 0.8}
    assert config.compose("train", ["data.options.column=smi"])["data"]["options"] == {"column": "smi"}


def test_the_folder_of_the_data_may_be_told_to_every_verb(elsewhere):
    place = {"root": str(elsewhere / "files")}
    assert config.compose("evaluate", ["domain=crystal", "data.root=files"])["data"] == place
    assert config.compose("evaluate", ["data.root=files"])["data"] == place
    assert config.compose("generate", ["domain=crystal", "data.root=files"])["data"] == place
    assert "data" not in config.compose("generate", ["domain=crystal"])
    assert config.compose("train", ["domain=crystal", "data.root=files"])["data"]["root"] == "files"


def test_origins_name_the_file_that_had_the_last_word():
    _, origins = config.explain("train", ["experiment=nci5k_flow", "trainer.lr=1e-4"])
    assert origins["data.name"] == "conf/data/nci5k.yaml"
    assert origins["trainer.max_steps"] == "conf/trainer/cpu_short.yaml"
    assert origins["trainer.clip"] == "conf/trainer/cpu.yaml"
    assert origins["trainer.lr"] == "command line"


TEXTS = ["~/x y", "a 'b\\ c, d=e", "${a}", "a\\", "x\\'y", "a\\${b}", "true", "12", "", "ü", "a:b#c"]


@pytest.mark.parametrize("value", TEXTS)
def test_quoted_text_comes_back_unchanged(value):
    assert config.compose("generate", [f"out={config.quote(value)}"])["out"] == value


@pytest.mark.parametrize("value", [None, True, 3, 0.5, 1e-12, [4, 9], ["s0007", "s0008"]])
def test_quoted_values_come_back_unchanged(value):
    assert config.compose("generate", [f"sampling.only={config.quote(value)}"])["sampling"]["only"] == value


def test_a_sweep_runs_every_combination_as_a_command_of_its_own(elsewhere, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scidiff", "generate", "-m", "seed=1,2"])
    seen = []
    words = ["domain=molecule", "seed=1,2"]
    folder = config.sweep("generate", words, lambda one: seen.append((one["seed"], one["out"], sys.argv)))
    assert [seed for seed, *_ in seen] == [1, 2]
    assert [Path(out) for _, out, _ in seen] == [folder / "0", folder / "1"]
    assert all("-m" not in words and words[:2] == ["scidiff", "generate"] for *_, words in seen)
    assert config.compose("generate", seen[1][2][2:])["out"] == seen[1][1]
    assert sys.argv[2] == "-m"
    assert not list(elsewhere.rglob(".hydra"))


def test_a_sweep_stops_at_a_failing_job(elsewhere):
    def job(_):
        raise UsageError("No.")

    with pytest.raises(UsageError, match=r"^No\.$"):
        config.sweep("generate", ["seed=1,2"], job)


def test_composing_leaves_a_surrounding_hydra_application_alone(elsewhere):
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "app.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(elsewhere / "mine"), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        config.compose("generate")
        assert GlobalHydra.instance().hydra is outer
        assert hydra.compose("app").a == 1
