"""The weight files of GDSS as its authors release them, turned into a checkpoint.

What such a file holds (public code of Jo, Lee & Hwang 2022, arXiv 2202.02514):

    model_config               data {data, max_node_num, max_feat_num, init}, sde {x, adj} {type, beta_min, beta_max},
                               and for some sets sampler {predictor, corrector, snr, scale_eps} and sample {use_ema}
    params_x, params_adj       the arguments of the two networks
    x_state_dict, adj_state_dict          their weights
    ema_x, ema_adj             {shadow_params}: averaged weights as a list, in the order of the state dict

Names of weights, for the network of the nodes (-> node_score.) and of the edges (-> edge_score.) alike; l is a layer,
c a channel, and the channels of a layer are stacked into one tensor:

    layers.l.weight, .bias                  layers.l.weight, .bias                     GCN
    layers.l.attn.c.gnn_q.weight, .bias     layers.l.query[c], layers.l.query_bias[c]
    layers.l.attn.c.gnn_k, gnn_v            layers.l.key, layers.l.value               likewise
    layers.l.multi_channel.linears.i        layers.l.node_mlp.linears.i
    layers.l.mlp.linears.i                  layers.l.edge_mlp.linears.i
    final.linears.i                         readout.linears.i

A prefix `module.` (weights of several GPUs) is dropped. As published, the averaged weights are taken for ENZYMES and
Grid alone, or as the file's own `sample.use_ema` says. Columns of the nodes are the elements C N O F (QM9), C N O F P S
Cl Br I (ZINC250k) or the one-hot degree; edges are raw bond orders, or 0 and 1. The file holds no histogram of sizes:
`SETS` keeps those of the training splits, counted on the data sets as the authors split them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scidiff.core.errors import ScidiffError

if TYPE_CHECKING:
    from torch import Tensor

KEYS = ("model_config", "params_x", "params_adj", "x_state_dict", "adj_state_dict")
_RENAMED = (
    (re.compile(r"layers\.(\d+)\.(weight|bias)"), r"layers.\1.\2"),
    (re.compile(r"layers\.(\d+)\.multi_channel\.linears\.(\d+)\.(weight|bias)"), r"layers.\1.node_mlp.linears.\2.\3"),
    (re.compile(r"layers\.(\d+)\.mlp\.linears\.(\d+)\.(weight|bias)"), r"layers.\1.edge_mlp.linears.\2.\3"),
    (re.compile(r"final\.linears\.(\d+)\.(weight|bias)"), r"readout.linears.\1.\2"),
)
_CHANNEL = re.compile(r"layers\.(\d+)\.attn\.(\d+)\.gnn_([qkv])\.(weight|bias)")
_ROLES = {"q": "query", "k": "key", "v": "value"}
_MOST = 4096


@dataclass(frozen=True)
class KnownSet:
    """A data set of the paper: our name of it, its domain, elements, sizes {nodes: graphs of the training split}, and
    the published sampler (predictor, snr and scale of the corrector, None without one) and choice of weights."""

    card: str
    domain: str = "graph"
    elements: tuple[str, ...] = ()
    sizes: Mapping[int, int] = field(default_factory=dict)
    predictor: str = "Euler"
    snr: float | None = None
    scale: float = 1.0
    averaged: bool = False


SETS = {
    "QM9": KnownSet("qm9", "molecule", ("C", "N", "O", "F"), {
        1: 3, 2: 4, 3: 8, 4: 26, 5: 115, 6: 558, 7: 2903, 8: 16541, 9: 100645}, "Reverse", 0.2, 0.7),
    "ZINC250k": KnownSet("zinc250k", "molecule", ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I"), {
        6: 3, 7: 5, 8: 13, 9: 67, 10: 178, 11: 654, 12: 1053, 13: 1606, 14: 2532, 15: 3844, 16: 5695, 17: 7863,
        18: 10489, 19: 13065, 20: 15906, 21: 18296, 22: 16825, 23: 18950, 24: 20907, 25: 20537, 26: 17331, 27: 14237,
        28: 9057, 29: 6991, 30: 5478, 31: 4320, 32: 3375, 33: 2327, 34: 1553, 35: 925, 36: 358, 37: 126, 38: 2},
        "Reverse", 0.2, 0.9),
    "ego_small": KnownSet("ego_small", sizes={
        4: 56, 5: 32, 6: 20, 7: 16, 8: 9, 9: 6, 10: 5, 11: 4, 12: 3, 13: 3, 14: 1, 16: 5}),
    "community_small": KnownSet("community_small", sizes={12: 21, 14: 20, 16: 15, 18: 13, 20: 11}, snr=0.05, scale=0.7),
    "ENZYMES": KnownSet("enzymes", sizes={
        10: 2, 11: 5, 12: 12, 13: 6, 14: 11, 15: 8, 16: 6, 17: 4, 18: 13, 19: 10, 20: 13, 21: 14, 22: 13, 23: 8, 24: 18,
        25: 15, 26: 19, 27: 19, 28: 16, 29: 10, 30: 10, 31: 5, 32: 12, 33: 10, 34: 12, 35: 6, 36: 8, 37: 9, 38: 13,
        39: 13, 40: 16, 41: 13, 42: 19, 43: 5, 44: 18, 45: 4, 46: 9, 47: 4, 48: 13, 49: 3, 50: 8, 51: 5, 52: 7, 54: 2,
        55: 3, 56: 2, 57: 3, 58: 1, 60: 4, 62: 2, 64: 1, 66: 3, 74: 1, 96: 1, 121: 1, 123: 1, 125: 1},
        predictor="S4", snr=0.15, scale=0.7, averaged=True),
    "grid": KnownSet("grid", sizes={
        110: 1, 121: 1, 130: 1, 132: 1, 140: 2, 143: 3, 144: 1, 150: 4, 156: 2, 160: 1, 165: 2, 168: 2, 169: 1, 170: 1,
        176: 2, 180: 5, 190: 3, 192: 2, 195: 1, 196: 1, 204: 3, 208: 1, 209: 1, 210: 1, 216: 5, 221: 3, 228: 2, 234: 1,
        238: 2, 240: 1, 247: 1, 252: 3, 255: 2, 266: 1, 270: 2, 272: 2, 285: 1, 288: 3, 304: 1, 306: 3, 324: 2, 342: 2},
        predictor="Reverse", snr=0.1, scale=0.7, averaged=True),
}


@dataclass(frozen=True)
class Converted:
    """A released file as config and weights of a checkpoint; `data`: the set as its authors call it."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    data: str
    averaged: bool


