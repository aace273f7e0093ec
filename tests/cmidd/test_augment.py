from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cmidd.augment import Draw, Strategy, augment, draw
from cmidd.augment_operations import NUM_NUMBERS, OPERATIONS, Amounts
from cmidd.options.pretrained import BankOptions
from cmidd.seeds import generator

ALL = "color_crop_cutout_flip_scale_rotate"
# Where the numbers of an operation stand among those of a group.
COLUMNS = {"color": 0, "crop": 3, "cutout": 5, "flip": 7, "scale": 8, "rotate": 10, "zoom": 11,
           "shuffle": 15}  # fmt: skip
SHAPES = [(3, 8, 8), (1, 28, 28), (3, 9, 7)]  # channels, height, width


def images_of(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=generator("images", *shape))


def drawn_for(text: str, groups: int, seed: int = 0) -> tuple[Strategy, Draw]:
    strategy = Strategy.parse(text)
    return strategy, draw(strategy, groups, generator("draw", seed))


def color(image: Tensor, u: list[float]) -> Tensor:
    image = image + (u[0] - 0.5)
    gray = image.mean(0)
    image = gray + 2 * u[1] * (image - gray)
    return image.mean() + (u[2] + 0.5) * (image - image.mean())


def crop(image: Tensor, u: list[float]) -> Tensor:
    _, height, width = image.shape
    most = [math.floor(0.125 * side + 0.5) for side in (height, width)]
    down, right = (int(u[i] * (2 * most[i] + 1)) - most[i] for i in range(2))
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                out[:, y, x] = image[:, y + down, x + right]
    return out


