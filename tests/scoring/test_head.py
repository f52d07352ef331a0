"""The tiled head gives what whole logits give, and its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_data.scoring import head
from rlhf_data.scoring.head import Tile, Transform, target_logps


def whole(hidden, targets, weight, bias, transform, squares):
    """The same from whole logits in float64."""
    logits = torch.nn.functional.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    logits = logits * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    every = logits.log_softmax(-1)
    logps = every.gather(1, targets[:, None])
    return torch.cat([logps, (2 * every.detach()).logsumexp(1, keepdim=True)], dim=1) if squares else logps


transforms = st.builds(
    Transform, scale=st.sampled_from([1.0, 0.0625, 3.0]), cap=st.none() | st.floats(0.5, 30, allow_nan=False)
)
tiles = st.builds(Tile, rows=st.integers(1, 9), columns=st.integers(1, 40))


@settings(deadline=None, max_examples=40)
@given(transform=transforms, tile=tiles, with_bias=st.booleans(), squares=st.booleans(), m=st.integers(1, 12))
def test_tiles_of_any_size_give_the_log_probs_and_gradients_of_whole_logits(transform, tile, with_bias, squares, m):
    torch.manual_seed(m)
    hidden, weight = torch.randn(m, 5, requires_grad=True), torch.randn(31, 5, requires_grad=True)
    bias = torch.randn(31, requires_grad=True) if with_bias else None
    targets = torch.randint(0, 31, (m,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head, "tile_of", lambda device: tile)
        ours = target_logps(hidden, targets, weight, bias, transform, squares=squares)
        theirs = whole(hidden, targets, weight, bias, transform, squares)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)
        inputs = [one for one in (hidden, weight, bias) if one is not None]
        coming = torch.randn(m)
        mine = torch.autograd.grad((ours[:, 0] * coming).sum(), inputs)
    other = torch.autograd.grad((theirs[:, 0] * coming).sum(), inputs)
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_bfloat16_weights_give_the_log_probs_of_the_same_weights_in_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    targets = torch.randint(0, 50, (7,))
    ours = target_logps(hidden, targets, weight, None, Transform(), squares=False)
    assert ours.dtype == torch.float32
    theirs = whole(hidden, targets, weight, None, Transform(), squares=False)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5)


def test_a_frozen_output_matrix_gets_no_gradient_and_the_hidden_states_do():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4)
    logps = target_logps(hidden, torch.tensor([0, 5, 2]), weight, None, Transform(), squares=False)
    logps.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_what_is_alive_at_a_time_depends_on_neither_the_rows_nor_the_vocabulary():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else [out]:
                if isinstance(one, torch.Tensor) and one._base is None:
                    self.elements = max(self.elements, one.numel())
            return out

    largest = []
    for rows, vocabulary in ((600, 4000), (1200, 4000), (600, 9000)):
        hidden, weight = torch.randn(rows, 2), torch.randn(vocabulary, 2)
        targets = torch.zeros(rows, dtype=torch.long)
        with Largest() as seen, torch.inference_mode():
            target_logps(hidden, targets, weight, None, Transform(), squares=True)
        largest.append(seen.elements)
    tile = head.tile_of(torch.device("cpu"))
    assert largest == [tile.rows * tile.columns] * 3
