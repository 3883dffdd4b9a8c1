"""Released GDSS files as checkpoints: the same numbers under our names, the same outputs, the published settings."""

from __future__ import annotations

import collections
import csv
import gzip
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from scidiff.core.errors import ScidiffError
from scidiff.core.spec import Context
from scidiff.store import gdss
from scidiff.store.model import assemble

published = runpy.run_path(str(Path(__file__).with_name("published_gdss.py")))


def outputs(made, nets, size, batch=5):
    """Raw outputs of the converted backbone and of the published networks on one noisy state with padding."""
    features, n = made.config["backbone"]["features"], size
    nodes, edges = made.config["backbone"]["nodes"], made.config["backbone"]["edges"]
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(2, n + 1, (batch,), generator=generator)
    sizes[0] = n
    ctx = Context(torch.arange(batch), sizes, n)
    real = (torch.arange(n)[None, :] < sizes[:, None]).float()
    x = torch.randn(batch, n, features, generator=generator) * real.unsqueeze(-1)
    a = torch.randn(batch, n, n, generator=generator).triu(1)
    a = (a + a.transpose(1, 2)) * real.unsqueeze(1) * real.unsqueeze(2)
    _, denoiser = assemble(made.config, made.weights)
    with torch.no_grad():
        ours = denoiser.backbone({nodes: x, edges: a}, torch.full((batch,), 0.5), ctx)
        return [ours[nodes], ours[edges]], [net(x, a, real) for net in nets]


COMMUNITY = {"data": "community_small", "max_node_num": 20, "max_feat_num": 10, "init": "deg"}
ENZYMES = {"data": "ENZYMES", "max_node_num": 12, "max_feat_num": 10, "init": "deg"}


@pytest.mark.parametrize("options, averaged", [
    ({}, False),
    ({"prefix": "module."}, False),
    ({"attention": True, "depth": 2}, False),
    ({"attention": True, "depth": 3, "num_linears": 2}, False),
    ({"data": COMMUNITY, "sde": (published["VP"], published["VP"]), "depth": 3, "num_linears": 2, "adim": 8}, False),
    ({"data": ENZYMES, "sde": (published["VP"], published["VE"])}, True),
    ({"more": {"sample": {"use_ema": True}}}, True),
])
def test_the_converted_networks_give_the_published_outputs(options, averaged):
    held, nets, means = published["content"](**options)
    made = gdss.convert(held, "f.pth")
    assert made.averaged == averaged
    ours, theirs = outputs(made, means if averaged else nets, made.config["domain"]["options"]["n_max"])
    for a, b in zip(ours, theirs, strict=True):
        assert b.std() > 0.05 and (a - b).abs().max() < 1e-4 * b.std()
    held_numbers = sum(p.numel() for net in nets for p in net.parameters())
    assert sum(v.numel() for v in made.weights.values()) == held_numbers


def test_the_weights_are_the_same_numbers_under_other_names():
    held, nets, _ = published["content"]()
    made = gdss.convert(held, "f.pth")
    x, adj = (net.state_dict() for net in nets)
    w = made.weights
    assert torch.equal(w["node_score.layers.1.weight"], x["layers.1.weight"])
    assert torch.equal(w["node_score.readout.linears.2.bias"], x["final.linears.2.bias"])
    for c in range(6):
        for role, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            assert torch.equal(w[f"edge_score.layers.2.{role}"][c], adj[f"layers.2.attn.{c}.gnn_{theirs}.weight"])
            assert torch.equal(w[f"edge_score.layers.2.{role}_bias"][c], adj[f"layers.2.attn.{c}.gnn_{theirs}.bias"])
    assert torch.equal(w["edge_score.layers.0.edge_mlp.linears.1.weight"], adj["layers.0.mlp.linears.1.weight"])
    assert torch.equal(w["edge_score.layers.0.node_mlp.linears.0.bias"], adj["layers.0.multi_channel.linears.0.bias"])


