"""The balancer against independent versions: TorchJD, PCGrad as printed, manual backward passes."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

from turbotrain_plugin.balancing import ConflictSuppression, GradientBalancer, ScheduleWarning

torchjd = pytest.importorskip("torchjd.aggregation")


def random_pair(seed: int, size: int = 7) -> Tensor:
    """Return (2, size) float64 with norm ratios between 1e-3 and 1e3."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, size, dtype=torch.float64, generator=generator)
    ratio = 10.0 ** (6.0 * torch.rand(1, dtype=torch.float64, generator=generator) - 3.0)
    return torch.stack([pair[0], pair[1] * ratio])


@pytest.mark.parametrize("seed", range(100))
def test_two_tasks_against_torchjd(seed: int) -> None:
    pair = random_pair(seed)
    gramian = pair @ pair.T
    expected = torchjd.PCGradWeighting()(gramian)
    torch.testing.assert_close(ConflictSuppression().weigh(gramian), expected, rtol=1e-6, atol=1e-6)


def test_the_pairs_conflict_about_half_of_the_time() -> None:
    conflicts = [float(random_pair(seed).prod(dim=0).sum()) < 0 for seed in range(100)]
    assert 30 < sum(conflicts) < 70


def pcgrad_as_printed(gradients: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return the summed update of PCGrad (algorithm 1), every task meeting the others in order."""
    update = torch.zeros_like(gradients[0])
    for i, gradient in enumerate(gradients):
        surgery = gradient.clone()
        for j in order:
            if j != i and float(surgery @ gradients[j]) < 0:
                surgery -= (surgery @ gradients[j]) / gradients[j].square().sum() * gradients[j]
        update += surgery
    return update


@pytest.mark.parametrize("seed", range(40))
def test_two_tasks_against_the_printed_algorithm(seed: int) -> None:
    pair = random_pair(seed)
    weights = ConflictSuppression().weigh(pair @ pair.T)
    for order in ((0, 1), (1, 0)):
        torch.testing.assert_close(
            weights @ pair, pcgrad_as_printed(pair, order), rtol=1e-9, atol=1e-9
        )


def test_three_tasks_with_one_conflict_do_not_depend_on_the_order() -> None:
    """Where a single pair conflicts, before and after, every order and ours agree."""
    gradients = torch.tensor(
        [[1.0, 0.0, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64
    )
    ours = ConflictSuppression().weigh(gradients @ gradients.T) @ gradients
    for order in itertools.permutations(range(3)):
        torch.testing.assert_close(ours, pcgrad_as_printed(gradients, order))


def conv(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, 3, padding=1, bias=False)


class ConvTwoTasks(nn.Module):
    """A convolutional trunk with BatchNorm, a skip connection and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        # No bias before BatchNorm: its gradient is rounding, which Adam would blow up.
        self.stem = nn.Sequential(conv(3), nn.BatchNorm2d(8), nn.ReLU())
        self.frozen = nn.Conv2d(8, 8, 1).requires_grad_(False)
        self.block = nn.Sequential(conv(8), nn.BatchNorm2d(8), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Conv2d(8, 2, 1) for name in ("a", "b", "c")})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.stem(x)
        z = z + self.block(self.frozen(z))
        return {
            "a": (self.heads["a"](z) - 1.0).square().mean(),
            "b": (self.heads["b"](z) + z[:, :2] + 1.0).abs().mean(),
            "c": (self.heads["c"](z) - z[:, 2:4]).square().mean(),
        }


@pytest.mark.parametrize("tasks", [("a", "b"), ("b", "a"), ("a", "b", "c")])
def test_training_against_manual_backward_passes(tasks: tuple[str, ...]) -> None:
    """Several steps of Adam: one backward pass a task on a copy, combined by hand."""
    torch.manual_seed(1)
    ours, theirs = ConvTwoTasks().double(), ConvTwoTasks().double()
    theirs.load_state_dict(ours.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        balancer = GradientBalancer(
            torch.optim.Adam((p for p in ours.parameters() if p.requires_grad), lr=1e-2),
            free_steps=1,
            balance_steps=3,
        )
    adam = torch.optim.Adam((p for p in theirs.parameters() if p.requires_grad), lr=1e-2)
    conflicts = 0
    for step in range(8):
        x = torch.randn(2, 3, 10, 10, dtype=torch.float64)
        balancer.zero_grad()
        losses = ours(x)
        balancer.backward({task: losses[task] for task in tasks})
        balancer.step()
        conflicts += manual_step(theirs, adam, x, tasks, balanced=step % 4 >= 1)
    assert conflicts > 0
    for (name, left), right in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10, msg=name)


def manual_step(
    model: nn.Module, adam: torch.optim.Adam, x: Tensor, tasks: tuple[str, ...], *, balanced: bool
) -> int:
    """Take one step the slow way; return the number of conflicting pairs."""
    losses = model(x)
    gradients: list[dict[str, Tensor]] = []
    for task in tasks:
        model.zero_grad()
        losses[task].backward(retain_graph=True)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    trunk = [n for n in gradients[0] if not n.startswith("heads")]
    flat = torch.stack([torch.cat([g[n].flatten() for n in trunk]) for g in gradients])
    products = flat @ flat.T
    weights = [1.0] * len(tasks)
    if balanced:
        for i, j in itertools.permutations(range(len(tasks)), 2):
            weights[j] -= min(0.0, float(products[i, j])) / float(products[j, j])
    for name, parameter in model.named_parameters():
        found = [(w, g[name]) for w, g in zip(weights, gradients, strict=True) if name in g]
        shared = name in trunk
        parameter.grad = (
            sum(((w if shared else 1.0) * g for w, g in found), start=torch.zeros_like(parameter))
            if found
            else None
        )
    adam.step()
    return int((products < 0).sum()) // 2 if balanced else 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_update_is_homogeneous_in_the_losses(dtype: torch.dtype, scale: float) -> None:
    """Scaling all losses scales the gradient: tiny gradients still conflict."""
    torch.manual_seed(1)
    model = ConvTwoTasks().to(dtype)
    x = torch.randn(2, 3, 10, 10, dtype=dtype)
    found = []
    for factor in (1.0, scale):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            sgd = torch.optim.SGD(model.parameters(), lr=0.0)
            balancer = GradientBalancer(sgd, free_steps=0, balance_steps=1)
        balancer.zero_grad()
        balancer.backward({task: factor * loss for task, loss in model(x).items()})
        balancer.step()
        assert balancer.last_record is not None
        weight = model.stem[0].weight.grad
        assert isinstance(weight, Tensor)
        found.append((weight / factor, balancer.last_record))
    (gradient, record), (scaled, scaled_record) = found
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(scaled, gradient, rtol=tolerance, atol=tolerance)
    assert scaled_record.weights == pytest.approx(record.weights, rel=tolerance)
    assert scaled_record.conflict == record.conflict
    assert any(record.conflict.values())
