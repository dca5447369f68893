"""A model and its optimizer."""

import torch


def ready(make, width, base):
    """At a width; the settings are those that were tuned at the base."""
    model = make(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    return model, optimizer
