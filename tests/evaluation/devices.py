"""Tensors as on a device that lacks something."""

import torch


class WithoutFloat64(torch.Tensor):
    """A tensor on a device that has no float64, such as MPS; `cpu` moves it to one that does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return result
