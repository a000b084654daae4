"""Align the independently trained transformers inside the package `sceptr`, and carry a fine-tuning across.

SCEPTR reads T-cell receptors (https://github.com/yutanagano/sceptr). Its package holds several bases that
were trained apart, on other data or by another recipe, with the same architecture (three post-norm layers,
width 64, 8 heads), and one fine-tuned descendant of the default base: a real test case for re-basin.

    pip install sceptr        # or, to leave an installed torch and all else alone:
    pip install --no-deps sceptr libtcrlm tidytcells blosum
    pip install "pandas~=2.2"
    python examples/sceptr_bases.py

The package has no labelled receptors, so two things are measured that need none: the accuracy of the
masked-residue head on the CDR1 and CDR2 loops of human germline V genes, and how far the distances between
receptors agree with those of the fine-tuned original. The receptors are real V genes with CDR3 loops drawn
at random.
"""
from __future__ import annotations

import random
import sys

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import fxrebasin as fxr

try:
    import tidytcells
    from libtcrlm import schema
    from sceptr import variant
except ImportError as error:
    raise SystemExit(f"this example needs {error.name}: pip install sceptr") from None

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"  # the order of the masked-residue head's outputs
MASK, FIRST_RESIDUE = 1, 3         # token numbers in sceptr's vocabulary
OTHER_BASES = ("synthetic_data", "shuffled_data", "dropout_noise_only")
METHODS = ("identity", "transfusion", "git-rebasin", "exact")
State = dict[str, Tensor]


class MaskedResidues(nn.Module):
    """Tokens (N, length, 4) to residue scores (N, length, 20).

    The residual stream itself is no output here, so it may be permuted: distances between receptors, which is
    what SCEPTR is used for, do not mind.
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor) -> Tensor:
        return self.bert.get_mlm_token_predictions_for(tokens)

    def distances(self, tokens: Tensor) -> Tensor:
        """Distance of every pair of receptors, as sceptr's calc_pdist_vector gives it."""
        return torch.pdist(self.bert.get_vector_representations_of(tokens))


def receptors(count: int, seed: int = 0) -> list[schema.Tcr]:
    """Human V genes drawn evenly, with CDR3 loops of 12 to 16 residues drawn evenly: C...F as in nature."""
    draw = random.Random(seed)

    def chain(letter: str) -> tuple[str, str]:
        loop = "".join(draw.choice(RESIDUES) for _ in range(draw.randint(10, 14)))
        return draw.choice(genes[letter]), f"C{loop}F"
    genes = {letter: sorted(tidytcells.tr.query(species="homosapiens", contains_pattern=f"TR{letter}V",
                                                functionality="F", precision="allele")) for letter in "AB"}
    genes = {letter: [g for g in names if "*01" in g] for letter, names in genes.items()}
    return [schema.make_tcr_from_components(*chain("A"), *chain("B")) for _ in range(count)]


def masked(tokens: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Hide a fifth of the germline residues (CDR1 and CDR2 of both chains): tokens, and where."""
    germline = torch.isin(tokens[..., 3], torch.tensor([1, 2, 4, 5])) & (tokens[..., 0] >= FIRST_RESIDUE)
    hide = germline & (torch.rand(germline.shape, generator=torch.Generator().manual_seed(seed)) < 0.2)
    hidden = tokens.clone()
    hidden[..., 0][hide] = MASK
    return hidden, hide


def load(name: str) -> MaskedResidues:
    """One of sceptr's variants (it reads its checkpoints with weights_only=True)."""
    return MaskedResidues(getattr(variant, name)()._bert.cpu()).eval()


def agreement(a: Tensor, b: Tensor) -> float:
    """Pearson correlation."""
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def main() -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    base, tuned = load("default"), load("finetuned")
    tokeniser = variant.default()._tokeniser
    tokens = pad_sequence([tokeniser.tokenise(tcr) for tcr in receptors(200)], batch_first=True)
    hidden, hide = masked(tokens)
    model = load("default")

    @torch.no_grad()
    def score(state: State) -> tuple[float, Tensor]:
        """Masked-residue accuracy and distances of a state."""
        model.load_state_dict(state)
        guess = model(hidden)[hide].argmax(-1) + FIRST_RESIDUE
        return (guess == tokens[..., 0][hide]).float().mean().item(), model.distances(tokens)

    spec = fxr.infer(base, (hidden[:2],))
    console.print(str(spec), markup=False, highlight=False)
    a, a_tuned = base.state_dict(), tuned.state_dict()
    (accuracy, before), (accuracy_tuned, after) = score(a), score(a_tuned)
    console.print(f"{int(hide.sum()):,} residues hidden in {len(tokens)} receptors. SCEPTR: masked residues "
                  f"{accuracy:.3f}, fine-tuned {accuracy_tuned:.3f}; their distances agree "
                  f"{agreement(before, after):.3f}")
    console.print("midpoint, B + pi(tau): accuracy on masked residues. agreement: correlation of distances "
                  "under B + pi(tau) with those of fine-tuned SCEPTR; of the change: the same for what the "
                  "fine-tuning changed. cosine: over what can be permuted.")
    for name in OTHER_BASES:
        b = load(name).state_dict()
        untouched, distances = score(b)
        table = Table(title=f"A = SCEPTR onto B = SCEPTR ({name.replace('_', ' ')})", title_justify="left",
                      caption=f"B untouched: masked residues {untouched:.3f}, "
                              f"agreement {agreement(distances, after):.3f}", caption_justify="left")
        for column in ("method", "cosine", "worst error", "function", "midpoint", "B + pi(tau)", "agreement",
                       "of the change"):
            table.add_column(column, justify="left" if column in ("method", "function") else "right")
        for method in METHODS:
            alignment = fxr.match(spec, a, b, method=method)
            base.load_state_dict(a)
            try:
                evidence, kept = fxr.verify(base, (hidden[:2],), alignment), True
            except fxr.NotEquivalentError as error:
                evidence, kept = error.evidence, False
            moved = alignment.apply(a)
            middle, _ = score({key: (moved[key] + b[key]) / 2 for key in b})
            carried, changed = score(fxr.transport(a, a_tuned, b, alignment))
            table.add_row(method, f"{alignment.objective:.3f}", f"{evidence.max_rel:.1e}",
                          "kept" if kept else "[bold red]BROKEN[/]", f"{middle:.3f}", f"{carried:.3f}",
                          f"{agreement(changed, after):.3f}",
                          f"{agreement(changed - distances, after - before):+.3f}")
        console.print(table)


if __name__ == "__main__":
    main()
