"""Muon against singular value decompositions, PyTorch's own Muon and Adam."""

import numpy as np
import pytest
import torch

from models import SRResNet
from tools import checkpoints, muon
from tools.acceleration import computes_in_bf16, speed_up
from tools.muon import Muon, orthogonal

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def iterated(values):
    """Where the five iterations bring singular values of matrices whose Frobenius norm is 1."""
    a, b, c = COEFFICIENTS
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    return values


def random_matrices(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# --- orthogonal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 144), (2, 144, 16), (1, 1, 9), (1, 9, 1)])
def test_the_iterations_act_on_singular_values_alone(shape):
    matrices = 100 * random_matrices(*shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = iterated(values / torch.linalg.matrix_norm(matrices)[:, None])
    torch.testing.assert_close(
        orthogonal(matrices), left * values[:, None] @ right, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(2, 32, 288), (2, 288, 32)])
def test_nearly_the_nearest_orthogonal_matrix(shape, bf16, monkeypatch):
    monkeypatch.setattr(muon, "computes_in_bf16", lambda device: bf16)
    matrices = random_matrices(*shape)
    result = orthogonal(matrices)
    assert result.shape == matrices.shape and result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.65 and values.max() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(result.flatten(1), (left @ right).flatten(1))
    assert cosine.min() > 0.98


def test_weak_directions_are_raised_and_nothing_is_not_a_number(monkeypatch):
    monkeypatch.setattr(muon, "computes_in_bf16", lambda device: False)
    left, _, right = torch.linalg.svd(random_matrices(16, 64), full_matrices=False)
    # Strong and weak directions are a hundred times apart.
    weak = (left * torch.logspace(0, -2, 16)) @ right
    values = torch.linalg.svdvals(orthogonal(weak[None])[0])
    assert values.min() > 0.65 and values.max() < 1.25
    assert torch.equal(orthogonal(torch.zeros(2, 4, 9)), torch.zeros(2, 4, 9))
    scales = torch.tensor([1e-8, 1.0, 1e8]).view(3, 1, 1)
    for each in orthogonal(weak * scales):
        torch.testing.assert_close(each, orthogonal(weak[None])[0], rtol=1e-4, atol=1e-4)


# --- Muon -----------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """First and last convolutions, three hidden ones of two shapes, and other parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.hidden = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)))
        self.tall = torch.nn.Conv2d(8, 32, 1)  # as a matrix taller than wide
        self.act = torch.nn.PReLU()
        self.last = torch.nn.Conv2d(32, 3, 3)
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x):
        x = self.act(self.tall(self.hidden(self.norm(self.first(x)))))
        return self.linear(self.last(x).mean((2, 3)))


def hidden_of(net):
    names = {name for name, _ in net.named_parameters()}
    return names & {"hidden.0.weight", "hidden.1.weight", "tall.weight"}


def train(net, optimizer, steps=4, learning_rate=1e-2):
    """The parameters after a few steps with given gradients, at a rate that changes."""
    for step in range(steps):
        for k, parameter in enumerate(net.parameters()):
            gradient = random_matrices(*parameter.shape, seed=100 * step + k, dtype=parameter.dtype)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)  # in its memory format
        for group in optimizer.param_groups:
            group["lr"] = learning_rate / (step + 1)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def adam(net, fused):
    return torch.optim.Adam(net.parameters(), fused=fused)


@pytest.mark.parametrize("fused", [False, True])
def test_all_but_hidden_convolutions_move_as_adam_moves_them(fused):
    ours = train(net := Net(), Muon(net, fused=fused))
    adams = train(net := Net(), adam(net, fused))
    others = ours.keys() - hidden_of(net)
    assert {"first.weight", "last.weight", "tall.bias", "norm.weight", "linear.weight"} <= others
    assert all(torch.equal(ours[name], adams[name]) for name in others)
    assert not any(torch.allclose(ours[name], adams[name], atol=1e-4) for name in hidden_of(net))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has it from 2.9 on")
