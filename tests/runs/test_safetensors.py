"""Compact files are the same networks, and files that are not are refused in a line."""

import json
import struct

import pytest
import torch
from exported_networks import images, network
from torch import nn

from sparse_engine import sparsify
from sparse_engine.errors import InputError
from sparse_engine.layers.base import SparseLayer
from sparse_engine.runs.safetensors import (
    load_safetensors,
    read_tensors,
    save_safetensors,
    write_tensors,
)


@pytest.fixture
def compact(tmp_path):
    path = tmp_path / "ticket.safetensors"
    save_safetensors(network(), path)
    return path


def layouts(model):
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SparseLayer)}
    return {n: (m.block, m.taps, m.layout.block_ids.tolist()) for n, m in layers.items()}


@pytest.mark.parametrize("options", [{}, {"taps": "row"}, {"taps": "all"}])
def test_a_compact_file_is_the_same_network(options, tmp_path):
    model, path = network(**options), tmp_path / "ticket.safetensors"
    save_safetensors(model, path)
    for other in (network(0), network(0.3)):
        before = other(images())
        loaded = load_safetensors(path, other)
        assert layouts(loaded) == layouts(model) != {}
        assert torch.equal(loaded(images()), model(images()))
        assert torch.equal(other(images()), before)


def test_spare_slots_are_not_written(tmp_path):
    model, path = network(headroom=0.5), tmp_path / "ticket.safetensors"
    save_safetensors(model, path)
    loaded = load_safetensors(path, network(0))
    assert any(m.layout.slots > m.layout.active for m in model.modules() if hasattr(m, "layout"))
    assert all(m.layout.slots == m.layout.active for m in loaded.modules() if hasattr(m, "layout"))
    assert torch.equal(loaded(images()), model(images()))


def test_data_types_are_kept(tmp_path):
    path = tmp_path / "ticket.safetensors"
    save_safetensors(network().to(torch.bfloat16), path)
    loaded = load_safetensors(path, network(0))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_sizes_fall_with_density(tmp_path):
    sizes = []
    for sparsity in (0.0, 0.5, 0.9):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(512, 512, bias=False)).eval()
        if sparsity:
            sparsify(model, sparsity, "uniform", block=(32, 32))
        path = tmp_path / f"{sparsity}.safetensors"
        save_safetensors(model, path)
        sizes.append(path.stat().st_size)
    assert sizes[0] == pytest.approx(4 * 512**2, rel=0.01)
    for size, density in zip(sizes[1:], (0.5, 0.1)):
        assert size == pytest.approx(density * sizes[0], rel=0.02)


def test_the_file_is_of_the_format(tmp_path):
    path = tmp_path / "x.safetensors"
    given = {
        "a": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "b": torch.tensor([1.5, -2], dtype=torch.bfloat16),
        "c": torch.tensor(3.0, dtype=torch.float64),
        "d": torch.empty(0, 4),
        "e": torch.tensor([True, False]),
        "f": torch.arange(6.0).reshape(2, 3).t(),
    }
    write_tensors(given, {"what": "words"}, path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"what": "words"}
    assert (header["a"]["dtype"], header["a"]["shape"]) == ("I32", [2, 3])
    first, last = (8 + length + place for place in header["a"]["data_offsets"])
    assert struct.unpack("<6i", content[first:last]) == (0, 1, 2, 3, 4, 5)
    assert max(e["data_offsets"][1] for e in header.values()) == len(content) - 8 - length
    found, words = read_tensors(path)
    assert words == {"what": "words"}
    assert found.keys() == given.keys()
    assert all(torch.equal(found[n], given[n]) for n in given)
    assert all(found[n].dtype == given[n].dtype for n in given)


