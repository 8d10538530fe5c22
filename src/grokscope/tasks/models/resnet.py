"""ResNet-18 for small and large images, as torchvision defines it, without torchvision.

Axes: images ``[n, 3, height, width]``. He et al. (2016); parameters carry torchvision's names, so
its state dicts load.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from grokscope.tasks.models.per_network import per_network

Stem = Literal["imagenet", "cifar"]
Initialisation = Literal["pytorch", "torchvision"]
SMALL_MAP = 4  # height and width up to which convolutions on a CPU are faster channels first


class Convolution(nn.Conv2d):
    """A square convolution without bias, padded by half its size; an `nn.Conv2d` like any other.

    An output of one position is computed as a matrix product with the taps that meet the image,
    since the others only multiply padding. This is the same function, up to rounding.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        size: Height and width of the kernel; odd, so that all sides are padded alike.
        stride: Pixels from one position to the next.

    Cost: of one position ``n * outputs * inputs * taps`` multiply-adds, where ``taps`` of the
    ``size ** 2`` meet the image: 1 at 3x3 on one pixel, 4 on 2x2 pixels.
    """

    is_ordinary = True  # for whoever asks which of its weights ever meet an image

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``, rounded up."""
        height, width = x.shape[-2:]
        if max(height, width) > self.stride[0]:  # there is a second position
            convolve = partial(functional.conv2d, stride=self.stride, padding=self.padding)
            return per_network(convolve, x, self.weight)
        size, middle = self.kernel_size[0], self.kernel_size[0] // 2
        rows, columns = min(height, middle + 1), min(width, middle + 1)  # the rest is out of reach
        # The kernel is cut once, from its first tap that meets the image to its last: each cut
        # costs a gradient of the whole kernel. Taps in between that do not are given zeros.
        start, length = middle * (size + 1), (rows - 1) * size + columns
        seen = functional.pad(x[..., :rows, :columns], (0, size - columns))
        seen = seen.flatten(-2)[..., :length].flatten(-2)
        taps = self.weight.flatten(2)[..., start : start + length].flatten(1)
        return per_network(functional.linear, seen, taps)[..., None, None]


class BatchNorm(nn.BatchNorm2d):
    """An `nn.BatchNorm2d` like any other; networks under vmap are normalised one by one."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, channels, h, w]`` to the same shape; updates the statistics in training."""
        mean, variance, count = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is None or variance is None or count is None or self.momentum is None:
            return super().forward(x)  # somebody has changed its settings
        if self.training:
            count.add_(1)
        normalise = partial(
            functional.batch_norm, training=self.training, momentum=self.momentum, eps=self.eps
        )
        tensors = (x, mean, variance, self.weight, self.bias)
        return per_network(normalise, *tensors)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Convolution(inputs, outputs, 3, stride)
        self.bn1 = BatchNorm(outputs)
        self.conv2 = Convolution(outputs, outputs, 3)
        self.bn2 = BatchNorm(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            shortcut = Convolution(inputs, outputs, 1, stride)
            self.downsample = nn.Sequential(shortcut, BatchNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[n, inputs, h, w]`` to ``[n, outputs, h / stride, w / stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        hidden = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(hidden)) + shortcut, inplace=True)


class ResNet18(nn.Module):
    """ResNet-18: logits ``[n, classes]`` of images ``[n, channels, h, w]``.

    Args:
        classes: Outputs of the head ``fc``.
        stem: ``imagenet`` is a 7x7 convolution of stride 2 and a max-pool, as in the paper's
            CIFAR-10 experiments; ``cifar`` a 3x3 convolution alone, as in its augmented one.
        initialisation: ``pytorch`` leaves each layer its default, as in the paper's code;
            ``torchvision`` draws convolutions from He's normal distribution (fan out).
        width: Channels of the first stage; 64 in ResNet-18.
        channels: Channels of the images.

    Cost: 11,181,642 parameters with 10 classes and the 7x7 stem, 11,173,962 with the 3x3 one. On
    32x32 images 0.03 and 0.56 G multiply-adds forward: the 3x3 stem keeps the image large. Behind
    the 7x7 stem, 6.95 of 11.17 million convolution weights never receive a gradient on such images,
    since they only multiply padding in the last stage.
    """

    def __init__(
        self,
        classes: int = 10,
        stem: Stem = "imagenet",
        initialisation: Initialisation = "pytorch",
        width: int = 64,
        *,
        channels: int = 3,
    ) -> None:
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = Convolution(channels, width, 7 if large else 3, 2 if large else 1)
        self.bn1 = BatchNorm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        self.layer1 = _stage(width, width, 1)
        self.layer2 = _stage(width, 2 * width, 2)
        self.layer3 = _stage(2 * width, 4 * width, 2)
        self.layer4 = _stage(4 * width, 8 * width, 2)
        self.fc = nn.Linear(8 * width, classes)
        if initialisation == "torchvision":
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]``; ``fc`` sees the mean over positions of the last stage."""
        # On a CPU, max-pool, BatchNorm and convolutions of large maps are faster channels last, a
        # layout that they hand on; convolutions of small maps are not.
        on_cpu = images.device.type == "cpu"
        hidden = self.conv1(_channels_last(images) if on_cpu else images)
        hidden = functional.relu(self.bn1(hidden), inplace=True)
        hidden = self.maxpool(_channels_last(hidden) if on_cpu else hidden)
        hidden = self.layer2(self.layer1(hidden))
        if on_cpu and max(hidden.shape[-2:]) <= SMALL_MAP:
            hidden = hidden.contiguous()
        hidden = self.layer4(self.layer3(hidden))
        return self.fc(hidden.mean(dim=(2, 3)))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))


def _channels_last(images: Tensor) -> Tensor:
    """The same images ``[n, channels, h, w]`` with channels side by side in memory."""
    # Not as a memory format, which does not exist under vmap.
    return images.movedim(1, -1).contiguous().movedim(-1, 1)
