"""Model cards of priors and reconstructions after MI-CLAIM-GEN (Miao et al. 2024): card.md for people, and card.json.

A record is a mapping {section: {field: value}} with the sections of `SECTIONS`: study design, data and components,
performance, examination, reproducibility, and the label that a reader meets first. A value is text, a list or a mapping
of names to values. A field without a value is missing; where the honest answer is "none", it is written down as such,
with the reason. `Card.missing` names the mandatory fields that nobody filled in: a shipped prior may have none of them
(`require`), the card of a reconstruction prints them at its head.

    prior            a model as it is shipped: everything is mandatory but what only a use can tell
    reconstruction   one use of a prior on one measurement: what is known of a run is filled in by `of_run`; what only
                     the user can know (whom the patient stands for, which question is asked) stays missing until told
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scidiff.core.errors import ScidiffError, UsageError, nearest
from scidiff.store import atomic

PRIOR, RECONSTRUCTION = "prior", "reconstruction"
BOTH = (PRIOR, RECONSTRUCTION)
NOT_CLINICAL = "Not for clinical use: no decision about a patient may rest on these pictures."


@dataclass(frozen=True)
class Field:
    """One question of the checklist; `mandatory` says for which kinds of card."""

    key: str
    question: str
    mandatory: tuple[str, ...] = BOTH


SECTIONS: dict[str, tuple[str, tuple[Field, ...]]] = {
    "label": ("Model facts", (
        Field("summary", "What it is and does"),
        Field("developed", "How it was developed"),
        Field("intended_use", "Intended use"),
        Field("out_of_scope", "Uses out of scope"),
        Field("training_data", "Training data and integrations"),
        Field("performance", "Performance"),
        Field("limitations", "Limitations"),
        Field("biases", "Biases"),
        Field("risks", "Risks"),
        Field("recommendations", "Recommendations for safe use"),
    )),
    "study": ("1. Study design", (
        Field("problem", "Clinical problem"),
        Field("question", "Research question"),
        Field("cohort_selection", "How the cohort was selected, so that others can repeat it"),
        Field("labels", "How labels or references were made, by whom, and how far they agree"),
        Field("output", "Type of output: categorical, continuous or unstructured"),
        Field("cohort", "Characteristics of the cohort, and whom it represents"),
    )),
    "data": ("2. Data and components", (
        Field("model", "Base model, and every other model or tool"),
        Field("origin", "Origin and original format of all data"),
        Field("preprocessing", "Preprocessing and randomisation"),
        Field("independence", "Independence of training, validation and test data"),
        Field("patient_split", "Split at the level of patients", (PRIOR,)),
        Field("measurement", "Measurement: operator, noise, shape", (RECONSTRUCTION,)),
        Field("subjects", "Subjects used", (RECONSTRUCTION,)),
    )),
    "performance": ("3 and 4. Performance", (
        Field("baseline", "Baseline it is compared with", (PRIOR,)),
        Field("comparison", "Comparison with the baseline, with its significance", (PRIOR,)),
        Field("evaluation", "Kind of evaluation: agreement with a reference, agreement in meaning, clinical utility"),
        Field("primary_metric", "Primary metric, and why", (PRIOR,)),
        Field("human", "Evaluation by people"),
        Field("residual", "Agreement with the measurement", (RECONSTRUCTION,)),
    )),
    "examination": ("5. Examination", (
        Field("errors", "Interpretation or analysis of errors: catastrophic and undetected failure"),
        Field("risk", "Discussion of that risk"),
        Field("bias_privacy_security", "Bias, privacy and security: discussed, identified or mitigated"),
        Field("shift", "Shift of the distribution"),
        Field("monitoring", "Monitoring after deployment", (PRIOR,)),
        Field("invented", "How much of the picture the prior invented (energy in the null space)", (RECONSTRUCTION,)),
    )),
    "reproducibility": ("6. Reproducibility", (
        Field("tier", "Tier: 1 code, data, versions and evaluation; 2A code and synthetic data; 2B code; 3 none"),
        Field("settings", "Settings"),
        Field("hardware", "Hardware, time and cost"),
        Field("versions", "Versions of the software"),
        Field("command", "Command"),
        Field("weights", "Terms of the weights", (PRIOR,)),
        Field("checksum", "Checksum of the prior", (RECONSTRUCTION,)),
    )),
}


@dataclass(frozen=True)
class Card:
    """A model card: kind "prior" or "reconstruction", its name, and the record (module docstring)."""

    kind: str
    name: str
    record: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        if self.kind not in BOTH:
            raise UsageError(f"There is no model card of a {self.kind!r}.", nearest(self.kind, BOTH))
        for section, fields in self.record.items():
            if section not in SECTIONS:
                raise UsageError(f"A model card has no section {section!r}.", nearest(section, SECTIONS))
            known = [field.key for field in SECTIONS[section][1]]
            for key in fields:
                if key not in known:
                    raise UsageError(f"The section {section!r} of a model card has no field {key!r}.",
                                     nearest(key, known))

    def value(self, section: str, key: str) -> Any:
        """What was said, None where nothing was."""
        value = self.record.get(section, {}).get(key)
        return None if _empty(value) else value

    @property
    def missing(self) -> list[str]:
        """The mandatory fields of this kind without a value, as section.field."""
        return [f"{section}.{field.key}" for section, field in _fields() if self.kind in field.mandatory
                and self.value(section, field.key) is None]

    def require(self) -> Card:
        """Itself; ScidiffError that names the missing mandatory fields."""
        if self.missing:
            raise ScidiffError(f"The model card of {self.name} lacks {', '.join(self.missing)}.",
                               'Fill them in; where the answer is "none", say so and why.')
        return self

    def to_json(self) -> dict[str, Any]:
        """{kind, name, standard, complete, missing, sections: {section: {field: {question, mandatory, value}}}}."""
        sections: dict[str, dict[str, Any]] = {}
        for section, field in _fields():
            value = self.value(section, field.key)
            if value is not None or self.kind in field.mandatory:
                sections.setdefault(section, {})[field.key] = {
                    "question": field.question, "mandatory": self.kind in field.mandatory, "value": value}
        return {"kind": self.kind, "name": self.name, "standard": "MI-CLAIM-GEN", "complete": not self.missing,
                "missing": self.missing, "warning": NOT_CLINICAL, "sections": sections}

    def to_markdown(self) -> str:
        """The card for people; missing mandatory fields stand at its head and in their places."""
        lines = [f"# {self.name}", "", f"**{NOT_CLINICAL}**", ""]
        if self.missing:
            lines += [f"This card is incomplete: {len(self.missing)} mandatory fields of MI-CLAIM-GEN are missing "
                      f"({', '.join(self.missing)}).", ""]
        for section, (title, fields) in SECTIONS.items():
            lines += [f"## {title}", ""]
            for field in fields:
                value = self.value(section, field.key)
                if value is not None:
                    lines += _paragraph(field.question, value)
                elif self.kind in field.mandatory:
                    lines += [f"**{field.question}.** *Missing.*", ""]
        return "\n".join(lines).rstrip() + "\n"

    def write(self, folder: str | Path) -> list[Path]:
        """Writes card.md and card.json into a folder."""
        target = Path(folder)
        return [atomic.write_text(target / "card.md", self.to_markdown()),
                atomic.write_json(target / "card.json", self.to_json())]


def merged(*records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records laid over each other: later ones win, where they have a value."""
    out: dict[str, dict[str, Any]] = {}
    for record in records:
        for section, fields in record.items():
            place = out.setdefault(section, {})
            place.update({key: value for key, value in (fields or {}).items() if not _empty(value)})
    return out


