"""Data cards: every shipped one is complete and honest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scidiff.core.errors import ScidiffError, UsageError
from scidiff.store import cards, references


def test_shipped_cards_are_complete() -> None:
    assert {"qm9", "zinc250k", "nci5k"} <= set(cards.names())
    for name in cards.names():
        card = cards.find(name)
        assert card.name == name and card.layouts and card.sources and card.licence
        assert card.folder is not None and (card.folder / "README.md").is_file()
        assert set(card.citation) <= set(references.keys())
        assert not list(card.folder.glob("*.py"))
        for source in card.sources:
            assert source.sha256 is None or (len(source.sha256) == 64 and int(source.sha256, 16) >= 0)


def test_qm9_names_what_a_folder_may_hold() -> None:
    card = cards.find("qm9")
    assert card.files[0] == "qm9_smiles.csv.gz" and card.needs_network
    assert card.splits["train"] + card.splits["test"] == 133_885
    assert not cards.find("nci5k").needs_network


def test_unknown_data_set() -> None:
    with pytest.raises(UsageError, match="'zinc250k'"):
        cards.find("zinc25k")


def write(tmp_path: Path, **changes: object) -> Path:
    content = {
        "name": "toy",
        "title": "Toy",
        "task": "none",
        "domain": "toy",
        "source": "generate://toy?size=3&seed=1",
        "licence": "CC0",
        "layouts": [{"reader": "toy"}],
        **changes,
    }
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def test_generators_carry_their_options(tmp_path: Path) -> None:
    (source,) = cards.read(write(tmp_path)).sources
    assert (source.scheme, source.name, source.options) == ("generate", "toy", {"size": "3", "seed": "1"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"licence": None}, "lacks licence"),
        ({"licenses": "x"}, "unknown key 'licenses'"),
        ({"source": "http://example.org/a.csv"}, "https://"),
        ({"source": "file:///etc/passwd"}, "https://"),
        ({"source": "ftp://example.org/a.csv"}, "https://"),
        ({"source": [{"name": "a"}]}, "no url"),
        ({"source": [{"url": "https://example.org/a", "name": "../a"}]}, "plain file name"),
        ({"layouts": "table"}, "layouts"),
    ],
)
def test_a_wrong_card_is_one_sentence(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ScidiffError, match=words):
        cards.read(write(tmp_path, **changes))


def test_loopback_is_allowed_for_tests(tmp_path: Path) -> None:
    assert cards.read(write(tmp_path, source="http://127.0.0.1:8000/a.csv")).sources[0].name == "a.csv"
