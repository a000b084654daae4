"""Calibration: unlabelled inputs turn a carried task vector into the fine-tuned function."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from architectures import ARCHITECTURES, build, mlp, spec_of
from torch import nn
from torch.func import functional_call

import fxrebasin as fxr
from fxrebasin.transport.outputs import agreement, goal
from fxrebasin.transport.samples import mixed, named, padding, samples_of

pytestmark = pytest.mark.filterwarnings("ignore::fxrebasin.transport.task_vector.TransportNote")
NAMES = (
    "mlp",
    "lenet",
    "vgg",
    "resnet_small",
    "lstm",
    "multihead_attention",
    "vit_fused",
    "gpt2",
    "llama",
    "experts",
)


def moved(state, size: float, seed: int):
    """A state with every parameter moved by a share of its own size; what is tied stays tied."""
    noise, done = torch.Generator().manual_seed(seed), {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and "running" not in name:
            step = (
                size
                * tensor.std(correction=0)
                * torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype)
            )
            done.setdefault(tensor.data_ptr(), tensor + step)
    return {name: done.get(tensor.data_ptr(), tensor.clone()) for name, tensor in state.items()}


@dataclass
class Case:
    """A base, a fine-tuning, and a target that is the permuted base, moved."""

    module: nn.Module
    base: dict
    fine: dict
    target: dict
    pi: fxr.Alignment
    inputs: tuple

    @property
    def all(self):
        return self.module, self.base, self.fine, self.target, self.pi

    def gap(self, state, inputs=None) -> float:
        """How far a state's outputs are from the fine-tuned model's, on fresh inputs."""
        with torch.no_grad():
            one, two = (
                functional_call(self.module, s, inputs or self.inputs, tie_weights=False)
                for s in (state, self.fine)
            )
        return float((one - two).square().mean() / (two - two.mean(0)).square().mean())


def case(name: str, count: int = 16) -> Case:
    module, _ = build(name)
    torch.manual_seed(7)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in ARCHITECTURES[name].inputs(count))
    base, pi = module.state_dict(), spec_of(name).random(2)
    base = {k: v.clone() if k not in spec_of(name).ties else v for k, v in base.items()}
    base |= {alias: base[to] for alias, to in spec_of(name).ties.items()}
    return Case(module, base, moved(base, 0.5, 3), moved(pi.apply(base), 0.3, 4), pi, inputs)


# == what comes out ==========================================================================================


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_module_comes_closer_to_the_fine_tuned_one(name):
    it = case(name)
    before = {k: v.clone() for k, v in it.target.items()}
    found = fxr.calibrate(*it.all, it.inputs, passes=12)
    print(name, found)
    assert found.losses[found.start] <= found.losses["the target itself"]
    assert it.gap(found.state) < 0.7 * it.gap(it.target)
    assert list(found.state) == list(it.target)
    assert all(
        found.state[k].dtype == it.target[k].dtype and found.state[k].shape == it.target[k].shape
        for k in before
    )
    assert all(torch.equal(it.target[k], before[k]) for k in before), "an argument was changed"
    for alias, to in it.pi.spec.ties.items():
        assert found.state[alias] is found.state[to]
    assert found.passes <= 13


def test_gains_find_the_scales_that_are_wanted():
    """Where A_ft is the target plus a scaled task vector, gains alone find it."""
    module = mlp(6, 24, 4).double()
    base = {k: v.clone() for k, v in module.state_dict().items()}
    other = moved(base, 1.0, 1)
    spec = fxr.infer(module, torch.randn(3, 6).double())
    rows = torch.linspace(0.5, 1.5, 24, dtype=torch.float64)[:, None]
    change = other["0.weight"] - base["0.weight"]
    fine = base | {"0.weight": base["0.weight"] + change}
    wanted = base | {"0.weight": base["0.weight"] + rows * change}
    x = torch.randn(96, 6, dtype=torch.float64)
    found = fxr.calibrate(
        module,
        fine | {"0.weight": wanted["0.weight"] - change},
        wanted,
        base,
        spec.identity(),
        x,
        fit="gains",
        loss="squared",
    )
    assert found.start == "gains" and found.losses["gains"] < 0.02 * found.losses["pi(tau)"]
    assert float((found.gains.axes["0.weight"][0] - rows).abs().max()) < 0.5
    assert torch.equal(found.state["0.bias"], base["0.bias"])  # it is not part of the task vector
    assert "0.weight" in str(found.gains)


def test_keep_keeps():
    it = case("mlp", 64)
    support = torch.randn(64, 10).double() + 3
    plain, kept = (fxr.calibrate(*it.all, it.inputs, keep) for keep in (None, (support,)))
    fresh = (torch.randn(200, 10).double() + 3,)
    with torch.no_grad():
        old, one, two = (functional_call(it.module, s, fresh) for s in (it.target, plain.state, kept.state))
    assert (two - old).square().mean() < 0.5 * (one - old).square().mean()
    assert any("keep" in note for note in plain.notes) and not any("keep" in note for note in kept.notes)
    assert kept.passes <= 201 and plain.passes <= 201


def test_transport_with_inputs_is_calibration():
    it = case("mlp")
    state = fxr.transport(*it.all[1:], model=it.module, inputs=it.inputs)
    again = fxr.calibrate(*it.all, it.inputs, passes=200)
    assert all(torch.equal(state[k], again.state[k]) for k in state)


def test_never_worse_than_the_target():
    """A target that is the fine-tuned model already cannot come closer: it is returned, and this is said."""
    it = case("mlp")
    found = fxr.calibrate(it.module, it.base, it.fine, it.fine, it.pi.spec.identity(), it.inputs)
    assert found.start == "the target itself" and all(
        torch.equal(found.state[k], it.fine[k]) for k in it.fine
    )
    assert any("returned as it was" in note for note in found.notes) and found.agreement == 1.0


def test_the_head_in_closed_form():
    it = case("vit_fused", 48)
    found = fxr.calibrate(*it.all, it.inputs, fit="head")
    changed = {k for k in found.state if not torch.equal(found.state[k], fxr.transport(*it.all[1:])[k])}
    assert found.start == "head" and changed <= {k for k in found.state if k.startswith("head")} and changed
    assert found.losses["head"] < found.losses["pi(tau)"]


class Two(nn.Module):
    """A dataclass of a sequence and a summary, with padding."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        @dataclass
        class Result:
            tokens: torch.Tensor
            pooled: torch.Tensor
            ids: torch.Tensor

        x = self.out(torch.relu(self.embed(input_ids)))
        held = attention_mask[..., None].to(x.dtype)
        return Result(x, (x * held).sum(1) / held.sum(1), input_ids)