# -- what is known without being told


def of_environment(environment: Mapping[str, Any], command: str = "", settings: Mapping[str, Any] | None = None,
                   seconds: float | None = None) -> dict[str, dict[str, Any]]:
    """Section 6 of a run: from its environment.json, its command and its settings."""
    hardware = [f"{environment.get('device', 'unknown device')}, {environment.get('threads', '?')} threads on "
                f"{environment.get('cores', '?')} cores ({environment.get('processor', 'unknown processor')})"]
    if seconds is not None:
        hardware.append(f"{seconds:,.0f} seconds")
    return {"reproducibility": {
        "settings": {"seed": environment.get("seed"), **(settings or {})},
        "hardware": "; ".join(hardware),
        "versions": {k: v for k, v in {**environment.get("versions", {}), "git": environment.get("git")}.items() if v},
        "command": command,
    }}


def of_run(run: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The record of a reconstruction, from what the run knows; every key may be absent.

    environment, command, settings, seconds     as for `of_environment`
    operator, noise, measurement                what measured; a text, a mapping or a shape
    simulated                                   whether the measurement was computed from a given volume
    prior {name, sha256, trained_on, figures, licence}, posterior
    subjects, origin, preprocessing             names of the volumes or measurements; their format; what was done first
    residual                                    {name: number}: |Ax - y| in units of the noise and the like
    invented                                    share of the energy in the null space, 0 to 1
    shift                                       sentences of the range and distribution checks; "" is a passed check
    metrics                                     {name: value or text} against a truth, where there is one
    """
    prior = run.get("prior") or {}
    simulated = run.get("simulated")
    name = prior.get("name")
    shift = run.get("shift")
    invented = run.get("invented")
    told = {
        "label": {
            "summary": f"A reconstruction by {run.get('posterior')} with the prior {name}." if name else None,
            "developed": "The prior was trained on other subjects; nothing was trained for this measurement.",
            "intended_use": "Research on reconstruction methods.",
            "out_of_scope": "Diagnosis, treatment, screening, and any scan unlike the training data of the prior.",
            "training_data": prior.get("trained_on"),
            "performance": run.get("metrics") or ("No reference exists for this measurement." if simulated is False
                                                  else None),
            "limitations": "What the measurement does not determine comes from the prior and may be wrong without any "
                           "trace in the picture.",
            "biases": "The prior knows few persons, scanners and protocols, and pulls pictures towards them.",
            "risks": "Small findings can be invented or removed, also where the residual is small.",
            "recommendations": "Look at the spread between samples and at the part that was invented; compare with a "
                               "reconstruction that has no learned prior.",
        },
        "study": {"output": "Unstructured: a volume of continuous values, with a standard deviation for each voxel.",
                  "labels": "None: a reconstruction has no labels."},
        "data": {
            "model": {k: v for k, v in (("prior", name), ("posterior", run.get("posterior"))) if v},
            "measurement": _measurement(run),
            "subjects": list(run.get("subjects") or []),
            "origin": run.get("origin"),
            "preprocessing": run.get("preprocessing"),
            "independence": prior.get("independence"),
        },
        "performance": {
            "evaluation": None if simulated is None else "Agreement with the volume that was measured, voxel by voxel."
            if simulated else "None: there is no reference.",
            "human": "None: nobody read these pictures.",
            "residual": run.get("residual"),
        },
        "examination": {
            "errors": "Residual, spread between samples and the energy in the null space are reported with the run."
            if run.get("residual") else None,
            "risk": "Features that the measurement does not support look like those that it does.",
            "bias_privacy_security": "Discussed: the bias is that of the prior's few training subjects. Files are read "
                                     "and written on this machine alone, and headers keep the names that they had.",
            "shift": None if shift is None else shift or "Values lie in the range that the prior was trained on.",
            "invented": None if invented is None else f"{100 * float(invented):.1f} % of the energy lies in the null "
            "space of the measurement: the prior put it there.",
        },
        "reproducibility": {
            "checksum": prior.get("sha256"),
            "weights": prior.get("licence"),
            "tier": run.get("tier"),
        },
    }
    settings = {**(run.get("settings") or {})}
    return merged(of_environment(run.get("environment") or {}, run.get("command", ""), settings, run.get("seconds"))
                  if run.get("environment") else {}, told)


def _measurement(run: Mapping[str, Any]) -> dict[str, Any]:
    how = {True: "simulated from the given volume", False: "measured"}.get(run.get("simulated"))  # type: ignore[arg-type]
    known = {"operator": run.get("operator"), "noise": run.get("noise"), "shape": run.get("measurement"), "origin": how}
    return {key: value for key, value in known.items() if not _empty(value)} if run.get("operator") else {}


# -- text


def _fields() -> Iterator[tuple[str, Field]]:
    for section, (_, fields) in SECTIONS.items():
        for field in fields:
            yield section, field


def _empty(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) and not len(value)


def _paragraph(question: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"**{question}**", "", *(f"- {key}: {_inline(item)}" for key, item in value.items()), ""]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [f"**{question}**", "", *(f"- {_inline(item)}" for item in value), ""]
    return [f"**{question}.** {_inline(value)}", ""]


def _inline(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_inline(item) for item in value)
    return " ".join(str(value).split())