def cutout(image: Tensor, u: list[float]) -> Tensor:
    _, height, width = image.shape
    out = image.clone()
    spans = []
    for number, side in zip(u, (height, width), strict=True):
        length = math.floor(0.5 * side + 0.5)
        centre = int(number * (side + 1 - length % 2))
        spans.append(range(centre - length // 2, centre - length // 2 + length))
    for y in spans[0]:
        for x in spans[1]:
            if 0 <= y < height and 0 <= x < width:
                out[:, y, x] = 0
    return out


def flip(image: Tensor, u: list[float]) -> Tensor:
    return image.flip(2) if u[0] < 0.5 else image


def resample(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """Bilinear, pixel by pixel; sides go from -1 to 1 and pixels have their middle at halves."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x, y = (2 * j + 1) / width - 1, (2 * i + 1) / height - 1
            column = ((matrix[0][0] * x + matrix[0][1] * y + 1) * width - 1) / 2
            row = ((matrix[1][0] * x + matrix[1][1] * y + 1) * height - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return out


def scale(image: Tensor, u: list[float]) -> Tensor:
    across, down = (1 / 1.2 + number * (1.2 - 1 / 1.2) for number in u)
    return resample(image, [[across, 0], [0, down]])


def rotate(image: Tensor, u: list[float]) -> Tensor:
    angle = (2 * u[0] - 1) * 15 * math.pi / 180
    return resample(
        image, [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )


def zoom(image: Tensor, u: list[float]) -> Tensor:
    _, height, width = image.shape
    area = 0.08 + 0.92 * u[0]
    most = min(math.log(4 / 3), -math.log(area))
    ratio = math.exp((2 * u[1] - 1) * most)
    high = min(max(round(math.sqrt(area / ratio) * height), 1), height)
    wide = min(max(round(math.sqrt(area * ratio) * width), 1), width)
    top, left = int(u[2] * (height - high + 1)), int(u[3] * (width - wide + 1))
    part = image[None, :, top : top + high, left : left + wide]
    return F.interpolate(part, (height, width), mode="bilinear")[0]


def shuffle(image: Tensor, u: list[float]) -> Tensor:
    for number, axis in zip(u, (1, 2), strict=True):
        half = image.shape[axis] // 2
        first, second = torch.split(image, [half, image.shape[axis] - half], axis)
        image = torch.cat([second, first], axis) if number < 0.5 else image
    return image


REFERENCES = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
    "zoom": zoom,
    "shuffle": shuffle,
}


def reference(image: Tensor, strategy: Strategy, drawn: Draw, group: int) -> Tensor:
    for index in drawn.operations[group].tolist():
        name = strategy.operations[index]
        first = COLUMNS[name]
        u = drawn.numbers[group, first : first + OPERATIONS[name].numbers].tolist()
        image = REFERENCES[name](image, u)
    return image


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "text",
    [*REFERENCES, ALL, f"all:{ALL}", "all:rotate_crop_color", "all:zoom_flip", "all:shuffle_zoom"],
)
def test_images_change_as_written_out_pixel_by_pixel(
    text: str, shape: tuple[int, int, int]
) -> None:
    count = 6
    strategy, drawn = drawn_for(text, count)
    images = images_of(count, shape)
    got = augment(images, strategy, drawn)
    for i in range(count):
        expected = reference(images[i], strategy, drawn, i)
        torch.testing.assert_close(got[i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", [ALL, f"all:{ALL}", "cutout"])
def test_groups_in_one_call_are_the_same_as_one_group_at_a_time(text: str) -> None:
    strategy, drawn = drawn_for(text, 8)
    groups = torch.randint(8, (40,), generator=generator("groups"))
    images = images_of(40, (3, 8, 8))
    together = augment(images, strategy, drawn, groups)
    for group in range(8):
        alone = Draw(drawn.operations[group : group + 1], drawn.numbers[group : group + 1])
        expected = augment(images[groups == group], strategy, alone)
        torch.testing.assert_close(together[groups == group], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("text", [*OPERATIONS, f"all:{ALL}"])
def test_real_and_synthetic_images_of_a_draw_change_alike(text: str) -> None:
    strategy, drawn = drawn_for(text, 3)
    images = images_of(5, (3, 8, 8))
    real = augment(images, strategy, drawn, torch.tensor([0, 1, 2, 2, 1]))
    synthetic = augment(images[[4, 2]], strategy, drawn, torch.tensor([1, 2]))
    torch.testing.assert_close(synthetic, real[[4, 2]], rtol=0, atol=1e-14)


@pytest.mark.parametrize("text", [*OPERATIONS, ALL, f"all:{ALL}"])
def test_gradients_with_respect_to_images_are_right(text: str) -> None:
    strategy, drawn = drawn_for(text, 3)
    images = images_of(4, (2, 5, 6)).requires_grad_()
    groups = torch.tensor([2, 0, 1, 0])

    def changed(images: Tensor) -> Tensor:
        return augment(images, strategy, drawn, groups)

    assert torch.autograd.gradcheck(changed, (images,), fast_mode=True)
    assert torch.autograd.gradgradcheck(changed, (images,), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept_and_half_precision_computes_in_float32(dtype: torch.dtype) -> None:
    strategy, drawn = drawn_for(f"all:{ALL}", 4)
    images = images_of(4, (3, 8, 8)).to(dtype)
    got = augment(images, strategy, drawn)
    assert got.dtype == dtype
    exact = augment(images.double(), strategy, drawn)
    torch.testing.assert_close(got, exact.to(dtype), rtol=1e-2, atol=1e-5)


def test_images_are_left_as_they_were() -> None:
    images = images_of(4, (3, 8, 8))
    kept = images.clone()
    augment(images, *drawn_for(f"all:{ALL}", 4))
    assert torch.equal(images, kept)


def test_none_changes_nothing() -> None:
    images = images_of(4, (3, 8, 8))
    for text in ("none", "all:none"):
        assert torch.equal(augment(images, *drawn_for(text, 4)), images)


def test_amounts_of_zero_change_nothing() -> None:
    still = Amounts(
        brightness=0, saturation=0, contrast=1, crop=0, cutout=0, flip=0, scale=1, rotate=0, zoom=1
    )
    images = images_of(6, (1, 8, 8))
    strategy, drawn = drawn_for("all:crop_cutout_flip_scale_rotate_zoom", 6)
    got = augment(images, strategy, drawn, amounts=still)
    torch.testing.assert_close(got, images, rtol=0, atol=1e-14)


def test_a_draw_is_a_function_of_its_generator_alone() -> None:
    state = torch.get_rng_state()
    one, two, other = (drawn_for(ALL, 50, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.operations, two.operations)
    assert torch.equal(one.numbers, two.numbers)
    assert not torch.equal(one.numbers, other.numbers)


def test_numbers_of_an_operation_do_not_hang_on_the_strategy() -> None:
    images = images_of(5, (3, 8, 8))
    alone = augment(images, *drawn_for("crop", 5))
    assert torch.equal(alone, augment(images, *drawn_for("all:crop", 5)))


def test_single_draws_every_operation_equally_often() -> None:
    strategy, drawn = drawn_for(ALL, 6000)
    assert drawn.operations.shape == (6000, 1)
    assert drawn.numbers.shape == (6000, NUM_NUMBERS)
    counts = drawn.operations.flatten().bincount()
    assert len(counts) == len(strategy.operations)
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_all_takes_the_operations_in_the_order_of_the_strategy() -> None:
    _, drawn = drawn_for("all:rotate_color_flip", 2)
    assert drawn.operations.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_one_operation_is_shared_by_groups_with_numbers_of_their_own() -> None:
    strategy = Strategy.parse(ALL)
    seen = set()
    for seed in range(60):
        drawn = draw(strategy, 10, generator(seed), one_operation=True)
        assert len(set(drawn.operations.flatten().tolist())) == 1
        assert len(set(drawn.numbers[:, 0].tolist())) == 10
        seen.add(int(drawn.operations[0, 0]))
    assert seen == set(range(6))


def test_crops_shift_by_every_number_of_pixels_up_to_an_eighth() -> None:
    images = torch.zeros(400, 1, 16, 16)
    images[:, :, 8, 8] = 1
    places = augment(images, *drawn_for("crop", 400))[:, 0].nonzero()
    assert len(places) == 400
    assert set(places[:, 1].tolist()) == set(places[:, 2].tolist()) == set(range(6, 11))


def test_cutouts_reach_every_pixel_and_are_clipped_at_the_border() -> None:
    changed = augment(torch.ones(400, 1, 8, 8), *drawn_for("cutout", 400))
    holes = (changed == 0).sum((1, 2, 3))
    assert holes.min() == 4  # a quarter of the square, centred on a corner
    assert holes.max() == 16
    assert changed.min(0).values.max() == 0


def test_zooms_show_parts_of_every_area_and_every_pixel() -> None:
    squares = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(2000, 1, 8, 8)
    strategy, drawn = drawn_for("zoom", 2000)
    # A ramp along a side is a ramp over the part, whose ends are its first and last pixel.
    seen = augment(squares, strategy, drawn)[:, 0].round(decimals=3)
    assert seen.min() == 1
    assert seen.max() == 64
    wide, high = seen[:, 0, -1] - seen[:, 0, 0] + 1, (seen[:, -1, 0] - seen[:, 0, 0]) / 8 + 1
    ratios = wide / high
    assert set(wide.tolist()) == set(high.tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}
    assert 3 / 5 <= ratios.min() < ratios.max() <= 5 / 3  # 3:4 to 4:3 but for whole pixels
    shares = (wide * high / 64).sort().values
    assert abs(shares.mean() - 0.54) < 0.02
    assert (shares < 0.31).sum() > 400


def test_zoom_draws_after_all_else_so_that_other_operations_stay_as_they_were() -> None:
    _, without = drawn_for("all:crop_flip", 5)
    _, with_zoom = drawn_for("all:crop_flip_zoom", 5)
    assert torch.equal(without.numbers, with_zoom.numbers[:, :NUM_NUMBERS])
    assert with_zoom.numbers.shape == (5, NUM_NUMBERS + 4)
    assert len(set(with_zoom.numbers[:, NUM_NUMBERS:].flatten().tolist())) == 20


def test_shuffle_draws_after_zoom_and_takes_every_order_of_halves_equally_often() -> None:
    _, with_zoom = drawn_for("zoom", 5)
    _, with_both = drawn_for("shuffle_zoom", 5)
    assert with_zoom.numbers.shape == (5, NUM_NUMBERS + 4)
    assert with_both.numbers.shape == (5, NUM_NUMBERS + 6)
    assert torch.equal(with_both.numbers[:, : NUM_NUMBERS + 4], with_zoom.numbers)
    assert torch.equal(drawn_for("shuffle", 5)[1].numbers, with_both.numbers)
    quarters = torch.arange(4.0).view(1, 1, 2, 2).expand(4000, 1, 2, 2)
    strategy, drawn = drawn_for("idc:shuffle", 4000)
    first = augment(quarters, strategy, drawn)[:, 0, 0, 0].long()
    assert (first.bincount() - 1000).abs().max() < 140  # five standard deviations


def test_flips_half_of_the_images() -> None:
    images = images_of(1, (1, 4, 4)).expand(1000, 1, 4, 4)
    changed = augment(images, *drawn_for("flip", 1000))
    flipped = (changed == images.flip(3)).all(3).all(2).all(1)
    assert (changed == images).all(3).all(2).all(1).logical_xor(flipped).all()
    assert 420 < flipped.sum() < 580  # five standard deviations


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_numbers_stay_in_range(number: float) -> None:
    strategy = Strategy.parse(f"all:{ALL}_zoom_shuffle")
    numbers = torch.full((1, NUM_NUMBERS + 6), number, dtype=torch.float64)
    drawn = Draw(torch.arange(8)[None], numbers)
    images = images_of(2, (3, 9, 7))
    for image, changed in zip(images, augment(images, strategy, drawn), strict=True):
        expected = reference(image, strategy, drawn, 0)
        torch.testing.assert_close(changed, expected, rtol=0, atol=1e-12)


@given(st.permutations(list(OPERATIONS)), st.integers(0, 6), st.booleans())
def test_a_strategy_reads_what_it_prints(names: list[str], count: int, every: bool) -> None:
    text = "all:" * every + ("_".join(names[:count]) or "none")
    strategy = Strategy.parse(text)
    assert strategy == Strategy(tuple(names[:count]), "all" if every else "single")
    assert str(strategy) == text


@given(st.text("_:acdeflopr", max_size=12))
def test_any_other_text_is_an_error_that_lists_the_operations(text: str) -> None:
    names = text.removeprefix("all:")
    if set(names.split("_")) <= set(OPERATIONS):
        return
    with pytest.raises(ValueError, match=r"no operation .* color, crop, cutout, flip"):
        Strategy.parse(text)


def test_the_help_of_those_who_train_networks_lists_all_operations() -> None:
    text = " ".join((BankOptions.__doc__ or "").split())
    assert f"augmentation: operations {', '.join(OPERATIONS)} joined by _" in text


def test_an_operation_named_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="crop_flip_crop: name each operation once"):
        Strategy.parse("crop_flip_crop")


def test_without_leaves_operations_out() -> None:
    assert str(Strategy.parse(ALL).without("flip")) == "color_crop_cutout_scale_rotate"
    assert str(Strategy.parse("all:crop_flip").without("flip", "crop", "scale")) == "all:none"
    with pytest.raises(ValueError, match="no operation 'flipp'"):
        Strategy.parse(ALL).without("flipp")


@pytest.mark.parametrize(
    ("images", "groups", "told"),
    [
        (torch.zeros(3, 8, 8), None, r"images .*\(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), None, "images must be one or more"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), None, "images .*torch.uint8"),
        (torch.zeros(4, 3, 8, 8), None, "groups is needed to spread 4 images over 3"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(3).long(), "groups must be 4 int64"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), "groups must be 4 int64.*got torch.float32"),
        (torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), "from 0 to 2.*got 0 to 3"),
        (torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, -1, 2]), "from 0 to 2.*got -1 to 2"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(
    images: Tensor, groups: Tensor | None, told: str
) -> None:
    strategy, drawn = drawn_for(ALL, 3)
    with pytest.raises(ValueError, match=told):
        augment(images, strategy, drawn, groups)
