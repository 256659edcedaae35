"""The ensemble's prediction is the mean of its members' probabilities."""

import pytest
import torch
from torch import nn

from sparse_engine import metrics
from sparse_engine.ensemble import TicketEnsemble


@pytest.fixture
def members():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)) for _ in range(3)]


@pytest.fixture
def inputs():
    return 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_forward_is_the_mean_of_probabilities(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    first, second, third = (member(inputs).softmax(1) for member in members)
    torch.testing.assert_close(ensemble(inputs), (first + second + third) / 3)
    torch.testing.assert_close(ensemble(inputs).sum(1), torch.ones(5))
    assert len(ensemble) == 3


def test_forward_is_not_the_softmax_of_mean_logits(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    mean_logits = torch.stack([member(inputs) for member in members]).mean(0)
    assert (ensemble(inputs) - mean_logits.softmax(1)).abs().max() > 0.01


def test_hand_computed_mean():
    class Constant(nn.Module):
        def __init__(self, probabilities):
            super().__init__()
            self.register_buffer("logits", torch.tensor([probabilities]).log())

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    ensemble = TicketEnsemble([Constant([0.9, 0.1]), Constant([0.2, 0.8])])
    torch.testing.assert_close(ensemble(torch.zeros(1, 1)), torch.tensor([[0.55, 0.45]]))


def test_member_probabilities_keep_members_apart(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    probabilities = ensemble.member_probabilities(inputs)
    assert probabilities.shape == (3, 5, 3)
    torch.testing.assert_close(probabilities[1], members[1](inputs).softmax(1))
    mean = metrics.mean_probabilities(probabilities)
    torch.testing.assert_close(mean.float(), ensemble(inputs))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_probabilities_are_at_least_float32(members, inputs, given, wanted):
    ensemble = TicketEnsemble(members).eval().to(given)
    assert ensemble(inputs.to(given)).dtype == wanted


def test_gradient_reaches_every_member(members, inputs):
    TicketEnsemble(members)(inputs)[:, 0].sum().backward()
    assert all(parameter.grad is not None for m in members for parameter in m.parameters())


def test_state_dict_round_trip(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    torch.manual_seed(7)
    other = TicketEnsemble([nn.Sequential(nn.Linear(4, 3)) for _ in range(3)]).eval()
    assert not torch.equal(other(inputs), ensemble(inputs))
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(other(inputs), ensemble(inputs))


def test_modes_reach_the_members(members):
    ensemble = TicketEnsemble(members)
    ensemble.eval()
    assert not any(member.training for member in members)
    ensemble.train()
    assert all(member.training for member in members)


def test_no_members():
    with pytest.raises(ValueError, match=r"^an ensemble needs at least one member$"):
        TicketEnsemble([])


def test_members_with_different_classes(inputs):
    ensemble = TicketEnsemble([nn.Linear(4, 3), nn.Linear(4, 2)])
    with pytest.raises(ValueError, match=r"the same number of classes, not \[3, 2\]$"):
        ensemble(inputs)
