"""A contact sheet that shows what the labels mean and how augmentation changes the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont

from ovr_ray.images.augment import augmented
from ovr_ray.images.decoding import BadImage, read_image
from ovr_ray.images.labels import LabelTable
from ovr_ray.recipe import Augment, Data, Recipe

SAMPLES, DRAWS = 8, 2
"""Images per combination of labels, and augmented versions per image."""
COMBINATIONS = 20
"""Most combinations that are shown; they are the most frequent ones."""
TILE, GAP, HEADING = 128, 3, 30
"""Side of an image, space between images and height of a heading, in pixels."""
INK, MARK, PAPER = "#1a1a1a", "#666666", "#ffffff"


def contact_sheet(recipe: Recipe, table: LabelTable) -> Image.Image:
    """Draw training images of each combination of labels as they are stored, and below them augmented versions.

    Augmentation uses the widest settings that the recipe or any task's space allows.

    Parameters
    ----------
    recipe : Recipe
    table : LabelTable
        The labels and splits of the recipe's images.

    Returns
    -------
    Image
        RGB.
    """
    augment, rng = widest_augment(recipe), np.random.default_rng(recipe.search.seed)
    train = table.labels[table.splits == "train"].dropna(how="all")
    blocks = [_legend(augment)]
    combinations = train.fillna(-1).groupby(list(train.columns), sort=False)
    by_size = sorted((rows for _, rows in combinations), key=len, reverse=True)
    for rows in by_size[:COMBINATIONS]:
        names = table.files.loc[rows.index[rng.permutation(len(rows))]]
        tiles = list(_readable(names, recipe.data))
        if tiles:
            blocks += [_heading(f"{_caption(rows.iloc[0])}: {len(rows)} training images")]
            blocks += [_before_and_after(tiles, augment, rng)]
    if len(by_size) > COMBINATIONS:
        blocks.append(_heading(f"and {len(by_size) - COMBINATIONS} rarer combinations"))
    return _stacked(blocks)


def widest_augment(recipe: Recipe) -> Augment:
    """Return the largest value of every field that any trial may use."""
    widest = {}
    for name in Augment.model_fields:
        options = [value for task in recipe.tasks.values() for value in task.options(name)]
        of_recipe = getattr(recipe.augment, name)
        widest[name] = max(of_recipe if value is None else value for value in options)
    return Augment(**widest)


def _readable(names: Iterable[str], data: Data) -> Iterator[torch.Tensor]:
    """Yield the first :data:`SAMPLES` images that can be decoded; ``check`` reports the bad ones."""
    count = 0
    for name in names:
        try:
            image = read_image(f"{data.images}/{name}", data, data.image_size)
        except BadImage:
            continue
        yield torch.from_numpy(image.copy())
        count += 1
        if count == SAMPLES:
            return


def _before_and_after(images: list[torch.Tensor], augment: Augment, rng: np.random.Generator) -> Image.Image:
    from torchvision.utils import make_grid

    batch = torch.stack(images)
    rows = [batch, *(augmented(batch.clone(), augment, rng) for _ in range(DRAWS))]
    tiles = torch.nn.functional.interpolate(torch.cat(rows).float(), (TILE, TILE), mode="bilinear", antialias=True)
    grid = make_grid(tiles.round().byte(), nrow=len(images), padding=GAP, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).numpy())


def _caption(labels: pd.Series) -> str:
    wordings = {1: "{}", 0: "no {}", -1: "{} unknown"}
    return ", ".join(wordings[int(value)].format(task) for task, value in labels.items())


def _legend(augment: Augment) -> Image.Image:
    changes = ", ".join(f"{name} {value:g}" for name, value in augment if value) or "nothing"
    return _heading(f"first row: as stored; below: augmented by {changes}", MARK)


def _heading(text: str, color: str = INK) -> Image.Image:
    font = ImageFont.load_default(16)
    strip = Image.new("RGB", (round(font.getlength(text)) + 4 * GAP, HEADING), PAPER)
    ImageDraw.Draw(strip).text((2 * GAP, HEADING // 2), text, color, font, anchor="lm")
    return strip


def _stacked(blocks: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet
