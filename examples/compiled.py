"""torch.compile of the model and of the optimizer's step: muify goes before both.

python examples/compiled.py
"""

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
rate = torch.tensor(1e-2)  # each group gets a tensor of its own; as a number, a new rate would compile the step again
optimizer = mu.optimizer(torch.optim.AdamW, lr=rate, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
compiled, compiled_step = torch.compile(model), torch.compile(optimizer.step)

for step, ids in enumerate(batches):
    loss = compiled(input_ids=ids, labels=ids).loss
    loss.backward()
    compiled_step()
    scheduler.step()
    optimizer.zero_grad()
    print(step, loss.item())
