"""Tickets as models of pixels predict what they do on normalised images."""

import pytest
import torch
from ticket_runs import make_run
from torch import nn

from sparse_engine.data.load import load_dataset
from sparse_engine.errors import InputError
from sparse_engine.evaluation.predict import member_log_probabilities, predict
from sparse_engine.evaluation.robustness.pixel_model import (
    pixel_batches,
    pixel_models,
    predict_logits,
)
from sparse_engine.runs.tickets import tickets_of

BF16 = {"method": "dense", "model": "wrn10-1", "dtype": "bf16", "sparsity": 0.0, "members": 1}


@pytest.mark.parametrize(("settings", "tolerance"), [({}, 1e-6), (BF16, 2e-3)])
def test_models_of_pixels_predict_what_tickets_do(settings, tolerance, tmp_path):
    make_run(tmp_path / "run", tickets=1 if settings else 2, **settings)
    data, tickets, cpu = load_dataset("digits", None), tickets_of(tmp_path / "run"), "cpu"
    models = pixel_models(tickets, cpu)
    logits, labels = predict_logits(models, pixel_batches(data.test, data.info, 100))
    assert torch.equal(labels, data.test.labels)
    wanted, _ = member_log_probabilities(tickets, data.test, torch.device(cpu))
    torch.testing.assert_close(logits.softmax(2), torch.stack(wanted).exp(), atol=tolerance, rtol=0)


def test_no_images_are_refused():
    for predictions in (lambda: predict_logits([], []), lambda: predict(nn.Flatten(), iter([]))):
        with pytest.raises(InputError, match="need at least one batch of images"):
            predictions()
