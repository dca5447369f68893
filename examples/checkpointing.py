"""Gradient checkpointing, of transformers and by torch.utils.checkpoint: muify goes before it.

python examples/checkpointing.py transformers
python examples/checkpointing.py torch
"""

import functools
import sys
import sysconfig
from pathlib import Path

import torch
import transformers
from torch.utils.checkpoint import checkpoint

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
if sys.argv[1] == "transformers":
    model.activation_checkpointing_enable()  # gradient_checkpointing_enable by its new name
else:
    for layer in model.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))

for step, ids in enumerate(batches):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    print(step, loss.item())
