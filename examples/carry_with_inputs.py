"""Carry a fine-tuning over to a new base, from files to files, with a few unlabelled inputs.

A text classifier of transformers (folders with config.json and model.safetensors):

    python examples/carry_with_inputs.py text BASE FINETUNED TARGET INPUTS.safetensors -o OUT [--keep KEEP.safetensors]

INPUTS holds input_ids and attention_mask, padded to one length: `tokenizer(texts, padding=True, return_tensors="pt")`,
saved by `safetensors.torch.save_file`. FINETUNED has BASE's architecture with a head; BASE and TARGET may lack the head
(then it is FINETUNED's for both, and only what lies below it is carried).

A vision transformer of timm (by its name there, and three files):

    python examples/carry_with_inputs.py vit vit_small_patch16_224 BASE FINETUNED TARGET INPUTS.safetensors -o OUT

INPUTS holds the images as the model takes them. `rehearse` instead of these runs both on tiny networks made on the spot.
On the command line, the same is `fxrebasin transport FOLDER BASE FINETUNED TARGET --inputs INPUTS -o OUT` for models
whose checkpoints agree in all their names.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxrebasin as fxr
from fxrebasin.checkpoint import load_state

State = dict[str, torch.Tensor]


def carry(model: nn.Module, base: State, tuned: State, target: State, inputs, keep, out: Path) -> None:
    """Infer, match, fit, write; `base` and `target` get the head of `tuned` where they have none."""
    example = {k: v[:2] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:2]
    spec = fxr.infer(model.eval(), example)
    names = {*spec.names, *spec.passed}
    tuned = {name: tensor for name, tensor in tuned.items() if name in names}
    base, target = ({name: state.get(name, tensor) for name, tensor in tuned.items()} for state in (base, target))
    alignment = fxr.match(spec, base, target)
    print(alignment)
    found = fxr.calibrate(model, base, tuned, target, alignment, inputs, keep)
    print(found)
    save_file({name: tensor.contiguous() for name, tensor in found.state.items()}, out)
    print(f"written: {out}")


def text(base: Path, tuned: Path, target: Path, inputs: Path, keep: Path | None, out: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tuned, local_files_only=True))
    states = [dict(load_state(folder)) for folder in (base, tuned, target)]
    carry(model, *states, dict(load_file(inputs)), None if keep is None else dict(load_file(keep)), out)


def vit(name: str, base: Path, tuned: Path, target: Path, inputs: Path, keep: Path | None, out: Path) -> None:
    import timm

    states = [dict(load_state(file)) for file in (base, tuned, target)]
    classes = states[1]["head.weight"].shape[0] if "head.weight" in states[1] else 0
    images = next(iter(load_file(inputs).values()))
    model = timm.create_model(name, num_classes=classes, img_size=images.shape[-1])
    carry(model, *states, images, None if keep is None else next(iter(load_file(keep).values())), out)


def rehearse(folder: Path) -> None:
    """Both, on tiny networks: the figures mean nothing, the files are those that a real run needs."""
    import timm
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                        max_position_embeddings=16, num_labels=3)
    for k, name in enumerate(("base", "tuned", "target")):
        model = BertForSequenceClassification(config)
        if name == "tuned":
            model.load_state_dict(changed(load_state(folder / "base")))
        model.save_pretrained(folder / name)
    ids = torch.randint(1, 60, (64, 12))
    save_file({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, folder / "texts.safetensors")
    text(folder / "base", folder / "tuned", folder / "target", folder / "texts.safetensors", None,
         folder / "text_out.safetensors")
    name, size = "vit_tiny_patch16_224", 32
    for which in ("base", "tuned", "target"):
        state = timm.create_model(name, num_classes=4, img_size=size, depth=2).state_dict()
        state = changed(load_file(folder / "base.safetensors")) if which == "tuned" else state
        save_file(state, folder / f"{which}.safetensors")
    save_file({"images": torch.randn(64, 3, size, size)}, folder / "images.safetensors")
    images = load_file(folder / "images.safetensors")["images"]
    carry(timm.create_model(name, num_classes=4, img_size=size, depth=2),
          *(load_file(folder / f"{which}.safetensors") for which in ("base", "tuned", "target")), images, None,
          folder / "vit_out.safetensors")


def changed(state: State) -> State:
    """A stand-in for a fine-tuning: every tensor moved by a tenth of its size."""
    return {name: tensor + 0.1 * tensor.std(correction=0) * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("text", "vit", "rehearse"))
    parser.add_argument("paths", nargs="*", metavar="[NAME] BASE FINETUNED TARGET INPUTS")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--keep", type=Path, help="inputs on which the target is to stay as it is")
    args = parser.parse_args()
    if args.kind == "rehearse":
        with tempfile.TemporaryDirectory() as folder:
            return rehearse(Path(folder))
    if len(args.paths) != (4 if args.kind == "text" else 5) or args.output is None:
        parser.error("give [NAME] BASE FINETUNED TARGET INPUTS and -o OUT")
    if args.kind == "text":
        return text(*map(Path, args.paths), args.keep, args.output)
    return vit(args.paths[0], *map(Path, args.paths[1:]), args.keep, args.output)


if __name__ == "__main__":
    main()
