"""Programs that try other libraries on sparse layers; see tools.py. Each imports its own."""

import copy
import tempfile

import torch
from tool_rows import X, averages_as_dense, is_copy, network, tool
from torch import nn

from sparse_engine import densify, sparsify
from sparse_engine.layers.base import SparseLayer


@tool("safetensors", "safetensors", "`save_file`, `load_file`, `save_model`, `load_model`")
def safetensors() -> str:
    from safetensors.torch import load_file, load_model, save_file, save_model

    original, model, other = network(1), network(0), network(2)
    with tempfile.TemporaryDirectory() as folder:
        save_file(original.state_dict(), f"{folder}/a")
        save_model(original, f"{folder}/b")
        model.load_state_dict(load_file(f"{folder}/a"))
        load_model(other, f"{folder}/b")
    assert is_copy(model, original)
    assert is_copy(other, original)
    return "what is loaded has the blocks of the file"


@tool("timm's averages", "timm", "`ModelEmaV2`, `ModelEmaV3`, between updates")
def timm_averages() -> str:
    from timm.utils import ModelEmaV2, ModelEmaV3

    makes = (
        lambda m: ModelEmaV2(m, decay=0.9),
        lambda m: ModelEmaV3(m, decay=0.9),
        lambda m: ModelEmaV3(m, decay=0.9, foreach=False),
        lambda m: ModelEmaV3(m, decay=0.9, exclude_buffers=True),
    )
    for make in makes:
        assert averages_as_dense(make, lambda average, model: average.update(model))
    return "the average is that of the dense weights"


@tool(
    "`from_pretrained`",
    "transformers",
    "a class that calls `sparsify` in `__init__`; `dtype=`, `device_map=`, a head of its own",
)
def from_pretrained() -> str:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    class Sparse(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config, head="head"):
            super().__init__(config)
            self.body, self.name = nn.Linear(16, 64), head
            self.add_module(head, nn.Linear(64, 8))
            sparsify(self, 0.5, "uniform", (8, 8))
            self.post_init()

        def _init_weights(self, module):
            if isinstance(module, SparseLayer):
                module.reset_parameters()

        def forward(self, x):
            return self.get_submodule(self.name)(self.body(x).relu())

    original = Sparse(transformers.PretrainedConfig())
    with tempfile.TemporaryDirectory() as folder:
        original.save_pretrained(folder)
        for options in ({}, {"low_cpu_mem_usage": True}, {"device_map": "cpu"}):
            assert is_copy(Sparse.from_pretrained(folder, **options), original)
        half = Sparse.from_pretrained(folder, dtype=torch.bfloat16)
        assert half.body.block_ids.equal(original.body.block_ids)
        tuned = Sparse.from_pretrained(folder, head="other")
    assert torch.equal(tuned.body.dense_weight(), original.body.dense_weight())
    assert tuned(X).isfinite().all()
    return (
        "blocks are those of the checkpoint; a layer that it lacks needs `reset_parameters()` in"
        " `_init_weights`, else its first forward is refused"
    )


@tool(
    "big models",
    "accelerate",
    "`init_empty_weights`, `load_checkpoint_and_dispatch`, also from disk; `cpu_offload`",
)
def dispatched() -> str:
    import logging

    from accelerate import cpu_offload, init_empty_weights, load_checkpoint_and_dispatch
    from safetensors.torch import save_file

    logging.getLogger("accelerate").setLevel(logging.ERROR)
    original = network(1)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/model.safetensors"
        save_file(original.state_dict(), file, {"format": "pt"})
        for buffers in (False, True):
            with init_empty_weights(include_buffers=buffers):
                model = network(0)
            assert is_copy(load_checkpoint_and_dispatch(model, file, {"": "cpu"}), original)
        with init_empty_weights():
            model = network(0)
        places = {"0": "disk", "1": "cpu", "2": "cpu"}
        options = {"offload_folder": f"{folder}/disk", "offload_buffers": True}
        model = load_checkpoint_and_dispatch(model, file, places, **options)
        for _ in range(2):
            assert torch.allclose(model(X), original(X))
    model = copy.deepcopy(original)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert torch.allclose(model(X), original(X))
    return "loads and runs; layers on disk need `offload_buffers=True`"


@tool("`Accelerator`", "accelerate", "`prepare`, `save_state`, `load_state`, `save_model`")
def accelerator() -> str:
    from accelerate import Accelerator
    from safetensors.torch import load_file

    def prepared(seed):
        tool, model = Accelerator(cpu=True), network(seed)
        return tool, *tool.prepare(model, torch.optim.AdamW(model.parameters()))

    tool, original, optimizer = prepared(1)
    tool.backward(original(X).square().sum())
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        tool.save_state(folder)
        tool.save_model(original, f"{folder}/model")
        other, model, _ = prepared(0)
        other.load_state(folder)
        assert is_copy(model, original)
        model = network(2)
        model.load_state_dict(load_file(f"{folder}/model/model.safetensors"))
        assert is_copy(model, original)
    return "steps, states and models are saved and loaded with their blocks"


@tool(
    "PEFT",
    "peft",
    "LoRA, then `sparsify(model, skip='*lora_*')`; LoRA on layers that are sparse; merging",
)
def adapters() -> str:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["0", "2"], init_lora_weights=False)
    try:
        get_peft_model(network(0), config)
    except ValueError:
        pass
    else:
        raise AssertionError("PEFT adds adapters to sparse layers: say so")
    dense = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    model = get_peft_model(dense, config)
    rows = sparsify(model, 0.5, "uniform", (8, 8), skip="*lora_*").rows
    assert sum(row.kind == "SparseLinear" for row in rows) == 2
    right = model(X)
    right.square().sum().backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert all("lora_" in name for name in trained)
    whole = densify(copy.deepcopy(model)).merge_and_unload()
    assert torch.allclose(whole(X), right, atol=1e-5)
    assert not torch.allclose(model.merge_and_unload()(X), right, atol=1e-3)
    return (
        "adapters train beside sparse layers; PEFT refuses sparse layers beneath new ones; merged "
        "after `densify`, as a sparse layer takes only what lies in its blocks"
    )


@tool("schedule-free optimizers", "schedulefree", "`AdamWScheduleFree`, training and evaluation")
def schedule_free() -> str:
    from schedulefree import AdamWScheduleFree

    model = network(0)
    optimizer = AdamWScheduleFree(model.parameters(), lr=0.01)
    optimizer.train()
    first = model(X).square().sum()
    for _ in range(20):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    optimizer.eval()
    assert model(X).square().sum() < first
    return "weights for training and for evaluation keep their blocks"


@tool("`create_feature_extractor`", "torchvision", "a sparse ResNet and a sparse ViT")
def feature_extractors() -> str:
    from torchvision.models import VisionTransformer, resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    images = torch.ones(1, 3, 32, 32)
    models = (resnet18(num_classes=10), VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=10))
    for model, head in zip(models, ("fc", "heads")):
        sparsify(model.eval(), 0.5, "uniform", (8, 8))
        assert torch.equal(create_feature_extractor(model, [head])(images)[head], model(images))
    return "works without naming leaf modules"