def test_domain_paths_and_solver_of_the_published_molecules():
    made = gdss.convert(published["content"]()[0], "f.pth")
    config = made.config
    assert config["experiment"] == "qm9_gdss" and config["domain"]["name"] == "molecule"
    options = config["domain"]["options"]
    assert options["tokens"] == ["C", "N", "O", "F"] and options["codec"] == "gdss" and options["n_max"] == 9
    assert sum(options["sizes"]) == 120803 and options["sizes"][9] == 100645
    spec, denoiser = assemble(config, made.weights)
    for name in ("atoms", "bonds"):
        path = spec[name].path
        assert (path.sigma_min, path.sigma_max, path.source_std) == (0.1, 1.0, 1.0)
    assert denoiser.kinds == {"atoms": "score", "bonds": "score"} and spec["bonds"].space.symmetric
    method = config["solver"]["method"]
    assert (method["snr"], method["scale"], method["batch_norms"], method["before"]) == (0.2, 0.7, True, True)
    assert method["predictor"]["rule"] == "reverse" and config["solver"]["steps"] == 1000
    v2 = gdss.convert(published["content"](
        {"data": "ZINC250k", "max_node_num": 38, "max_feat_num": 9, "init": "atom"}, (published["VP"], published["VE"]),
        attention=True)[0], "f.pth").config
    assert v2["denoiser"]["kinds"] == {"atoms": "noise", "bonds": "score"} and v2["solver"]["method"]["scale"] == 0.8
    assert v2["domain"]["options"]["tokens"] == ["C", "N", "O", "F", "P", "S", "Cl", "Br", "I"]


def test_samplers_of_graphs():
    own = {"sampler": {"predictor": "S4", "corrector": "None", "snr": 0.15, "scale_eps": 0.7, "n_steps": 1}}
    config = gdss.convert(published["content"](ENZYMES, more=own)[0], "f.pth").config
    assert config["solver"]["method"] == {"_target_": "scidiff.core.solvers.splitting.Splitting", "snr": 0.15,
                                          "scale": 0.7, "batch_norms": True, "exact": False}
    assert config["domain"] == {"name": "graph", "options": {
        "n_max": 12, "sizes": [0] * 10 + [2, 5, 12], "codec": "gdss", "degrees": 10}}
    other = gdss.convert(published["content"]({**COMMUNITY, "data": "My graphs"})[0], "f.pth").config
    assert other["experiment"] == "my_graphs_gdss" and other["domain"]["options"]["sizes"] == []
    assert other["solver"]["method"]["n_corr"] == 0 and other["solver"]["method"]["predictor"]["rule"] == "euler"


