"""Image classification with ResNet-18: uint8 images on the training device, all else in batches.

Normalisation is the first layer of the model, so the model takes the images as they are stored.
Axes: images ``[n, channels, height, width]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from grokscope.probe import Look
from grokscope.spec import Images
from grokscope.tasks.image_data import ImageSet, read_images, stratified
from grokscope.tasks.models.resnet import ResNet18
from grokscope.tasks.task import Augmentation, Split, Task

# Mean and standard deviation of each channel; cifar10: as published with the paper's code.
NORMALISATIONS = {
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
MEASURED_AT_ONCE = 256  # images; activations of more would take memory and no less time


class Normalise(nn.Module):
    """uint8 images ``[n, channels, h, w]`` to float, of about mean 0 and standard deviation 1.

    Args:
        mean: Mean of each channel, or one for all channels, on the scale from 0 to 1.
        std: Standard deviation, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # On the scale of the bytes: one subtraction and one division for each pixel.
        for name, values in (("mean", mean), ("std", std)):
            scaled = 255 * torch.tensor(values, dtype=torch.float32)
            self.register_buffer(name, scaled[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images of the same shape, float32."""
        return (images - self.mean) / self.std


class CropAndFlip(Augmentation):
    """A random crop after padding with zeros, and a random horizontal flip, image by image.

    Args:
        padding: Black pixels added on each side before the crop; 0 for no crop.
        flip: Whether images are mirrored, with probability one half.
    """

    def __init__(self, padding: int, flip: bool) -> None:
        self.padding, self.flip = padding, flip

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Whether to mirror, rows and columns to shift by: ``[count, 3]``, integers."""
        drawn = torch.zeros(3, count, dtype=torch.int64)
        if self.flip:
            drawn[0] = torch.rand(count, generator=generator) < 0.5
        if self.padding:
            size = (2, count, 1)
            drawn[1:] = torch.randint(2 * self.padding + 1, size, generator=generator)[..., 0]
        return drawn.T

    def __call__(self, inputs: Tensor, drawn: Tensor) -> Tensor:
        """Augmented images. Cost: one gather of the batch, on its device."""
        count, channels, height, width = inputs.shape
        device, pad = inputs.device, self.padding
        mirrored, down, right = drawn.unsqueeze(-1).unbind(1)  # [count, 1] each
        columns = torch.arange(width, device=device)
        columns = torch.where(mirrored > 0, width - 1 - columns, columns) + right
        rows = torch.arange(height, device=device) + down
        if pad:
            inputs = functional.pad(inputs, (pad, pad, pad, pad))
        places = rows[:, :, None] * inputs.shape[-1] + columns[:, None, :]
        index = places.view(count, 1, -1).expand(-1, channels, -1)
        return inputs.flatten(2).gather(2, index).view(count, channels, height, width)


def images(settings: Images, split_seed: int) -> Task:
    """The task that the settings describe.

    Args:
        settings: Source of the images, sizes of the splits, and network.
        split_seed: Seed of the subsets, which are stratified by class. The measured subset is the
            first examples of a split, so it is stratified up to chance.

    Raises:
        ValueError: If the data cannot be read, or have fewer images than are asked for.
    """
    generator = torch.Generator().manual_seed(split_seed)
    everything = read_images(settings.source, "train", settings.size)
    test = read_images(settings.source, "test", settings.size)
    shape, other = everything.images.shape[1:], test.images.shape[1:]
    if shape != other:
        raise ValueError(
            f"the training images of {settings.source} have shape {tuple(shape)} [channels, "
            f"height, width], the test images {tuple(other)}; they must be the same. "
            "task.size=32 brings all to one height and width"
        )
    classes = max(everything.classes, test.classes)
    from_train = settings.validation_from == "train"
    source = everything if from_train else test
    held_out, rest = _drawn(source, settings.validation_examples, "validation", generator)
    if not from_train:
        rest = everything
    elif len(rest) < 2:
        raise ValueError(
            f"task.validation_examples={settings.validation_examples} leaves {len(rest)} of "
            f"{len(everything)} images to train on"
        )
    train, _ = _drawn(rest, settings.train_examples, "train", generator)
    mean, std = _normalisation(settings, train)
    design = (settings.stem, settings.initialisation, settings.width)
    network = ResNet18(classes, *design, channels=train.images.shape[1])
    augments = settings.crop_padding or settings.flip
    return Task(
        model=nn.Sequential(Normalise(mean, std), network),
        train=_split(train),
        validation=_split(held_out),
        look=Look(batch_size=MEASURED_AT_ONCE),
        test=_split(test) if from_train else None,
        augment=CropAndFlip(settings.crop_padding, settings.flip) if augments else None,
    )


def _drawn(
    data: ImageSet, count: int | None, which: str, generator: torch.Generator
) -> tuple[ImageSet, ImageSet]:
    """A stratified part in random order, and the rest; for None all of the data are drawn."""
    total = len(data)
    if count is not None and count > total:
        raise ValueError(
            f"task.{which}_examples={count} is more than the {total} images there are to draw from"
        )
    taken, left = stratified(data.labels, total if count is None else count, generator)
    return data.take(taken), data.take(left)


def _split(data: ImageSet) -> Split:
    return Split(data.images, data.labels)


def _normalisation(settings: Images, train: ImageSet) -> tuple[tuple[float, ...], ...]:
    channels = train.images.shape[1]
    if settings.normalisation != "data":
        mean, std = NORMALISATIONS[settings.normalisation]
        if len(mean) not in (1, channels):
            raise ValueError(
                f"task.normalisation={settings.normalisation} is for {len(mean)} channels, but the "
                f"images have {channels}; choose half or data"
            )
        return mean, std
    # Sums of whole numbers: exact, and without a float copy of all images.
    values = torch.arange(256, dtype=torch.float64) / 255
    flat = train.images.transpose(0, 1).reshape(channels, -1)
    counts = torch.stack([channel.bincount(minlength=256) for channel in flat.int()]).double()
    share = counts / counts.sum(1, keepdim=True)
    means = share @ values
    spread = (share @ values.square() - means.square()).clamp(min=1e-12).sqrt()
    return tuple(means.tolist()), tuple(spread.tolist())
