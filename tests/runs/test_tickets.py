"""Ensembles of run folders, tickets and exported files, resident or on demand."""

import gc
import weakref

import numpy as np
import pytest
import torch
from ticket_runs import make_run

from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.runs.ensemble import TicketEnsemble
from sparse_engine.runs.exported import save_dense, save_safetensors
from sparse_engine.runs.files import save_file
from sparse_engine.runs.tickets import Ticket, tickets_of


def digits(count=4):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"resident": False}, {"grouped": True}])
def test_runs_compiled_and_under_autocast(options, tmp_path):
    models = make_run(tmp_path / "a")
    ensemble = TicketEnsemble.load(tmp_path / "a", **options)
    with torch.no_grad():
        compiled = torch.compile(ensemble, backend="eager")(digits())
        torch.testing.assert_close(compiled, ensemble(digits()))
        with torch.autocast("cpu", torch.bfloat16):
            logits, wanted = ensemble.member_logits(digits()), models[1](digits())
            assert ensemble(digits()).dtype == torch.float32
    assert logits.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(logits[1], wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("resident", [True, False])
def test_the_members_of_one_network_count_one_by_one(resident, tmp_path):
    (model,) = make_run(
        tmp_path / "a", 3, tickets=1, method="mimo", batch_repetition=1, input_repetition=0.0
    )
    ensemble = TicketEnsemble.load(tmp_path / "a", resident=resident)
    with torch.no_grad():
        logits = ensemble.member_logits(digits())
        torch.testing.assert_close(logits, model.member_logits(digits()))
        torch.testing.assert_close(ensemble.log_probabilities(digits()), model(digits()))
    assert len(ensemble) == len(logits) == 3


def test_members_on_demand_follow_their_input(tmp_path):
    make_run(tmp_path / "a")
    ensemble = TicketEnsemble.load(tmp_path / "a", resident=False)
    assert ensemble(digits().to("meta")).device.type == "meta"


def exported(path, model, folder):
    """Write a ticket as the export command does; return the file."""
    file = path.with_suffix(".safetensors")
    (ticket,) = tickets_of(folder / "member_1.pt")
    save_safetensors(model, file, ticket.config, ticket.info)
    return file


@pytest.mark.parametrize("options", [{}, {"resident": False}, {"grouped": True}])
def test_exported_tickets_are_members(options, tmp_path):
    first, second = make_run(tmp_path / "a")
    file = exported(tmp_path / "taken away", second, tmp_path / "a")
    ensemble = TicketEnsemble.load(tmp_path / "a" / "member_1.pt", file, **options)
    with torch.no_grad():
        wanted = torch.stack([model(digits()) for model in (first, second)])
        torch.testing.assert_close(ensemble.member_logits(digits()), wanted)


def test_an_exported_ticket_of_other_data(tmp_path):
    make_run(tmp_path / "a")
    (other,) = make_run(tmp_path / "b", members=1, **write_data(tmp_path / "data"))
    file = exported(tmp_path / "b", other, tmp_path / "b")
    with pytest.raises(InputError, match="cannot be one ensemble: number of classes is 3 in one"):
        TicketEnsemble.load(tmp_path / "a", file)
    save_safetensors(other, file)
    with pytest.raises(InputError, match="says no architecture"):
        TicketEnsemble.load(file)


@pytest.mark.parametrize("resident", [True, False])
def test_a_ticket_of_another_version(resident, tmp_path, monkeypatch):
    make_run(tmp_path / "a")
    monkeypatch.setattr("sparse_engine.runs.files.FORMAT", "sparse-engine-0")
    save_file({"member": 2, "model": {}}, tmp_path / "a" / "member_2.pt")
    monkeypatch.undo()
    with pytest.raises(
        InputError, match=r"member_2.pt' is of version sparse-engine-0, .* sparse-en"
    ):
        TicketEnsemble.load(tmp_path / "a", resident=resident)


def test_what_is_on_demand_cannot_be_saved(tmp_path):
    make_run(tmp_path / "a")
    ensemble = TicketEnsemble.load(tmp_path / "a", resident=False)
    for save in (save_safetensors, save_dense):
        with pytest.raises(InputError, match="stay in their files"):
            save(ensemble, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("options", [{}, {"resident": False}, {"grouped": True}])
def test_runs_and_tickets(options, tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=5)
    sources = (tmp_path / "a", str(tmp_path / "b" / "member_2.pt"))
    ensemble = TicketEnsemble.load(*sources, **options)
    assert (len(ensemble), ensemble.training) == (3, False)
    with torch.no_grad():
        wanted = torch.stack([model(digits()) for model in (*first, second[1])])
        torch.testing.assert_close(ensemble.member_logits(digits()), wanted)


@pytest.mark.parametrize("taps", ["row", "all"])
def test_a_ticket_has_the_taps_of_its_run(taps, tmp_path):
    (model,) = make_run(tmp_path / "a", tickets=1, model="wrn10-1", block="4x4", taps=taps)
    (ticket,) = tickets_of(tmp_path / "a")
    loaded = ticket.load()
    assert {m.taps for m in loaded.modules() if isinstance(m, SparseLayer)} == {taps}
    with torch.no_grad():
        torch.testing.assert_close(loaded(digits()), model(digits()))
    state = loaded.state_dict()
    ids = state["blocks.0.conv1.block_ids"]
    ids[[0, 1]] = ids[[1, 0]]
    save_file({"member": 1, "model": state}, ticket.path)
    with pytest.raises(InputError, match=f"blocks.0.conv1: .* in order, as taps='{taps}' says"):
        ticket.load()


def test_on_demand_one_member_is_in_memory(tmp_path, monkeypatch):
    make_run(tmp_path / "a", members=3)
    alive, load = weakref.WeakSet(), Ticket.load

    def watched(file):
        gc.collect()
        assert len(alive) == 0
        model = load(file)
        alive.add(model)
        return model

    ensemble = TicketEnsemble.load(tmp_path / "a", resident=False)
    monkeypatch.setattr(Ticket, "load", watched)
    assert not list(ensemble.parameters())
    with torch.no_grad():
        assert ensemble(digits()).shape == (4, 10)


def write_data(folder, classes=3, size=8, shade=100):
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, shade, (count, 1, size, size)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % classes
    np.savez(folder / "own.npz", **arrays)
    return {"dataset": "own", "data_dir": str(folder)}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"classes": 5}, "number of classes is 5 in one and 3 in the other"),
        ({"shade": 200}, r"normalisation \(mean\) is "),
        ({"size": 6}, "image height is 6 in one and 8 in the other"),
    ],
)
def test_tickets_of_different_data(other, words, tmp_path):
    make_run(tmp_path / "a", **write_data(tmp_path / "data"))
    make_run(tmp_path / "b", **write_data(tmp_path / "other", **other))
    with pytest.raises(InputError, match=f"cannot be one ensemble: {words}"):
        TicketEnsemble.load(tmp_path / "a", tmp_path / "b")


def test_sources_that_are_none(tmp_path):
    make_run(tmp_path / "a")
    for sources, words in (
        ((), "at least one member"),
        ((tmp_path / "none",), "is not a run folder"),
        (
            (tmp_path / "a", tmp_path / "a" / "member_7.pt"),
            r"ticket '.*member_7.pt' does not exist",
        ),
        ((tmp_path / "none.safetensors",), "none.safetensors' does not exist"),
        ((tmp_path / "a" / "config.json",), r"config.json' is no ticket: give the folder of a run"),
    ):
        with pytest.raises(InputError, match=words):
            TicketEnsemble.load(*sources)
    with pytest.raises(InputError, match="a grouped ensemble is resident"):
        TicketEnsemble.load(tmp_path / "a", grouped=True, resident=False)
    (tmp_path / "a" / "member_2.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"member_2.pt' is truncated or not a checkpoint"):
        TicketEnsemble.load(tmp_path / "a", resident=False)
