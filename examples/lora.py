"""peft LoRA: adapters go in first, then muify, which is told that what is frozen is pretrained.

python examples/lora.py adapter
"""

import sys
import sysconfig
from pathlib import Path

import peft
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
pretrained = transformers.LlamaForCausalLM(config)  # yours comes by from_pretrained
lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
model = peft.get_peft_model(pretrained, lora)
mu = autofit.muify(model, base=32, frozen="keep")  # base 32: lr is that of width 32, at the same rank
optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))

for step, ids in enumerate(batches):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    print(step, loss.item())
model.save_pretrained(sys.argv[1])  # peft loads it into the untouched model: no multiplier is in forward