def test_outputs_of_any_structure_and_padding():
    torch.manual_seed(0)
    module = Two()
    mask = torch.ones(16, 5, dtype=torch.long)
    mask[:, 3:] = 0
    ids = torch.randint(1, 9, (16, 5)) * mask
    inputs = {"input_ids": ids, "attention_mask": mask}
    base = {k: v.clone() for k, v in module.state_dict().items()}
    fine = moved(base, 0.5, 1)
    target = moved(base, 0.3, 2)
    spec = fxr.infer(module, inputs)
    found = fxr.calibrate(module, base, fine, target, spec.identity(), inputs, passes=20)
    assert found.agreement > found.before


def test_what_stands_at_padded_places_has_no_say():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    wanted = {"tokens": torch.randn(4, 3, 5), "pooled": torch.randn(4, 5)}
    whole = goal(samples_of({"x": torch.randn(4, 2), "attention_mask": mask}, "inputs"), wanted, "auto", "it")
    blurred = {k: v.clone() for k, v in wanted.items()}
    blurred["tokens"][mask == 0] += 5
    assert float(whole.distance(blurred)) == 0 == 1 - agreement(blurred, whole)
    blurred["tokens"][mask == 1] += 5
    assert float(whole.distance(blurred)) > 1


def test_a_mask_is_known_by_its_name_wherever_it_is_given():
    ids = torch.arange(12).view(4, 3)
    given = samples_of((ids, ids), "inputs")
    assert padding(given) is None and padding(named(given, Two())).shape == (4, 3)
    assert named(given, nn.Linear(2, 2)) is given  # which does not take two


