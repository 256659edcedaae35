"""A sparse GPT-2 in the Trainer of transformers, whose callback updates the topology.

python examples/hugging_face.py                                         minutes on a CPU
python examples/hugging_face.py --resume gpt2/checkpoint-8              continue from a checkpoint
torchrun --nproc-per-node 2 examples/hugging_face.py                    two processes

It learns to repeat the first half of a sequence. The output layer shares its weight with the
embedding, so it stays dense; the report says so.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from sparse_engine import report, sparsify
from sparse_engine.integrations.transformers import DynamicSparsityCallback


def main(tiny: bool, resume: Path | None, out: Path) -> None:
    """Train, and print what there is."""
    torch.manual_seed(0)
    halves = torch.randint(32, (64 if tiny else 4096, 8))
    data = [{"input_ids": row, "labels": row} for row in torch.cat([halves, halves], 1)]
    width, layers = (64, 2) if tiny else (128, 4)
    config = GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    print(sparsify(model, sparsity=0.8, block=(16, 16)))
    arguments = TrainingArguments(
        str(out),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_train_epochs=2 if tiny else 20,
        learning_rate=2e-3,
        save_strategy="epoch",
        logging_steps=2 if tiny else 100,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data)
    DynamicSparsityCallback("rigl", interval=1 if tiny else 50).add_to(trainer)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if trainer.is_world_process_zero():
        print(report(model))
    tensors = b"".join(t.numpy().tobytes() for t in model.state_dict().values())
    number = arguments.process_index
    print(f"process {number}: weights {hashlib.sha256(tensors).hexdigest()[:16]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="two epochs of 64 sequences")
    parser.add_argument("--resume", type=Path, help="a checkpoint to continue from")
    parser.add_argument("--out", type=Path, default=Path("gpt2"))
    arguments = parser.parse_args()
    main(arguments.tiny, arguments.resume, arguments.out)
