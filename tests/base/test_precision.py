import pytest
import torch

from telecine.base.precision import cast_together


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casts_together_are_casts_of_each(dtype):
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((3, 4), (), (2, 1, 5))]
    others = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    together = cast_together(tensors, dtype)
    one_by_one = [tensor.to(dtype) for tensor in others]
    torch.testing.assert_close(list(together), one_by_one, rtol=0, atol=0)
    for cast in (together, one_by_one):
        # The second has no gradient, or zeros.
        (cast[0].square().sum() - 3 * cast[2].sum()).backward()
    for ours, theirs in zip(tensors[::2], others[::2], strict=True):
        assert ours.grad.dtype == torch.float32
        assert torch.equal(ours.grad, theirs.grad)
    assert tensors[1].grad in (None, 0)