def test_distances_are_in_units_of_the_variance():
    """0 is there, 1 no better than the mean: at any scale, for each kind of loss."""
    torch.manual_seed(0)
    x = samples_of(torch.randn(50, 2), "inputs")
    for scale in (1e-3, 1.0, 1e3):
        z = scale * torch.randn(50, 4)
        whole = goal(x, {"output": z}, "squared", "it")
        assert float(whole.distance({"output": z.mean(0).expand(50, 4)})) == pytest.approx(1, rel=1e-4)
        assert abs(agreement({"output": z.mean(0).expand(50, 4)}, whole)) < 1e-4
    z = torch.randn(50, 4)
    mean = z.softmax(-1).mean(0).log().expand(50, 4)
    assert float(goal(x, {"output": z}, "kl", "it").distance({"output": mean})) == pytest.approx(1, rel=1e-4)
    own = goal(x, {"output": z}, lambda found, wanted: (found - wanted).abs().sum(), "it")
    assert float(own.distance({"output": z + 1})) == pytest.approx(200, rel=1e-4)


def test_half_precision_and_the_targets_dtype():
    module = mlp(6, 8, 4).bfloat16()
    base = {k: v.clone() for k, v in module.state_dict().items()}
    spec = fxr.infer(module, torch.randn(3, 6).bfloat16())
    found = fxr.calibrate(
        module,
        base,
        moved(base, 0.5, 1),
        moved(base, 0.3, 2),
        spec.identity(),
        torch.randn(16, 6).bfloat16(),
        passes=10,
    )
    assert (
        all(v.dtype == torch.bfloat16 for v in found.state.values())
        and next(module.parameters()).dtype == torch.bfloat16
    )


def test_the_module_and_its_mode_are_left():
    it = case("vgg")
    it.module.train()
    held = {k: v.clone() for k, v in it.module.state_dict().items()}
    fxr.calibrate(*it.all, it.inputs, passes=5)
    assert it.module.training and all(torch.equal(v, held[k]) for k, v in it.module.state_dict().items())
    it.module.eval()


# == gains as values =========================================================================================


def test_gains_save_load_and_refuse(tmp_path):
    it = case("lenet")
    gains = fxr.calibrate(*it.all, it.inputs, fit="gains").gains
    gains.save(tmp_path / "g.safetensors")
    again = fxr.Gains.load(tmp_path / "g.safetensors")
    vector = it.pi.apply(fxr.task_vector(it.base, it.fine))
    one, two = gains.apply(vector), again.apply(vector)
    assert set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one) and str(gains) == str(again)
    with pytest.raises(fxr.StateError, match="belong to another model"):
        gains.apply({k: v[:1] for k, v in vector.items()})
    with pytest.raises(fxr.CheckpointError, match="holds no gains"):
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
        fxr.Gains.load(tmp_path / "x.safetensors")
    with pytest.raises(fxr.CheckpointError, match="cannot read"):
        fxr.Gains.load(tmp_path / "none.safetensors")


