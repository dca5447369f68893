"""FSDP2 from meta, where no process holds the whole model, and a checkpoint that fits any number of processes.

torchrun --standalone --nproc-per-node 2 examples/fsdp2.py checkpoint
torchrun --standalone --nproc-per-node 1 examples/fsdp2.py checkpoint  # goes on at half way
"""

import sys
import sysconfig
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
import transformers
from torch import distributed
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard

import autofit

config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, vocab_size=256
)
text = b"".join(f.read_bytes() for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
starts = torch.randint(len(text) - 32, (20 * 8,), generator=torch.Generator().manual_seed(0))
batches = torch.tensor([list(text[s : s + 32]) for s in starts]).view(20, 8, 32)  # steps, rows, bytes

distributed.init_process_group("gloo")  # "nccl" on GPUs
mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))  # "cuda" on GPUs
model = autofit.deferred_init(lambda: transformers.LlamaForCausalLM(config))
mu = autofit.muify(model, base=32, grow="head_dim")  # base 32: lr is that of width 32; four heads at any width
for part in (*model.model.layers, model):
    fully_shard(part, mesh=mesh)
model.to_empty(device="cpu")  # "cuda" on GPUs
mu.init_(torch.Generator().manual_seed(0))  # before loading, too: some buffers are in no checkpoint
optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
folder, start = Path(sys.argv[1]), 0
if folder.exists():
    state = {"model": model, "optimizer": get_optimizer_state_dict(model, optimizer), "scheduler": scheduler}
    dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    start = scheduler.last_epoch

for step, ids in enumerate(batches[start:], start):
    if step == 10 and start == 0:
        state = {"model": model, "optimizer": get_optimizer_state_dict(model, optimizer), "scheduler": scheduler}
        dcp.save(state, checkpoint_id=folder)
    mine = ids.chunk(mesh.size())[mesh.get_rank()]
    loss = model(input_ids=mine, labels=mine).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    total = loss.detach()
    distributed.all_reduce(total)
    if mesh.get_rank() == 0:
        print(step, total.item() / mesh.size())
distributed.barrier()
distributed.destroy_process_group()
