"""Hugging Face Trainer: it takes the optimizer, makes the scheduler, and logs the learning rate of every group.

python examples/hf_trainer.py checkpoints  # once more goes on from the last checkpoint in there
"""

import sys
import sysconfig
from pathlib import Path

import torch
import transformers

import autofit

config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, vocab_size=256
)
text = b"".join(f.read_bytes() for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
starts = torch.randint(len(text) - 32, (20 * 8,), generator=torch.Generator().manual_seed(0))
batches = torch.tensor([list(text[s : s + 32]) for s in starts]).view(20, 8, 32)  # steps, rows, bytes

torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config)
mu = autofit.muify(model, base=32, grow="head_dim")  # base 32: lr is that of width 32; four heads at any width
optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)


class Trainer(transformers.Trainer):
    """Trainer's own `learning_rate` is that of the first group."""

    def training_step(self, *args, **kwargs):
        self.rates = {f"lr/{g['param_names'][0]}": g["lr"] for g in self.optimizer.param_groups}
        return super().training_step(*args, **kwargs)

    def log(self, logs, start_time=None):
        super().log({**logs, **self.rates} if "learning_rate" in logs else logs, start_time)


arguments = transformers.TrainingArguments(
    output_dir=sys.argv[1],
    max_steps=len(batches),
    per_device_train_batch_size=8,
    train_sampling_strategy="sequential",
    max_grad_norm=0,  # the default is 1
    logging_steps=1,
    save_steps=10,
    use_cpu=True,
    disable_tqdm=True,
)
rows = [{"input_ids": row, "labels": row} for row in batches.flatten(0, 1)]
trainer = Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None))
# or optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": mu.param_groups("adamw", lr=1e-2, weight_decay=0.1)})
trainer.train(resume_from_checkpoint=transformers.trainer_utils.get_last_checkpoint(arguments.output_dir))
