"""Who made the CPU: decides what is fastest, so that one machine always computes the same bits."""

import torch


def made_by_intel() -> bool:
    return str(torch.cpu.get_capabilities().get("cpu_name", "")).startswith("Intel")