def test_gains_fold_into_an_adapter_of_the_same_rank():
    module = mlp(6, 8, 4).double()
    spec = fxr.infer(module, torch.randn(3, 6).double())
    zero = {k: torch.zeros_like(v) for k, v in module.state_dict().items()}
    tensors = {
        f"base_model.model.{k}.lora_{side}.weight": torch.randn(shape, dtype=torch.float64)
        for k, (o, i) in {"0": (8, 6), "2": (4, 8)}.items()
        for side, shape in (("A", (2, i)), ("B", (o, 2)))
    }
    adapter = fxr.Adapter({"peft_type": "LORA", "r": 2, "lora_alpha": 4}, tensors)
    product = fxr.merge_adapter(zero, adapter, spec)
    axes = {
        k: tuple(
            torch.rand([n if d == e else 1 for e in range(v.ndim)], dtype=torch.float64) + 0.5
            for d, n in enumerate(v.shape)
        )
        for k, v in product.items()
        if v.ndim == 2
    }
    gains = fxr.Gains.of(axes, product)
    folded = gains.fold(adapter, spec)
    merged = fxr.merge_adapter(zero, folded, spec)
    for name, wanted in gains.apply(product).items():
        assert torch.allclose(merged[name], wanted, rtol=1e-12, atol=1e-12)
    assert {k: v.shape for k, v in folded.tensors.items()} == {k: v.shape for k, v in tensors.items()}
    with pytest.raises(fxr.StateError, match="no gains for '2.weight'"):
        fxr.Gains.of({"0.weight": axes["0.weight"]}, product).fold(adapter, spec)


# == bad inputs ==============================================================================================


@pytest.mark.parametrize(
    "inputs, error, message",
    [
        (torch.randn(24, 9).double(), fxr.CaptureError, "does not run on the inputs"),
        (torch.randn(3, 10).double(), fxr.StateError, "3 inputs are too few: give at least 4"),
        (torch.ones(24, 10).double(), fxr.StateError, "the 24 inputs are all alike"),
        (torch.full((24, 10), float("nan")).double(), fxr.StateError, "NaN or infinity"),
        ([], fxr.StateError, "no inputs: give a batch"),
        (
            [torch.randn(8, 10).double(), torch.randn(8, 11).double()],
            fxr.StateError,
            "bring them to one size",
        ),
        (
            [torch.randn(8, 10).double(), (torch.randn(8, 10).double(),) * 2],
            fxr.StateError,
            "differ in structure",
        ),
        ((), fxr.StateError, "no tensor with an axis that counts"),
    ],
)
def test_inputs_that_will_not_do(inputs, error, message):
    it = case("mlp")
    with pytest.raises(error, match=message) as caught:
        fxr.calibrate(*it.all, inputs)
    assert "\n" not in str(caught.value)


def test_a_fine_tuned_model_that_says_the_same_of_everything():
    it = case("mlp")
    flat = it.fine | {"4.weight": torch.zeros_like(it.fine["4.weight"])}
    with pytest.raises(
        fxr.StateError, match="outputs of the fine-tuned model are the same for all of these inputs"
    ):
        fxr.calibrate(it.module, it.base, flat, it.target, it.pi, it.inputs)


def test_outputs_that_move_cannot_be_compared():
    it = case("mlp")
    free = fxr.infer(it.module, it.inputs, outputs="free").random(0)
    for fit in (fxr.calibrate, fxr.choose_alpha):
        with pytest.raises(fxr.SpecError, match="moves with the network"):
            fit(it.module, it.base, it.fine, it.target, free, it.inputs)


def test_notes_are_warnings_too():
    it = case("mlp", 8)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = fxr.calibrate(it.module, it.base, it.base, it.target, it.pi, it.inputs, passes=5)
    said = " ".join(str(w.message) for w in seen)
    assert (
        "8 inputs are few" in said
        and "nothing to carry over" in said
        and all(note in said for note in found.notes)
    )


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"fit": "some"}, "unknown fit 'some'"),
        ({"loss": "l1"}, "unknown loss 'l1'"),
        ({"passes": 0}, "passes is 0: give a positive number"),
    ],
)
def test_wrong_requests(wrong, message):
    it = case("mlp")
    with pytest.raises(fxr.FxrebasinError, match=message):
        fxr.calibrate(*it.all, it.inputs, **wrong)


