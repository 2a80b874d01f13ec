"""A small network of frames in the place of VGG16, gradients of frames, and the classes of all discriminators."""

import torch
from torch import nn
from torch.nn import functional as F

from telecine.discriminators import FeatureDiscriminator
from telecine.discriminators.build import IMAGE, VIDEO


class SmallNet(nn.Module):
    """Two feature maps, at 1/2 and at 1/4 of the size, rounded up."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.3, generator=generator)
        self.drop = nn.Dropout(0.5)  # off, as frozen networks are in evaluation mode

    def forward(self, frames):
        first = self.drop(F.softplus(self.first(frames)))
        return [first, F.softplus(self.second(first))]


def features(**options):
    return FeatureDiscriminator(**{"base_channels": 2, "net": SmallNet(), **options})


def built_in_classes():
    """Return the classes that the names in the settings build."""
    classes = {*IMAGE.values(), *VIDEO.values()}
    assert len(classes) >= 6
    return classes


def frame_gradients(network, video):
    """Return the 2-norm of the gradient of the logits at each frame, relative to the mean over the frames."""
    frames = video.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network.eval()(frames).logits.sum(), frames)
    norms = gradient.transpose(1, 2).flatten(2).norm(dim=2).mean(0)
    return norms / norms.mean()