GRID = {"type": "VP", "beta_min": 0.2, "beta_max": 0.8, "num_scales": 1000}
VE2 = {**published["VE"], "beta_min": 0.2}
PUBLISHED = {  # largest size, columns, SDEs, width, layers of the nodes' and edges' networks, maps; then parameters
    "QM9": (9, 4, published["VE"], published["VE"], 16, 2, 3, 3, 8_564 + 23_825),
    "ZINC250k": (38, 9, published["VP"], VE2, 16, 2, 6, 3, 11_429 + 62_873),
    "ego_small": (18, 17, published["VP"], published["VP"], 32, 2, 5, 2, 44_093 + 135_713),
    "community_small": (20, 10, published["VP"], published["VP"], 32, 3, 5, 2, 72_434 + 134_369),
    "ENZYMES": (125, 10, published["VP"], VE2, 32, 5, 7, 2, 182_066 + 204_113),
    "grid": (361, 5, published["VP"], GRID, 32, 5, 7, 2, 170_081 + 203_153)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_released_model_is_what_our_experiment_of_that_name_trains(name):
    from scidiff import config as configs

    n, features, x, adj, width, depth, layers, linears, count = PUBLISHED[name]
    about = {"data": name, "max_node_num": n, "max_feat_num": features, "init": "atom" if features in (4, 9) else "deg"}
    held, _, _ = published["content"](about, (x, adj), depth=depth, nhid=width, adim=width, num_layers=layers,
                                      num_linears=linears, c_hid=8)
    converted = gdss.convert(held, "f.pth")
    made = converted.config
    assert sum(w.numel() for w in converted.weights.values()) == count
    trained = configs.compose("train", [f"experiment={made['experiment']}"])

    def within(part, whole):
        """Every setting of `part` that the other one names as well is the same there."""
        if isinstance(part, dict):
            return all(within(part[k], whole[k]) for k in part.keys() & whole.keys())
        return part == whole

    assert within(made["solver"], trained["solver"]) and made["solver"]["method"].keys() <= trained["solver"][
        "method"].keys()
    assert within(made["backbone"], trained["backbone"]) and made["data"]["name"] == trained["data"]["name"]
    assert made["domain"]["name"] == trained["domain"]["name"]
    assert all(made["domain"]["options"][k] == v for k, v in trained["domain"]["options"].items() if v is not None)
    kinds, paths = trained["process"]["denoiser"]["kinds"], trained["process"]["components"]
    for component, c in made["spec"].items():
        assert made["denoiser"]["kinds"][component] == kinds.get(component, kinds.get("default"))
        assert within(paths.get(component, paths.get("default")), c["path"])


@pytest.mark.parametrize("change, sentence", [
    (lambda h: h.pop("x_state_dict"), "holds no GDSS model. Such a file holds model_config"),
    (lambda h: h["params_x"].update(depth=True), "no usable 'depth': True"),
    (lambda h: h["params_adj"].update(nhid=10**9), "no usable 'nhid'"),
    (lambda h: h["params_adj"].update(nhid=16), "differ in 'nhid'"),
    (lambda h: h["params_adj"].update(conv="MLP"), "only the published form"),
    (lambda h: h["params_x"].update(model_type="Other"), "unknown type: 'Other'"),
    (lambda h: h["x_state_dict"].update({"layers.0.extra": torch.ones(1)}), "'layers.0.extra' that no GDSS network"),
    (lambda h: h["x_state_dict"].update({"final.linears.0.bias": 3}), "no weights in x_state_dict"),
    (lambda h: h["adj_state_dict"].pop("layers.1.attn.2.gnn_q.weight"), "lacks channels"),
    (lambda h: h["model_config"]["sde"]["x"].update(type="OU"), "no known SDE for 'x': 'OU'"),
    (lambda h: h["model_config"].pop("sde"), "no section 'sde'"),
    (lambda h: h["model_config"]["data"].update(data="PubChem"), "does not say which element"),
    (lambda h: h["params_x"].update(max_feat_num=5), "5 columns for the 4 elements"),
    (lambda h: h["model_config"].update(sampler={"predictor": "Heun"}), "unknown sampler: 'Heun'"),
    (lambda h: h["model_config"].update(sampler={"predictor": "S4"}), "gives no snr"),
    (lambda h: (h["model_config"].update(sample={"use_ema": True}), h.pop("ema_adj")), "averaged weights ema_adj"),
])
def test_what_is_missing_or_unknown_is_named(change, sentence):
    held, _, _ = published["content"]()
    change(held)
    with pytest.raises(ScidiffError, match=sentence):
        gdss.convert(held, "f.pth")


def test_weights_of_another_shape_do_not_fit():
    held, _, _ = published["content"]()
    held["x_state_dict"]["layers.0.weight"] = torch.ones(3, 3)
    made = gdss.convert(held, "f.pth")
    with pytest.raises(ScidiffError, match="do not fit the network"):
        assemble(made.config, made.weights)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if known.elements else ()) for name, known in gdss.SETS.items()])
def test_the_kept_sizes_are_those_of_the_training_split(data, name):
    known = gdss.SETS[name]
    if known.domain == "graph":
        stored = np.load(data / "graph" / f"{known.card}.npz", allow_pickle=False)
        found = stored["n_nodes"][stored["split"] == 0].tolist()
    else:
        file = {"qm9": "qm9_smiles"}.get(known.card, known.card)
        with gzip.open(data / "graph" / f"{file}.csv.gz", "rt") as stream:
            found = [int(row["n_atoms"]) for row in csv.DictReader(stream) if row["split"] == "train"]
    assert dict(collections.Counter(found)) == known.sizes
