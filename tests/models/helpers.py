"""What several tests of models do: change weights and saved configurations, and find out what a frame depends on."""

import json

import torch


@torch.no_grad()
def add_noise_to_weights(model, std=0.05):
    """Make layers that start at 0 contribute, and return the model."""
    for weight in model.parameters():
        weight += std * torch.randn_like(weight)
    return model


def edit_config(folder, *removed, **changes):
    """Change the configuration of a saved model, and return it."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    for name in removed:
        del config[name]
    path.write_text(json.dumps(config))
    return config


def last_frames_read(outputs, inputs):
    """Return the last frame of the inputs that each frame of the outputs depends on."""
    last = []
    for frame in outputs.unbind(2):
        (gradient,) = torch.autograd.grad(frame.sum(), inputs, retain_graph=True)
        last.append(gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().max().item())
    return last
