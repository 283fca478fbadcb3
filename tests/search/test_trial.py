"""How a trial copes with too little memory; all else of a trial runs in test_run.py."""

from __future__ import annotations

import pytest

from ovr_ray.search.trial import in_parts

BATCH = 16


class Gpu:
    """Stands for a GPU that holds so many images of a network; there is none here."""

    def __init__(self, images: int) -> None:
        self.images, self.asked = images, list[int]()

    def train(self, parts: int) -> dict[str, str]:
        self.asked.append(parts)
        return {} if BATCH / parts <= self.images else {"out_of_memory": f"in {parts} parts"}


@pytest.mark.parametrize(("images", "asked"), [(16, [1]), (8, [1, 2]), (5, [1, 2, 4]), (2, [1, 2, 4, 8])])
def test_too_large_a_batch_is_taken_in_parts(images: int, asked: list[int]) -> None:
    gpu = Gpu(images)
    assert in_parts(gpu.train, BATCH) == {}
    assert gpu.asked == asked


def test_a_network_too_large_for_two_images_is_told() -> None:
    gpu = Gpu(images=1)
    assert in_parts(gpu.train, BATCH) == {"out_of_memory": "in 8 parts"}
    assert gpu.asked == [1, 2, 4, 8]


def test_another_reason_ends_it_at_once() -> None:
    asked = []
    told = in_parts(lambda parts: asked.append(parts) or {"diverged": "nan"}, BATCH)  # type: ignore[func-returns-value]
    assert told == {"diverged": "nan"}
    assert asked == [1]
