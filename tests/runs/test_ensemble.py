"""The ensemble's prediction is the mean of its members' probabilities."""

import math

import pytest
import torch
from torch import nn

from sparse_engine.errors import InputError
from sparse_engine.evaluation import metrics
from sparse_engine.models.members import MemberNetwork
from sparse_engine.runs import ensemble as ensemble_module
from sparse_engine.runs.ensemble import TicketEnsemble


@pytest.fixture
def members():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)) for _ in range(3)]


@pytest.fixture
def inputs():
    return 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def test_forward_is_the_mean_of_probabilities(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    first, second, third = (member(inputs).double().softmax(1) for member in members)
    torch.testing.assert_close(ensemble(inputs), (first + second + third) / 3)
    torch.testing.assert_close(ensemble(inputs).sum(1), torch.ones(5).double())
    assert len(ensemble) == 3


def test_forward_is_not_the_softmax_of_mean_logits(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    mean_logits = torch.stack([member(inputs) for member in members]).mean(0)
    assert (ensemble(inputs) - mean_logits.softmax(1)).abs().max() > 0.01


class Constant(nn.Module):
    def __init__(self, probabilities):
        super().__init__()
        self.register_buffer("logits", torch.tensor([probabilities]).log())

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_hand_computed_mean():
    ensemble = TicketEnsemble([Constant([0.9, 0.1]), Constant([0.2, 0.8])])
    torch.testing.assert_close(ensemble(torch.zeros(1, 1)).float(), torch.tensor([[0.55, 0.45]]))


def test_member_probabilities_keep_members_apart(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    probabilities = ensemble.member_probabilities(inputs)
    assert probabilities.shape == (3, 5, 3)
    torch.testing.assert_close(probabilities[1].float(), members[1](inputs).softmax(1))
    mean = metrics.mean_probabilities(probabilities)
    torch.testing.assert_close(mean, ensemble(inputs))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float64),
    ],
)
def test_probabilities_are_wider_than_logits(members, inputs, given, wanted):
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


def test_member_logits(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    logits = ensemble.member_logits(inputs)
    assert logits.shape == (3, 5, 3)
    torch.testing.assert_close(logits[2], members[2](inputs))


@pytest.mark.parametrize("gap", [80.0, 120.0, 200.0, 1000.0])
def test_likelihoods_are_exact_where_probabilities_underflow(gap):
    """A float32 softmax gives 0 from a gap of 104 on, a float64 one from 745 on."""
    label = torch.tensor([1])
    ensemble = TicketEnsemble([Constant([1.0, 1.0]), Constant([1.0, 1.0])])
    for member, own in zip(ensemble.members, (gap, gap + 10)):
        member.logits = torch.tensor([[own, 0.0]])
    wanted = gap + math.log(2) - math.log1p(math.exp(-10))
    logs = ensemble.log_probabilities(torch.zeros(1, 1))
    assert logs.shape == (1, 2)
    assert metrics.negative_log_likelihood(logs, label, log=True) == pytest.approx(wanted, rel=1e-6)
    if gap < 700:
        probabilities = ensemble(torch.zeros(1, 1))
        assert metrics.negative_log_likelihood(probabilities, label) == pytest.approx(wanted)


def test_uncertainty_by_hand():
    apart = TicketEnsemble([Constant([1.0, 1e-9]), Constant([1e-9, 1.0])])
    found = apart.uncertainty(torch.ones(2, 1))
    torch.testing.assert_close(found.probabilities.float(), torch.full((2, 2), 0.5))
    torch.testing.assert_close(found.entropy.float(), torch.full((2,), math.log(2)))
    torch.testing.assert_close(found.mutual_information.float(), torch.full((2,), math.log(2)))
    near = TicketEnsemble([Constant([0.9, 0.1]), Constant([0.2, 0.8])])
    found = near.uncertainty(torch.ones(1, 1))
    entropies = [-sum(p * math.log(p) for p in row) for row in ((0.9, 0.1), (0.2, 0.8))]
    mean = -0.55 * math.log(0.55) - 0.45 * math.log(0.45)
    assert found.entropy.item() == pytest.approx(mean, rel=1e-5)
    assert found.mutual_information.item() == pytest.approx(mean - sum(entropies) / 2, rel=1e-4)


def test_a_sure_member_has_no_entropy():
    found = TicketEnsemble([Constant([1.0, 0.0])]).uncertainty(torch.ones(1, 1))
    assert (found.entropy.item(), found.mutual_information.item()) == (0, 0)


def test_members_that_agree_share_no_information(members, inputs):
    found = TicketEnsemble([members[0]] * 3).eval().uncertainty(inputs)
    assert (found.entropy > 0.01).all()
    assert (found.mutual_information >= 0).all()
    assert (found.mutual_information < 1e-6).all()


def test_grouped_is_the_same_ensemble(members, inputs):
    for member in members:
        member.eval()
    ensemble, grouped = TicketEnsemble(members), TicketEnsemble(members, grouped=True)
    assert len(grouped) == 3
    torch.testing.assert_close(grouped.member_logits(inputs), ensemble.member_logits(inputs))
    torch.testing.assert_close(grouped(inputs), ensemble(inputs))


@pytest.fixture
def two_threads(monkeypatch):
    """Let members run in two threads, whatever their size."""
    monkeypatch.setattr(ensemble_module, "LEAST_PRODUCTS", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 5])
