"""Accelerate: muify goes before `prepare`, which takes optimizer and scheduler as any other.

python examples/hf_accelerate.py
"""

import sysconfig
from pathlib import Path

import accelerate
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
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
loader = torch.utils.data.DataLoader(batches.flatten(0, 1), batch_size=8)
accelerator = accelerate.Accelerator(cpu=True)
model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

for step, ids in enumerate(loader):
    loss = model(input_ids=ids, labels=ids).loss
    accelerator.backward(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    print(step, loss.item())