def test_transport_needs_what_fitting_needs():
    it = case("mlp")
    with pytest.raises(fxr.FxrebasinError, match="needs the module"):
        fxr.transport(*it.all[1:], inputs=it.inputs)
    with pytest.raises(fxr.FxrebasinError, match="give inputs as well"):
        fxr.transport(*it.all[1:], model=it.module, keep=it.inputs)
    with pytest.raises(fxr.FxrebasinError, match="leave it out"):
        fxr.transport(*it.all[1:], 0.5, model=it.module, inputs=it.inputs)


def test_mixing_stays_between_the_samples_and_keeps_sequences_together():
    ids = torch.arange(40).view(8, 5)
    samples = samples_of(
        {"ids": ids, "mask": ids % 2, "x": torch.rand(8, 3), "k": torch.arange(8), "scale": torch.ones(())},
        "inputs",
    )
    other = mixed(samples, torch.Generator().manual_seed(0))
    assert torch.equal(other.kwargs["ids"] % 5, ids % 5) and torch.equal(
        other.kwargs["mask"], other.kwargs["ids"] % 2
    )
    assert bool((other.kwargs["x"] <= 1).all()) and not torch.equal(other.kwargs["x"], samples.kwargs["x"])
    assert torch.equal(other.kwargs["k"], samples.kwargs["k"])


# == alpha, published methods, probes ========================================================================


def test_alpha_by_agreement():
    """Where the target is the base and the fine-tuning is twice too small, alpha is what undoes that."""
    it = case("mlp", 32)
    half = {k: it.base[k] + (it.fine[k] - it.base[k]) / 1.6 for k in it.base}
    still = it.pi.spec.identity()
    chosen = fxr.choose_alpha(it.module, it.base, it.fine, it.base, still, it.inputs)
    assert chosen.value == 1 and chosen.curve[1.0] < 1e-12 and "alpha 1 " in str(chosen)
    halved = transported(it, it.base, half, it.base, still)
    whole = fxr.transport(it.base, half, it.base, still, alpha=1.6)
    assert max(float((halved[k] - whole[k]).abs().max()) for k in whole) < 0.05


def transported(it: Case, base, half, target, pi):
    """transport(alpha="auto") towards what 1.6 times the vector `half` says."""
    full = {k: base[k] + 1.6 * (half[k] - base[k]) for k in base}
    chosen = fxr.choose_alpha(it.module, {k: full[k] - (half[k] - base[k]) for k in base}, full, target, pi, it.inputs)
    assert 1.5 < chosen.value < 1.7
    return fxr.transport(base, half, target, pi, alpha=chosen.value)


def test_transport_with_alpha_auto():
    it = case("mlp")
    chosen = fxr.choose_alpha(*it.all, it.inputs)
    auto = fxr.transport(*it.all[1:], "auto", model=it.module, inputs=it.inputs)
    plain = fxr.transport(*it.all[1:], chosen.value)
    assert all(torch.equal(auto[k], plain[k]) for k in plain)
    assert chosen.curve[chosen.value] == min(chosen.curve.values())
    with pytest.raises(fxr.FxrebasinError, match="needs the module and inputs"):
        fxr.transport(*it.all[1:], "auto")
    with pytest.raises(fxr.StateError, match='alpha is all: give a finite number, or "auto"'):
        fxr.transport(*it.all[1:], "all")


def smooth(*sizes: int) -> nn.Sequential:
    """Nothing is ever switched off: every feature is seen in every sample."""
    return nn.Sequential(*[layer for a, b in zip(sizes, sizes[1:]) for layer in (nn.Linear(a, b), nn.Tanh())][:-1]).double()


@pytest.mark.parametrize("method", ["theseus", "bico"])
def test_turns_undo_a_permutation(method):
    """Where the target is the permuted base, activations of more inputs than features give the permutation back: what
    linear maps learned arrives as pi(tau). Gradients span no more than the outputs, so `bico` finds the last map."""
    torch.manual_seed(0)
    module = smooth(24, 20, 12, 4)
    base = {k: v.clone() for k, v in module.state_dict().items()}
    fine, x = moved(base, 0.5, 1), torch.randn(96, 24, dtype=torch.float64)
    pi = fxr.infer(module, x[:3]).random(1)
    target, wanted = pi.apply(base), pi.apply(fine)
    result = fxr.carry(module, base, fine, target, pi, x, method=method)
    for name in (wanted if method == "theseus" else ["4.weight", "4.bias"]):
        assert torch.allclose(result[name], wanted[name], atol=1e-6), name
    assert not torch.allclose(result["0.weight"], target["0.weight"])