def convert(content: Any, file: str) -> Converted:
    """The checkpoint from what `released.read` returned; ScidiffError names what is missing.

    The sizes in the domain's options are those of `SETS`, or empty (any size up to the largest) for another set.
    """
    if not isinstance(content, dict) or any(not isinstance(content.get(key), dict) for key in KEYS):
        raise ScidiffError(f"{file} holds no GDSS model.", f"Such a file holds {', '.join(KEYS)}.")
    about, (n_max, features) = content["model_config"], _shape(content, file)
    name = str(_at(about, "data", file).get("data"))
    known = SETS.get(name, KnownSet(re.sub(r"\W+", "_", name).lower(), predictor="Euler"))
    if _at(about, "data", file).get("init") == "atom" and not known.elements:
        raise ScidiffError(f"{file} was trained on the molecules {name!r}, and does not say which element each of its "
                           f"columns is.", f"Known are {', '.join(n for n, s in SETS.items() if s.elements)}.")
    if known.elements and len(known.elements) != features:
        raise ScidiffError(f"{file} has {features} columns for the {len(known.elements)} elements of {name}.")
    nodes, edges = ("atoms", "bonds") if known.domain == "molecule" else ("nodes", "edges")
    sizes = [known.sizes.get(n, 0) for n in range(n_max + 1)] if known.sizes else []
    options: dict[str, Any] = {"n_max": n_max, "sizes": sizes, "codec": "gdss"}
    options.update({"tokens": list(known.elements)} if known.elements else {"degrees": features})
    spec, kinds = _spec(_at(about, "sde", file), {nodes: ("x", features), edges: ("adj", None)}, file)
    backbone = {"_target_": "scidiff.nn.gdss.GDSS", "features": features, "nodes": nodes, "edges": edges,
                **_arguments(content["params_x"], content["params_adj"], file)}
    averaged = (about.get("sample") or {}).get("use_ema", known.averaged)
    config = {
        "experiment": f"{known.card}_gdss", "alias": "",
        "summary": f"GDSS for {name}, from a weight file of the published code",
        "domain": {"name": known.domain, "options": options}, "spec": spec, "backbone": backbone,
        "denoiser": {"kinds": kinds}, "statistics": {"sizes": sizes}, "data": {"name": known.card, "split": "train"},
        "solver": solver(about.get("sampler") or _published(known, backbone["node_attention"]),
                         _count(_at(_at(about, "sde", file), "adj", file), "num_scales", file), file),
    }
    weights = {f"{ours}.{key}": value for ours, part in (("node_score", "x"), ("edge_score", "adj"))
               for key, value in renamed(_weights(content, part, bool(averaged), file), file).items()}
    return Converted(config, weights, name, bool(averaged))


