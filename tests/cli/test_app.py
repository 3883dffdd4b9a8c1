"""The command line from words to `scidiff.api`, with a stand-in for the work itself."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import yaml

from scidiff.cli.app import run
from scidiff.store.run import RunFolder


@pytest.fixture
def calls(monkeypatch):
    """Replaces scidiff.api; collects (verb, settings) of what reaches it."""
    import scidiff

    seen = []
    api = types.ModuleType("scidiff.api")

    def verb(name):
        def work(settings, progress=None):
            progress("Working", 1, 1)
            if settings.get("out"):
                progress.started(settings["out"])
            if settings["seed"] == 666:
                raise KeyboardInterrupt
            if settings["seed"] == 13:
                raise RuntimeError("bad luck")
            seen.append((name, settings))
            return types.SimpleNamespace(folder=settings.get("out") or "runs/x", summary={"samples": 3})
        return work

    for name in ("generate", "train", "evaluate", "reconstruct", "rollout"):
        setattr(api, name, verb(name))
    api.fetch = lambda name, progress=None: {"a.smi": Path("/cache/a.smi")}
    monkeypatch.setitem(sys.modules, "scidiff.api", api)
    monkeypatch.setattr(scidiff, "api", api, raising=False)
    return seen


def test_every_flag_of_generate_sets_what_its_help_names(calls, elsewhere):
    words = "generate molecule -n 5 --seed 3 --steps 20 --num-atoms 4-9 --condition qed=0.8 --guide 2"
    words += " --device cpu --batch 4 --out here --only s0001 sampling.report=false"
    assert run(words.split()) == 0
    (verb, s), = calls
    assert verb == "generate" and s["domain"]["name"] == "molecule"
    assert s["sampling"] == {**s["sampling"], "num": 5, "steps": 20, "sizes": [4, 9], "chunk": 4, "only": ["s0001"],
                             "report": False}
    assert (s["seed"], s["out"], s["condition"], s["device"]["device"]) == (3, "here", {"qed": 0.8}, "cpu")
    assert s["guidance"]["weight"] == 2.0


def test_every_flag_of_crystals_sets_what_its_help_names(calls, elsewhere):
    words = "generate crystal --formula NaCl --z 1,2,4 --elements Li,O --lattice 4.2 --like mp_20_open --poscar"
    assert run([*words.split(), "--sites", "Ti 0 0 0; O .5 .5 0", "--start", "template", "--rank", "--num-atoms",
                "4-12", "data.root=somewhere"]) == 0
    (_, s), = calls
    assert s["domain"]["name"] == "crystal"
    assert s["domain"]["options"] == {"formula": "NaCl", "z": "1,2,4", "elements": "Li,O", "lattice": "4.2",
                                      "like": "mp_20_open", "poscar": True, "sites": "Ti 0 0 0; O .5 .5 0"}
    assert (s["sampling"]["start"], s["sampling"]["rank"], s["sampling"]["sizes"]) == ("template", True, [4, 12])
    assert s["data"] == {"root": str(elsewhere / "somewhere")}


def test_settings_win_over_flags(calls, elsewhere):
    assert run(["generate", "molecule", "-n", "5", "sampling.num=6"]) == 0
    assert calls[0][1]["sampling"]["num"] == 6


def test_the_summary_names_results_and_the_next_command(calls, elsewhere, capsys):
    run(["generate", "molecule", "--out", "here"])
    out = capsys.readouterr().out
    assert "Results: here" in out and "scidiff evaluate here" in out


def test_dry_run_prints_yaml_and_does_nothing(calls, elsewhere, capsys):
    assert run(["train", "nci5k_flow", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["name"] == "nci5k"
    assert not calls and not list(elsewhere.iterdir())


def test_a_sweep_reaches_the_work_once_for_each_combination(calls, elsewhere):
    assert run(["generate", "molecule", "-m", "seed=1,2", "sampling.num=3,4"]) == 0
    assert [(s["seed"], s["sampling"]["num"]) for _, s in calls] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    assert len({s["out"] for _, s in calls}) == 4


def test_the_folder_of_an_interrupted_run_is_named(calls, elsewhere, capsys):
    assert run(["generate", "molecule", "--seed", "666", "--out", "here"]) == 130
    assert "scidiff generate --resume here" in capsys.readouterr().err


def test_an_unforeseen_failure_is_one_sentence_and_a_traceback_on_demand(calls, elsewhere, capsys):
    assert run(["generate", "molecule", "--seed", "13"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("Error: RuntimeError: bad luck.")
    assert run(["--debug", "generate", "molecule", "--seed", "13"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.fixture
def earlier(calls, elsewhere):
    run(["generate", "molecule", "-n", "7", "--seed", "5"])
    settings = calls.pop()[1]
    return RunFolder.create("generate", "m", 5, settings, out=elsewhere / "earlier").path


def test_a_resumed_run_keeps_its_settings(calls, earlier):
    assert run(["generate", "molecule", "--resume", str(earlier)]) == 0
    s = calls[0][1]
    assert (s["sampling"]["num"], s["seed"], s["resume"], s["out"]) == (7, 5, str(earlier), str(earlier))


def test_single_samples_of_a_finished_run_can_be_drawn_again(calls, earlier, capsys):
    RunFolder(earlier).finish()
    assert run(["generate", "--resume", str(earlier)]) == 2
    assert "already finished" in capsys.readouterr().err
    assert run(["generate", "--resume", str(earlier), "--only", "s0003", "--out", "again"]) == 0
    s = calls[0][1]
    assert (s["sampling"]["only"], s["out"], s["resume"]) == (["s0003"], "again", str(earlier))


@pytest.mark.parametrize("more, sentence", [
    (["-n", "8"], "leave out 'sampling.num=8'"),
    (["solver=mixture"], "leave out 'solver=mixture'"),
    (["--from", "x"], "leave out '--from'"),
    (["--out", "x"], "stays in its folder"),
    (["crystal"], "belongs to the domain 'molecule', not 'crystal'"),
])
def test_a_resumed_run_refuses_other_settings(calls, earlier, more, sentence, capsys):
    assert run(["generate", "--resume", str(earlier), *more]) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_of_another_verb_cannot_be_resumed(calls, earlier, capsys):
    assert run(["train", "--resume", str(earlier)]) == 2
    assert "not a run of 'scidiff train'" in capsys.readouterr().err


def test_evaluate_takes_the_domain_from_the_run_or_the_reference(calls, earlier, elsewhere):
    Path("my.smi").write_text("C\n")
    assert run(["evaluate", str(earlier)]) == 0
    assert run(["evaluate", "my.smi", "--reference", "qm9"]) == 0
    assert run(["evaluate", "my.smi"]) == 0
    assert run(["evaluate", "--publish"]) == 0
    first, second, third, fourth = (s for _, s in calls)
    assert first["domain"]["name"] == second["domain"]["name"] == third["domain"]["name"] == "molecule"
    assert second["reference"] == "qm9" and fourth["publish"] is True and fourth["path"] is None


def test_fetch_prints_where_the_files_are(calls, elsewhere, capsys):
    assert run(["fetch", "qm9"]) == 0
    assert capsys.readouterr().out == "/cache/a.smi\n"


@pytest.mark.parametrize("words, sentence", [
    (["generat"], "No such command 'generat'. Did you mean 'generate'?"),
    (["generate"], "Name a domain (crystal, graph, medical, molecule) or a model with --from."),
    (["generate", "molecul"], "There is no domain named 'molecul'. Did you mean 'molecule' or 'medical'?"),
    (["generate", "molecule", "crystal"], "takes one domain"),
    (["generate", "molecule", "-n", "0"], "-n must be above 0, not 0."),
    (["generate", "molecule", "-n", "-4"], "-n must be above 0, not -4."),
    (["generate", "molecule", "-n", "many"], "Invalid value for"),
    (["generate", "molecule", "--stepz", "3"], "No such option: --stepz"),
    (["generate", "molecule", "--seed", "-1"], "The seed must be"),
    (["generate", "molecule", "--from", "qm8x"], "'qm8x'"),
    (["generate", "molecule", "solver=mixtur"], "There is no solver named 'mixtur'. Did you mean 'mixture' or"),
    (["generate", "molecule", "--device", "cud"], "There is no device named 'cud'. Did you mean 'cuda'"),
    (["generate", "molecule", "--resume", "nowhere"], "The run folder nowhere does not exist."),
    (["generate", "molecule", "-m", "--dry-run"], "--dry-run shows one run."),
    (["train", "qm9_flo"], "There is no experiment named 'qm9_flo'. Did you mean 'qm9_flow' or"),
    (["train", "experimnt=x"], "'train' has no setting 'experimnt'. Did you mean 'experiment'?"),
    (["evaluate"], "takes one file or folder"),
    (["evaluate", "nowhere.smi"], "There is no file or folder 'nowhere.smi'."),
    (["evaluate", ".", "--reference", "qm8"], "There is no data set named 'qm8'. Did you mean 'qm9'?"),
    (["fetch", "qm8"], "There is no data set named 'qm8'. Did you mean 'qm9'?"),
    (["list", "sovers"], "There is no list of 'sovers'. Did you mean 'solvers'"),
    (["show", "generat"], "Did you mean 'generate'?"),
    (["copy", "experiment/qm9", "."], "There is no experiment named 'qm9'. Did you mean 'qm9_gdss' or 'qm9_flow'?"),
    (["copy", "experimen/qm9", "."], "There is no config group 'experimen'. Did you mean 'experiment'?"),
    (["new", "domein", "toy"], "'new' cannot write a 'domein'. It writes: domain."),
    (["new", "domain", "1toy"], "'1toy' cannot name a domain."),
    (["new", "domain", "molecule"], "A domain named 'molecule' is already installed."),
    (["reconstruct", "x.nii.gz"], "There is no file or folder 'x.nii.gz'."),
    (["generate", "pde"], "The domain 'pde' does not offer 'generate'. It offers: rollout, train, evaluate."),
])
def test_wrong_usage_is_one_sentence_and_exit_code_2(calls, elsewhere, words, sentence, capsys):
    assert run(words) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and sentence in errors[0]
    assert "Traceback" not in printed.err and not calls
    assert not list(elsewhere.iterdir()), "nothing may be left behind"


def test_results_cannot_go_into_a_file(calls, elsewhere, capsys):
    Path("taken").write_text("")
    assert run(["generate", "molecule", "--out", "taken/here"]) == 2
    assert "taken/here cannot be a folder" in capsys.readouterr().err


def test_without_words_the_help_is_shown(capsys):
    assert run([]) == 0
    printed = capsys.readouterr()
    assert "Usage: scidiff" in printed.out and "generate" in printed.out and not printed.err
