"""Makes the demo's text networks: `python -m fxrebasin.demo.text` (four minutes of CPU time a base).

Bases sort English descriptions of Debian's packages into 12 classes, from different seeds on disjoint halves;
each is fine-tuned for four other languages. Any two bases from different halves are a pair, in both
directions: the fine-tunings of the one are carried over, those of the other are the oracle. The large weight
decay has the same reason as for images (see `train`). Training is not reproducible bit for bit over machines:
sums of products are taken in an order that the processor decides.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import debian, weights
from .models import PIECES, TOKENS, build
from .train import Recipe, accuracy, fit

PAD, UNKNOWN = 0, 1
MOST, MOST_TASK = 2000, 700  # texts of a class and half: English, and each of the other languages
EXTRA = 1000  # test texts to measure on, and as many to fit to
WORD_DROPOUT = 0.3
BASE = Recipe(5, 3e-3, 6.0, 64)
FINE = Recipe(3, 3e-4, 0.1, 64)
State = dict[str, Tensor]
Part = tuple[Tensor, Tensor]  # ids (N, 32) int64, labels (N,) int64


class Dropping(nn.Module):
    """A network that is trained on texts with three words in ten left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        if self.training:
            out = torch.rand(ids.shape) < WORD_DROPOUT
            out[:, 0] = False  # a text without any word has no mean
            ids = ids.masked_fill(out, PAD)
        return self.model(ids)


def pieces(rows: dict[str, list[debian.Row]]):
    """A tokenizer of 8,000 pieces of words, learned from the English texts outside the test set."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator((row.text for row in rows["en"] if row.part != "test"), trainer)
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=PAD)
    return tokenizer


def encoded(rows: list[debian.Row], tokenizer) -> Part:
    """Token ids and labels."""
    ids = [line.ids for line in tokenizer.encode_batch([row.text for row in rows])]
    return torch.tensor(ids), torch.tensor([row.label for row in rows])


def parts(rows: dict[str, list[debian.Row]]) -> dict[str, dict[str, Part]]:
    """Language -> "A", "B" and "test" -> ids and labels: so many texts of a class in each at most, shuffled."""
    tokenizer = pieces(rows)
    result: dict[str, dict[str, Part]] = {}
    for language, found in rows.items():
        result[language] = {}
        for part in ("A", "B", "test"):
            own = [row for row in found if row.part == part]
            own = [own[k] for k in np.random.default_rng(0).permutation(len(own))]
            taken = [
                row
                for label in range(len(debian.CLASSES))
                for row in [row for row in own if row.label == label][
                    : (MOST if language == "en" else MOST_TASK)
                ]
            ]
            ids, labels = encoded(taken, tokenizer)
            order = torch.from_numpy(np.random.default_rng(1).permutation(len(ids)))
            result[language][part] = ids[order], labels[order]
    return result


def made(
    file: Path, start: State | None, texts: dict[str, dict[str, Part]], language: str, seed: int
) -> State:
    """What is stored in `file`, trained first where it is not there: a base, or how it changes from `start`. A base
    of an odd seed learns from half A, one of an even seed from half B."""
    if not file.exists():
        half, recipe, model = "BA"[seed % 2], FINE if start else BASE, build("text")
        torch.manual_seed(seed)
        model.load_state_dict(start or build("text").state_dict())
        fit(Dropping(model), *texts[language][half], recipe, seed, file.stem)
        found = model.state_dict()
        what = "task vector of text base" if start else "text base"
        weights.save(
            file,
            {key: found[key] - start[key] for key in found} if start else found,
            f"{what} {seed}: {language}, half {half}, {recipe}",
        )
    return weights.read(file)


def train(out: Path, texts: dict[str, dict[str, Part]], seeds: Sequence[int]) -> None:
    """Make what is not there yet: all bases first, then a language after the other."""
    for language in debian.LANGUAGES:
        for seed in seeds:
            start = made(out / f"text_{seed}.safetensors", None, texts, "en", seed)
            if language != "en":
                made(out / f"text_{seed}_{language}.safetensors", start, texts, language, seed)


def accuracies(out: Path, texts: dict[str, dict[str, Part]], seed: int) -> dict:
    """Of a base on every language, and of each of its fine-tunings on its language and on English."""
    start, model, measured = weights.read(out / f"text_{seed}.safetensors"), build("text"), {}
    for task in debian.LANGUAGES:
        change = {} if task == "en" else weights.read(out / f"text_{seed}_{task}.safetensors")
        model.load_state_dict({key: value + change.get(key, 0) for key, value in start.items()})
        measured["base" if task == "en" else f"fine-tuned, {task}"] = {
            language: {
                "test": accuracy(model, *texts[language]["test"]),
                "first 1,000": accuracy(model, *(t[:EXTRA] for t in texts[language]["test"])),
            }
            for language in (debian.LANGUAGES if task == "en" else ("en", task))
        }
        print(f"text_{seed} {task}: {measured}", file=sys.stderr, flush=True)
    return measured


def ship_texts(out: Path, texts: dict[str, dict[str, Part]]) -> None:
    """Token ids and labels of 2,000 test texts in each language (German has fewer)."""
    arrays: dict[str, Any] = {}  # numpy takes names of arrays and its own option alike
    for language, found in texts.items():
        ids, labels = (t[: 2 * EXTRA].numpy() for t in found["test"])
        arrays |= {f"{language}.ids": ids.astype(np.uint16), f"{language}.labels": labels.astype(np.uint8)}
    np.savez_compressed(out / "test_texts.npz", **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--texts", type=Path, default=Path("debian-texts"), help="folder for the archive's indices"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2), help="a base each")
    parser.add_argument("--out", type=Path, default=weights.SHIPPED, help="where the checkpoints go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.texts.exists():
        args.texts.mkdir(parents=True)
        debian.fetch(args.texts)
    texts = parts(debian.rows(args.texts))
    args.out.mkdir(parents=True, exist_ok=True)
    ship_texts(args.out, texts)
    train(args.out, texts, args.seeds)
    for seed in args.seeds:
        measured = accuracies(args.out, texts, seed)
        provenance = {
            "how": f"python -m fxrebasin.demo.text --seeds {seed}",
            "torch": torch.__version__,
            "source": f"{debian.MIRROR} {debian.SUITE}, Packages and Translation-*",
            "base": asdict(BASE),
            "fine-tuning": asdict(FINE),
            "accuracy": measured,
        }
        (args.out / f"text_{seed}_measured.json").write_text(json.dumps(provenance, indent=1) + "\n")


if __name__ == "__main__":
    main()