def test_threads_give_the_same(count, batch, inputs, two_threads):
    torch.manual_seed(0)
    members = [nn.Linear(4, 3) for _ in range(count)]
    ensemble, x = TicketEnsemble(members).eval(), inputs[:batch]
    wanted = torch.stack([member(x) for member in members])
    with torch.no_grad():
        torch.testing.assert_close(ensemble.member_logits(x), wanted)
    with torch.inference_mode():
        assert ensemble.member_logits(x).is_inference()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ensemble.member_logits(x).dtype == torch.bfloat16
    assert torch.get_num_threads() == 2


def test_threads_only_where_they_change_nothing(members, inputs, two_threads, monkeypatch):
    calls = []

    def in_threads(functions):
        calls.append(len(functions))
        return [function() for function in functions]

    monkeypatch.setattr(ensemble_module, "in_threads", in_threads)
    ensemble = TicketEnsemble(members).eval()
    ensemble(inputs)
    with torch.no_grad():
        ensemble.train()(inputs)
    assert not calls
    with torch.no_grad():
        ensemble.eval()(inputs)
        # Three members on two threads: each in two halves of the batch.
        assert calls == [6]
        monkeypatch.setattr(ensemble_module, "LEAST_PRODUCTS", 10**6)
        ensemble(inputs)
    assert len(calls) == 1


class Twins(MemberNetwork):
    """One layer whose outputs are shared out to members; notes its passes."""

    def __init__(self, members):
        super().__init__(members)
        self.layer, self.batches = nn.Linear(4, 3 * members), []

    def member_logits(self, x):
        self.batches.append(len(x))
        return self.layer(x).unflatten(1, (self.members, 3)).transpose(0, 1)


@pytest.mark.parametrize(("picked", "passes"), [([0, 1, 2], 1), ([0, 1], 2), ([1, 0, 2], 3)])
@pytest.mark.parametrize("threads", [1, 2])
def test_all_members_of_one_network_are_one_pass(picked, passes, threads, inputs, request):
    """A part of them, or in another order, run each by itself; plain members are beside them."""
    if threads == 2:
        request.getfixturevalue("two_threads")
    network, plain = Twins(3), nn.Linear(4, 3)
    own = [network.member_models()[index] for index in picked]
    ensemble = TicketEnsemble([plain, *own, plain]).eval()
    with torch.no_grad():
        found = ensemble.member_logits(inputs)
        assert sum(network.batches) == passes * len(inputs)
        wanted = [plain(inputs), *network.member_logits(inputs)[picked], plain(inputs)]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_compiled(members, inputs):
    ensemble = TicketEnsemble(members).eval()
    with torch.no_grad():
        compiled = torch.compile(ensemble, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(inputs), ensemble(inputs))


def test_members_that_are_no_networks():
    with pytest.raises(InputError, match=r"member 2 is a str, no network; load\(\) reads runs"):
        TicketEnsemble([nn.Linear(2, 2), "runs/edst-digits-1"])
    assert len(TicketEnsemble(nn.Linear(2, 2) for _ in range(3))) == 3


def test_members_of_different_types():
    members = [nn.Linear(4, 3), nn.Linear(4, 3).double()]
    with pytest.raises(InputError, match=r"type: torch.float64 in member 2, torch.float32 in mem"):
        TicketEnsemble(members)
