"""Lightning: muify goes into the constructor of the module, and its optimizer into `configure_optimizers`.

python examples/lightning_module.py
"""

import sysconfig
from pathlib import Path

import lightning
import torch
import transformers

import autofit

config = transformers.LlamaConfig(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, vocab_size=256
)
text = b"".join(f.read_bytes() for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
starts = torch.randint(len(text) - 32, (20 * 8,), generator=torch.Generator().manual_seed(0))
batches = torch.tensor([list(text[s : s + 32]) for s in starts]).view(20, 8, 32)  # steps, rows, bytes


class Module(lightning.LightningModule):
    """A language model in muP."""

    def __init__(self) -> None:
        super().__init__()
        self.model = transformers.LlamaForCausalLM(config)
        self.mu = autofit.muify(self.model, base=32, grow="head_dim")  # lr is that of width 32

    def training_step(self, ids: torch.Tensor, step: int) -> torch.Tensor:
        loss = self.model(input_ids=ids, labels=ids).loss
        print(step, loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = self.mu.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(batches))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


torch.manual_seed(0)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet)
trainer.fit(Module(), torch.utils.data.DataLoader(batches.flatten(0, 1), batch_size=8))
