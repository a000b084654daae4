"""What a result says of the machine that made it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> str:
    """Processor, cores and versions, for benchmarks that use one thread."""
    return (f"{processor()}, {os.cpu_count()} cores, one thread used; Python {platform.python_version()}, "
            f"torch {torch.__version__}")
