from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from upath import UPath

from ovr_ray.errors import BadInput
from ovr_ray.model import Card, forget, load_sub_model, load_training, read_card, save
from ovr_ray.recipe import Config
from tests.support import BACKBONE

CARD = Card(
    task="crack",
    config=Config(backbone=BACKBONE, weights=None).model_dump(mode="json"),
    epoch=3,
    metrics={"val_f1": 0.5},
    threshold=0.4,
    stored_size=32,
    image_size=32,
    channels=1,
    mean=[0.5],
    std=[0.2],
)


@pytest.fixture(params=["folder", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A folder on disk, and one in an object store."""
    return UPath(tmp_path / "c") if request.param == "folder" else UPath("memory://checkpoint-test/c")


def test_what_is_saved_is_loaded(folder: UPath) -> None:
    sub_model = CARD.sub_model().eval()
    save(folder, CARD, sub_model, {"epoch": 3, "optimizer": {}})
    card = read_card(folder)
    assert card
    assert (card.task, card.epoch, card.threshold, card.config) == ("crack", 3, 0.4, CARD.config)
    images = torch.randint(0, 255, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(load_sub_model(folder, card)(images), sub_model(images))
    assert load_training(folder, CARD.sub_model()) == {"epoch": 3, "optimizer": {}}
    forget(folder, weights_too=False)
    assert read_card(folder)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert read_card(folder, sizes) == card
    assert read_card(folder, sizes | {"weights.pt": sizes["weights.pt"] - 1}) is None
    assert read_card(folder, {"weights.pt": sizes["weights.pt"]}) is None
    forget(folder, weights_too=True)
    assert read_card(folder) is None


def test_a_checkpoint_that_knows_more_or_fewer_fields_is_loaded(tmp_path: Path) -> None:
    for config in ({"backbone": BACKBONE}, CARD.config | {"of another version": 1}):
        other = replace(CARD, config=config)
        save(UPath(tmp_path / "c"), other, other.sub_model(), {})
        card = read_card(UPath(tmp_path / "c"))
        assert card
        assert load_sub_model(UPath(tmp_path / "c"), card)(torch.zeros(2, 1, 32, 32)).shape == (2,)


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("file", ["weights.pt", "training.pt"])
def test_a_hostile_checkpoint_runs_no_code(file: str, tmp_path: Path) -> None:
    folder = UPath(tmp_path / "c")
    save(folder, CARD, CARD.sub_model(), {})
    torch.save(Trap(tmp_path / "sprung"), folder / file)
    with pytest.raises(BadInput, match="not a file of tensors"):
        load_training(folder, CARD.sub_model())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("damage", ["no json", "half a json", "half the weights", "no weights"])
def test_a_half_written_checkpoint_is_none(damage: str, tmp_path: Path) -> None:
    folder = UPath(tmp_path / "c")
    save(folder, CARD, CARD.sub_model(), {})
    json, weights = folder / "sub_model.json", folder / "weights.pt"
    if damage == "no json":
        json.unlink()
    elif damage == "half a json":
        json.write_text(json.read_text()[:50])
    elif damage == "half the weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    assert read_card(folder) is None