def header_changed(change):
    """Return what gives a file another header."""

    def damage(content):
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        text = json.dumps(change(header) or header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return damage


def set_shape(header):
    header["stem.weight"]["shape"] = [1]


def negative_shape(header):
    header["stem.weight"]["shape"] = [-1, -144]


def overlap(header):
    entries = [e for e in header.values() if "data_offsets" in e]
    entries[1]["data_offsets"] = entries[0]["data_offsets"]


def hole(content):
    """Leave eight bytes without a tensor before the last one's numbers."""

    def move(header):
        entry = max(
            (e for e in header.values() if "data_offsets" in e), key=lambda e: e["data_offsets"]
        )
        places.append(entry["data_offsets"][0])
        entry["data_offsets"] = [place + 8 for place in entry["data_offsets"]]

    places = []
    changed = header_changed(move)(content)
    start = 8 + int.from_bytes(changed[:8], "little") + places[0]
    return changed[:start] + bytes(8) + changed[start:]


def unknown_type(header):
    header["stem.weight"]["dtype"] = "F13"


DAMAGES = {
    "empty": lambda content: b"",
    "cut header": lambda content: content[:40],
    "cut numbers": lambda content: content[:-1],
    "more numbers": lambda content: content + b"0",
    "a long header": lambda content: b"\xff" * 8 + content[8:],
    "no JSON": lambda content: content[:8] + b"?" + content[9:],
    "a list": header_changed(lambda header: [1]),
    "words": header_changed(lambda header: {"a": "b"}),
    "shape": header_changed(set_shape),
    "negative": header_changed(negative_shape),
    "overlap": header_changed(overlap),
    "hole": hole,
    "type": header_changed(unknown_type),
    "a picture": lambda content: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_corrupt_file(name, compact):
    compact.write_bytes(DAMAGES[name](compact.read_bytes()))
    with pytest.raises(InputError, match=r"is truncated or no safetensors file: .*export it again"):
        load_safetensors(compact, network(0))


def metadata_changed(**words):
    def change(header):
        header["__metadata__"] |= words

    return header_changed(change)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"format": "sparse-engine-compact-9"}, "is of version sparse-engine-compact-9, and spars"),
        ({"format": ""}, "is of no version of this program"),
        ({"layers": "?"}, "cannot be loaded"),
        ({"layers": "[]"}, "cannot be loaded"),
        ({"layers": '{"stem": {"shape": [1, 1], "block": [16, 16], "taps": "each"}}'}, "cannot be"),
    ],
)
def test_other_words(words, message, compact):
    compact.write_bytes(metadata_changed(**words)(compact.read_bytes()))
    with pytest.raises(InputError, match=message):
        load_safetensors(compact, network(0))


def test_blocks_that_do_not_fit(compact):
    tensors, words = read_tensors(compact)
    name = next(n for n in tensors if n.endswith("block_ids"))
    tensors[name] = tensors[name] * 0
    write_tensors(tensors, words, compact)
    with pytest.raises(InputError, match="block ids should be distinct"):
        load_safetensors(compact, network(0))


def test_another_network_stays_as_it_was(compact):
    other = sparsified = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_safetensors(compact, other)
    assert isinstance(sparsified[0], nn.Linear)
    with pytest.raises(InputError, match="says no architecture"):
        load_safetensors(compact)
    with pytest.raises(InputError, match="cannot be read"):
        load_safetensors(compact.with_name("none"))


def test_a_type_the_format_lacks(tmp_path):
    with pytest.raises(InputError, match=r"cannot hold this network: torch.complex128"):
        write_tensors({"z": torch.zeros(1, dtype=torch.complex128)}, {}, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory(tmp_path):
    """Tied weights are written twice."""
    both = torch.arange(6.0)
    write_tensors({"a": both, "b": both, "c": both[2:]}, {}, tmp_path / "x")
    found, words = read_tensors(tmp_path / "x")
    assert (found["b"].tolist(), found["c"].tolist(), words) == (both.tolist(), [2, 3, 4, 5], {})


def test_a_file_that_earlier_versions_wrote(tmp_path):
    """Their numbers lay in the order of the network, so at any place in the file."""
    flag = {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}
    header = {"flag": flag, "count": {"dtype": "I64", "shape": [], "data_offsets": [1, 9]}}
    text = json.dumps(header).encode()
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" + struct.pack("<q", -5))
    found, _ = read_tensors(path)
    assert (found["flag"].tolist(), found["count"].item()) == ([True], -5)