@pytest.mark.parametrize("name", ["lenet", "vit_fused", "gpt2_conv1d", "lstm"])
@pytest.mark.parametrize("method", ["theseus", "bico"])
def test_turns_keep_sizes_on_any_module(name, method):
    it = case(name, 32)
    result = fxr.carry(*it.all, it.inputs, method=method)
    vector = fxr.task_vector(it.base, it.fine)
    changed = [k for k in result if not torch.equal(result[k], it.target[k])]
    assert any(result[k].ndim > 1 for k in changed)
    for k in changed:
        assert float((result[k] - it.target[k]).norm()) == pytest.approx(float(vector[k].norm()), rel=1e-5)


def test_gradfix_keeps_what_goes_down():
    it = case("mlp", 32)
    still = it.pi.spec.identity()
    result = fxr.carry(it.module, it.base, it.fine, it.target, still, it.inputs, method="gradfix")
    vector = fxr.task_vector(it.base, it.fine)
    for name in result:
        change = result[name] - it.target[name]
        assert bool(((change.abs() < 1e-12) | ((change - vector[name]).abs() < 1e-12)).all())
    used = sum(int((result[k] != it.target[k]).sum()) for k in result) / sum(v.numel() for v in result.values())
    assert 0.3 < used < 0.7
    step = {k: it.target[k] + 1e-3 * (result[k] - it.target[k]) for k in result}
    assert it.gap(step) < it.gap(it.target)


def test_the_control_is_a_random_element():
    it = case("mlp")
    result = fxr.carry(*it.all, method="random", seed=3)
    assert all(torch.equal(result[k], v) for k, v in fxr.transport(*it.all[1:4], it.pi.spec.random(3)).items())
    with pytest.raises(fxr.FxrebasinError, match="unknown method 'magic': choose one of theseus, bico, gradfix, random"):
        fxr.carry(*it.all, it.inputs, method="magic")
    with pytest.raises(fxr.StateError, match="'bico' needs inputs of the task"):
        fxr.carry(*it.all, method="bico")


def test_ties_survive_published_methods():
    it = case("gpt2", 16)
    result = fxr.carry(*it.all, it.inputs, method="gradfix")
    assert it.pi.spec.ties and all(result[a] is result[b] for a, b in it.pi.spec.ties.items())


def test_probes_of_images_are_1_over_f():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    state = module.state_dict()
    found = fxr.probes(module, state, moved(state, 0.1, 0), torch.zeros(2, 3, 16, 16), 48)
    assert found.inputs.shape == (48, 3, 16, 16) and found.trusted and found.agreement > 0.9
    power = torch.fft.fft2(found.inputs).abs().mean((0, 1))
    assert float(power[0, 1] / power[0, 4]) == pytest.approx(4, rel=0.3) and float(found.inputs.std()) == pytest.approx(1, rel=1e-3)


def test_probes_of_tokens_are_by_frequency_and_noise_is_seen_through():
    it = case("gpt2")
    found = fxr.probes(it.module, it.fine, it.base, it.inputs, 64)
    counts = torch.bincount(found.inputs.flatten() if isinstance(found.inputs, torch.Tensor) else found.inputs[0].flatten(), minlength=11)
    assert counts.argmax() == 0 and len(counts) == 11
    with pytest.warns(UserWarning, match="agree no better than chance"):
        unrelated = {k: torch.randn_like(v) for k, v in it.base.items()}
        assert not fxr.probes(it.module, it.fine, unrelated, it.inputs, 64, seed=1).trusted
