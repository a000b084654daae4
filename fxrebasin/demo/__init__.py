"""`fxrebasin demo`: two networks, three tasks, and what each way of carrying a fine-tuning over is worth."""
from .run import run

__all__ = ["run"]