def renamed(weights: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The weights of one network under the names of ours (table of the module docstring)."""
    import torch

    out: dict[str, Tensor] = {}
    channels: dict[str, dict[int, Tensor]] = {}
    for key, value in weights.items():
        if match := _CHANNEL.fullmatch(key):
            layer, channel, role, kind = match.groups()
            ours = f"layers.{layer}.{_ROLES[role]}{'_bias' if kind == 'bias' else ''}"
            channels.setdefault(ours, {})[int(channel)] = value
        else:
            found = next((p.sub(new, key) for p, new in _RENAMED if p.fullmatch(key)), None)
            if found is None:
                raise ScidiffError(f"{file} holds a weight {key[:80]!r} that no GDSS network has.")
            out[found] = value
    for ours, parts in channels.items():
        rows = [parts[c] for c in range(len(parts)) if c in parts]
        if len(rows) < len(parts) or any(row.shape != rows[0].shape for row in rows):
            raise ScidiffError(f"{file} lacks channels of {ours!r}.")
        out[ours] = torch.stack(rows)
    return out


def _weights(content: Mapping[str, Any], part: str, averaged: bool, file: str) -> dict[str, Tensor]:
    """Weights of the network `part` ("x" or "adj"), in float32; the averaged ones where they are asked for."""
    import torch

    state = content[f"{part}_state_dict"]
    if averaged:
        shadow = (content.get(f"ema_{part}") or {}).get("shadow_params")
        if not isinstance(shadow, list) or len(shadow) != len(state):
            raise ScidiffError(f"{file} lacks the averaged weights ema_{part} that its sampling takes.")
        state = dict(zip(state, shadow, strict=True))
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ScidiffError(f"{file} has no weights in {part}_state_dict.")
    return {str(key).removeprefix("module."): value.float() for key, value in state.items()}


def _spec(sdes: Mapping[str, Any], parts: Mapping[str, tuple[str, int | None]], file: str
          ) -> tuple[dict[str, Any], dict[str, str]]:
    """The StateSpec as a config, and what each network predicts: the score on VE paths, the noise on the others."""
    from scidiff.core.path.edm import VE
    from scidiff.core.path.vp import VP, SubVP
    from scidiff.core.space import Euclidean, Symmetric
    from scidiff.core.spec import Component, StateSpec

    laws = {"VP": VP, "VE": VE, "subVP": SubVP}
    components, kinds = {}, {}
    for component, (name, features) in parts.items():
        about = _at(sdes, name, file)
        law = laws.get(str(about.get("type")))
        low, high = about.get("beta_min"), about.get("beta_max")
        if law is None or not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
            raise ScidiffError(f"{file} describes no known SDE for {name!r}: {about.get('type')!r}.")
        # Whatever the schedule, the published sampler starts from N(0, 1) and training from t = 1e-5.
        path = law(float(low), float(high), t_min=1e-5, source_std=1.0, weight="noise")
        space, shape = (Symmetric(), ("N", "N")) if features is None else (Euclidean(), ("N", features))
        components[component] = Component(space, path, shape)
        kinds[component] = "score" if law is VE else "noise"
    return StateSpec(components).to_config(), kinds


def _arguments(x: Mapping[str, Any], adj: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Settings of `scidiff.nn.gdss.GDSS` from the arguments of both networks."""
    attention = x.get("model_type") == "ScoreNetworkX_GMH"
    if x.get("model_type") not in ("ScoreNetworkX", "ScoreNetworkX_GMH") or adj.get("model_type") != "ScoreNetworkA":
        raise ScidiffError(f"{file} holds networks of an unknown type: {x.get('model_type')!r}, "
                           f"{adj.get('model_type')!r}.")
    if adj.get("conv", "GCN") != "GCN" or x.get("conv", "GCN") != "GCN":
        raise ScidiffError(f"{file} takes queries and keys from an MLP; only the published form (GCN) is read.")
    shared = {"width": "nhid", "mlp_depth": "num_linears", "heads": "num_heads", "d_attention": "adim",
              "c_initial": "c_init", "c_hidden": "c_hid", "c_final": "c_final"}
    out = {ours: _count(adj, theirs, file) for ours, theirs in shared.items()}
    for ours, theirs in shared.items():
        if (attention or theirs == "nhid") and _count(x, theirs, file) != out[ours]:
            raise ScidiffError(f"The two networks of {file} differ in {theirs!r}, which is not supported.")
    depths = {"node_depth": _count(x, "depth", file), "edge_depth": _count(adj, "num_layers", file)}
    return {**out, **depths, "node_attention": attention}


def _shape(content: Mapping[str, Any], file: str) -> tuple[int, int]:
    return _count(content["params_adj"], "max_node_num", file), _count(content["params_x"], "max_feat_num", file)


def _count(node: Mapping[str, Any], key: str, file: str) -> int:
    value = node.get(key)
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ScidiffError(f"{file} has no usable {key!r}: {value!r}.")
    return value


def _at(node: Mapping[str, Any], key: str, file: str) -> Mapping[str, Any]:
    found = node.get(key)
    if not isinstance(found, dict):
        raise ScidiffError(f"{file} has no section {key!r} in its settings.")
    return found


def _published(known: KnownSet, attention: bool) -> dict[str, Any]:
    """The sampler of the paper, in the words of its settings; the attention form of ZINC250k has a scale of its own."""
    scale = 0.8 if attention and known.card == "zinc250k" else known.scale
    corrector = "None" if known.snr is None else "Langevin"
    return {"predictor": known.predictor, "corrector": corrector, "snr": known.snr, "scale_eps": scale, "n_steps": 1}


def solver(sampler: Mapping[str, Any], steps: int, file: str) -> dict[str, Any]:
    """The solver that a `sampler` section stands for: `steps` times from 1 to 1e-4, norms over the batch."""
    predictor, corrector = sampler.get("predictor"), sampler.get("corrector")
    snr, scale, times = sampler.get("snr"), sampler.get("scale_eps"), sampler.get("n_steps", 1)
    if predictor not in ("Euler", "Reverse", "S4") or not isinstance(times, int):
        raise ScidiffError(f"{file} names an unknown sampler: {predictor!r}, {corrector!r}.")
    home, corrected = "scidiff.core.solvers", predictor == "S4" or corrector == "Langevin"
    norms: dict[str, Any] = {"batch_norms": True}
    if corrected:
        if not isinstance(snr, (int, float)) or not isinstance(scale, (int, float)):
            raise ScidiffError(f"{file} gives no snr and scale for its corrector.")
        norms = {"snr": float(snr), "scale": float(scale), **norms}
    if predictor == "S4":
        method = {"_target_": f"{home}.splitting.Splitting", **norms, "exact": False}
    else:
        rule = {"_target_": f"{home}.reverse.Reverse", "rule": str(predictor).lower()}
        method = {"_target_": f"{home}.predictor_corrector.PredictorCorrector", "predictor": rule,
                  "n_corr": times if corrected else 0, **norms, "before": True}
    return {"_target_": f"{home}.fixed.Fixed", "steps": steps, "t_end": 1e-4, "method": method}


def card(config: Mapping[str, Any], weights: Mapping[str, Tensor], data: str, file: str, averaged: bool,
         sizes: str) -> str:
    """What a person should know of the converted model."""
    counts = [sum(v.numel() for k, v in weights.items() if k.startswith(part)) for part in ("node", "edge")]
    domain = config["domain"]["name"]
    return "\n".join([
        f"# {config['experiment']}", "",
        f"GDSS for {data} (Jo, Lee & Hwang 2022, arXiv 2202.02514): networks of {counts[0]:,} and {counts[1]:,} "
        "parameters, copied from a weight file of the published code.", "",
        f"* file: `{file}`, {'averaged' if averaged else 'plain'} weights, as the published sampling takes them",
        f"* sizes of samples: {sizes}",
        "* sampler: the settings of the paper; norms of the corrector are taken over the computed batch, so samples "
        "depend on which of them are drawn together (`sampling.chunk`)",
        "* licence: that of whoever trained the weights; the repository of the published code states none",
        *(["* elements and bond orders only: no charges except those of the +1 rule"] if domain == "molecule" else []),
    ])
