"""DistributedDataParallel: muify goes before the wrapper, on every process.

torchrun --standalone --nproc-per-node 2 examples/ddp.py
"""

import sysconfig
from pathlib import Path

import torch
import transformers
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import autofit

config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, vocab_size=256
)
text = b"".join(f.read_bytes() for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
starts = torch.randint(len(text) - 32, (20 * 8,), generator=torch.Generator().manual_seed(0))
batches = torch.tensor([list(text[s : s + 32]) for s in starts]).view(20, 8, 32)  # steps, rows, bytes

distributed.init_process_group("gloo")  # "nccl" on GPUs
rank, world = distributed.get_rank(), distributed.get_world_size()
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config)
mu = autofit.muify(model, base=32, grow="head_dim")  # base 32: lr is that of width 32; four heads at any width
model = DistributedDataParallel(model)
optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))

for step, ids in enumerate(batches):
    mine = ids.chunk(world)[rank]
    loss = model(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    total = loss.detach()
    distributed.all_reduce(total)
    if rank == 0:
        print(step, total.item() / world)
distributed.barrier()
distributed.destroy_process_group()
