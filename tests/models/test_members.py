"""A network of several members predicts the mean of their probabilities."""

import torch

from sparse_engine.models.members import MemberNetwork, log_mean_probability, members_of


class Scaled(MemberNetwork):
    """Members that see the image at several scales."""

    def member_logits(self, x):
        return torch.stack([scale * x.flatten(1) for scale in range(1, self.members + 1)])


def test_the_softmax_of_the_prediction_is_the_mean_probability():
    network, x = Scaled(4), 3 * torch.randn(5, 3, 2, 1)
    mean = network.member_logits(x).softmax(-1).mean(0)
    torch.testing.assert_close(network(x).softmax(-1), mean)
    torch.testing.assert_close(network(x).exp(), mean)


def test_sure_members_are_not_rounded_away():
    logits = torch.tensor([[[200.0, 0.0]], [[0.0, 0.0]]])
    expected = torch.tensor([[0.75, 0.25]]).log()
    torch.testing.assert_close(log_mean_probability(logits), expected)
    half = log_mean_probability(logits.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected)


def test_members_are_models_of_their_own():
    network, x = Scaled(3), torch.randn(2, 1, 2, 2)
    found = torch.stack([member(x) for member in members_of(network)])
    assert torch.equal(found, network.member_logits(x))
    plain = torch.nn.Flatten()
    assert members_of(plain) == [plain]
