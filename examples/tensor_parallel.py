"""Tensor parallelism through DTensor: muify, then parallelize_module, then the optimizer.

torchrun --standalone --nproc-per-node 2 examples/tensor_parallel.py
"""

import sysconfig
from pathlib import Path

import torch
import transformers
from torch import distributed
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import autofit

config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, vocab_size=256
)
text = b"".join(f.read_bytes() for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
starts = torch.randint(len(text) - 32, (20 * 8,), generator=torch.Generator().manual_seed(0))
batches = torch.tensor([list(text[s : s + 32]) for s in starts]).view(20, 8, 32)  # steps, rows, bytes

distributed.init_process_group("gloo")  # "nccl" on GPUs
mesh = distributed.init_device_mesh("cpu", (distributed.get_world_size(),))  # "cuda" on GPUs
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config)
mu = autofit.muify(model, base=32, grow="head_dim")  # base 32: lr is that of width 32; four heads at any width
layer = {
    **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
    **{f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")},
    **{name: RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")},
}
split = {f"model.layers.*.{name}": style for name, style in layer.items()}
parallelize_module(model, mesh, {**split, "lm_head": ColwiseParallel(output_layouts=Replicate())})
optimizer = mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)  # of the parameters that are there now
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))

for step, ids in enumerate(batches):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if distributed.get_rank() == 0:
        print(step, loss.item())
distributed.barrier()
distributed.destroy_process_group()