@pytest.mark.parametrize("muon_lr", [1.0, 3.0])
def test_hidden_convolutions_move_as_pytorch_s_muon_moves_matrices(muon_lr):
    """PyTorch's rounds to bfloat16 before it normalises, ours after: steps differ by that much."""
    start = {name: parameter.detach().clone() for name, parameter in Net().named_parameters()}
    ours = train(net := Net(), Muon(net, muon_lr=muon_lr), steps=8)
    for name in hidden_of(net):
        index = list(start).index(name)
        shape, matrix = start[name].shape, torch.nn.Parameter(start[name].flatten(1).clone())
        theirs = torch.optim.Muon(
            [matrix], weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        for step in range(8):
            matrix.grad = random_matrices(*shape, seed=100 * step + index).flatten(1)
            theirs.param_groups[0]["lr"] = muon_lr * 1e-2 / (step + 1)
            theirs.step()
        moved, wanted = ours[name] - start[name], matrix.detach().view(shape) - start[name]
        assert (moved - wanted).norm() < 0.04 * wanted.norm(), name
        assert wanted.norm() > 0.01 * start[name].norm(), name


def test_a_step_is_as_large_as_promised():
    start = {name: parameter.detach().clone() for name, parameter in Net().named_parameters()}
    ours = train(net := Net(), Muon(net, muon_lr=1.0), steps=1, learning_rate=0.1)
    for name in ("hidden.0.weight", "tall.weight"):
        size = (ours[name] - start[name]).square().mean().sqrt().item()
        assert size == pytest.approx(0.2 * 0.1, rel=0.15), name


def test_parameters_without_a_gradient_stay():
    net = Net()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = Muon(net)
    optimizer.step()  # none has one
    for name in ("hidden.1.weight", "last.weight"):
        parameter = net.get_parameter(name)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    after = dict(net.named_parameters())
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    assert moved == {"hidden.1.weight", "last.weight"}
    optimizer.step()  # a hidden gradient is gone with its step: it does not act twice
    again = net.get_parameter("hidden.1.weight").detach().clone()
    optimizer.step()
    assert torch.equal(net.get_parameter("hidden.1.weight"), again)


def test_channels_last_is_the_same(monkeypatch):
    monkeypatch.setattr(muon, "computes_in_bf16", lambda device: False)
    ours = train(net := Net(), Muon(net, fused=True))
    theirs = train(net := Net().to(memory_format=torch.channels_last), Muon(net, fused=True))
    assert net.hidden[0].weight.is_contiguous(memory_format=torch.channels_last)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-5, atol=1e-7)


def test_networks_without_hidden_convolutions_are_adam_s():
    nets = [
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 3, 3)) for _ in range(2)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    ours = train(nets[0], Muon(nets[0]))
    adams = train(nets[1], torch.optim.Adam(nets[1].parameters()))
    assert all(torch.equal(ours[name], adams[name]) for name in ours)


def test_which_weights_of_srresnet_are_hidden():
    net = SRResNet(2, 4)
    hidden = {id(parameter) for parameter in Muon(net).hidden}
    names = [name for name, parameter in net.named_parameters() if id(parameter) in hidden]
    weights = [name for name, parameter in net.named_parameters() if parameter.dim() == 4]
    assert names == weights[1:-1] and "head" in weights[0] and "tail" in weights[-1]
    assert len(names) == 2 * 2 + 1 + 2  # blocks, after them, sub-pixel convolutions
    assert {id(parameter) for parameter in Muon(speed_up(net, "cpu")).hidden} == hidden


@pytest.mark.parametrize("make", [Muon, adam])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_checkpoint_resumes_to_the_bit(make, layout, tmp_path):
    """Fused Adam walks through weights and moments as they lie in memory: both must lie alike."""
    net = Net().to(memory_format=layout)
    optimizer = make(net, fused=True)
    train(net, optimizer, steps=3)
    path = tmp_path / "checkpoint.safetensors"
    packed = checkpoints.pack("net", net, optimizer)
    checkpoints.write(path, packed, {})

    other = Net().to(memory_format=layout)
    again = make(other, fused=True)
    train(other, again, steps=1)  # what was there before does not matter
    checkpoints.unpack(checkpoints.read(path)[0], "net", other, again)
    assert len([key for key in packed if key.endswith(".momentum")]) == 3 * (make is Muon)
    for key, value in checkpoints.pack("net", other, again).items():
        assert torch.equal(value, packed[key]) and value.stride() == packed[key].stride(), key
    whole, resumed = train(net, optimizer), train(other, again)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_without_its_optimizer_is_the_network_alone():
    net, other = Net(), Net()
    optimizer = Muon(net)
    train(net, optimizer)
    checkpoints.unpack(checkpoints.pack("net", net, optimizer), "net", other)
    assert all(map(torch.equal, other.parameters(), net.parameters()))


@pytest.mark.parametrize("make", [Muon, adam])
def test_a_grad_scaler_undoes_its_scale_first(make):
    """Muon divides by the size of its momentum, but momentum and Adam would feel the scale."""
    nets, scaler = (Net(), Net()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plain, scaled = (make(net, fused=True) for net in nets)
    x = random_matrices(4, 3, 8, 8)
    for factor in (1.0, 30.0, 0.1):  # gradients of several sizes in one momentum
        for optimizer in (plain, scaled):
            optimizer.zero_grad()
        (factor * nets[0](x).square().mean()).backward()
        plain.step()
        scaler.scale(factor * nets[1](x).square().mean()).backward()
        scaler.step(scaled)
        scaler.update()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_step_with_infinite_gradients_is_left_out():
    net, scaler = Net(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = Muon(net, fused=True)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    scaler.scale(net(random_matrices(2, 3, 8, 8)).square().mean()).backward()
    net.hidden[0].weight.grad[0, 0, 0, 0] = np.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**9


def test_bfloat16_only_where_it_is_fast(monkeypatch):
    matrices = random_matrices(2, 16, 144)
    kinds = {}
    for bf16 in (False, True):
        monkeypatch.setattr(muon, "computes_in_bf16", lambda device, bf16=bf16: bf16)
        kinds[bf16] = orthogonal(matrices)
    error = (kinds[True] - kinds[False]).norm() / kinds[False].norm()
    assert 1e-4 < error < 0.1
    monkeypatch.setattr(muon, "computes_in_bf16", computes_in_bf16)
    assert torch.equal(orthogonal(matrices), kinds[computes_in_bf16(torch.device("cpu"))])
