import pytest
import torch

from modeling.gpt import GPT
from settings.training import OptimSettings
from tests.tiny_models import tiny_config
from training.recipe.muon import Muon, orthogonalised
from training.recipe.optim import (
    build_optimizers,
    load_optimizer_tensors,
    muon_dtype,
    optimizer_tensors,
    parameters_by_role,
    set_learning_rate,
)

BOTH = pytest.mark.parametrize("name", ["adamw", "muon"])
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def tokens(seed):
    return torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(seed))


def model_of(**changes):
    torch.manual_seed(0)
    given = {"vocab_size": 31, "num_hidden_layers": 2, "max_position_embeddings": 256}
    given |= {"intermediate_size": 24, "of_attention": {"qk_rope_head_dim": 6, "v_head_dim": 10}}
    return GPT(tiny_config("mla", width=20, heads=4, **(given | changes)))


def make(name):
    model = model_of()
    return model, build_optimizers(model, OptimSettings(name=name, learning_rate=1e-2))


def step(model, optimizers, seed=0):
    model.loss(tokens(seed), tokens(seed + 1)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@BOTH
def test_weight_decay_goes_by_role_and_every_parameter_has_one_owner(name):
    model = model_of(position_embedding="learned", tie_word_embeddings=False)
    settings = OptimSettings(name=name, weight_decay=0.3, embedding_weight_decay=0.2)
    groups = [g for o in build_optimizers(model, settings) for g in o.param_groups]
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        wanted = 0.3
        if parameter_name in ("embed_tokens.weight", "embed_positions.weight", "lm_head.weight"):
            wanted = 0.2
        elif "norm" in parameter_name:
            wanted = 0.0
        assert decay[id(parameter)] == wanted, parameter_name


def test_muon_gets_the_matrices_of_the_blocks_and_nothing_else():
    model, (first, second) = make("muon")
    assert isinstance(first, Muon)
    assert isinstance(second, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    mine = {names[id(p)] for g in first.param_groups for p in g["params"]}
    assert mine == {n for n in names.values() if "layers." in n and "norm" not in n}
    assert parameters_by_role(model)["embeddings"] == [model.embed_tokens.weight]


@BOTH
def test_restored_state_continues_bit_for_bit(name):
    model, optimizers = make(name)
    step(model, optimizers)
    saved = {key: t.clone() for key, t in optimizer_tensors(model, optimizers).items()}
    weights = {key: t.clone() for key, t in model.state_dict().items()}
    step(model, optimizers, seed=5)

    other, others = make(name)
    other.load_state_dict(weights)
    load_optimizer_tensors(other, others, saved)
    step(other, others, seed=5)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def reference_step(weight, grads, rate, decay):
    """Muon on one float64 matrix, from the papers' formulas."""
    momentum, mean = 0.95, torch.zeros_like(weight)
    for grad in grads:
        mean = momentum * mean + (1 - momentum) * grad
        x = (1 - momentum) * grad + momentum * mean
        x = x / x.square().sum().sqrt()
        a, b, c = COEFFICIENTS
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        weight = weight * (1 - rate * decay) - rate * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_muon_equals_its_formula_in_float64(shape):
    start, other = normal(*shape, dtype=torch.float64), normal(3, 3, dtype=torch.float64)
    grads = [normal(*shape, dtype=torch.float64, seed=s) for s in (1, 2, 3)]
    expected = reference_step(start, grads, 0.02, 0.1)
    # One of the same shape and one of another next to it: the batches must not mix them.
    parameters = [start.clone(), start.clone() * 2, other.clone()]
    optimizer = Muon([{"params": parameters, "weight_decay": 0.1}], lr=0.02)
    for grad in grads:
        for parameter in parameters:
            parameter.grad = grad.clone() if parameter.shape == grad.shape else other
        parameters[1].grad = grad.flip(0)
        optimizer.step()
    torch.testing.assert_close(parameters[0], expected, rtol=1e-12, atol=1e-14)


def test_muon_follows_pytorchs_own_within_bfloat16():
    grads = [normal(16, 24, seed=s) for s in (1, 2)]
    mine, theirs = normal(16, 24), normal(16, 24)
    ours = Muon([{"params": [mine], "weight_decay": 0.1}], lr=0.02, momentum=0.9)
    pytorchs = torch.optim.Muon(
        [theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    before = mine.clone()
    for grad in grads:
        mine.grad, theirs.grad = grad.clone(), grad.clone()
        ours.step()
        pytorchs.step()
    largest = (theirs - before).abs().max().item()
    # Five iterations of three products, each rounded to bfloat16.
    atol = 15 * torch.finfo(torch.bfloat16).eps * largest
    torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)
    assert torch.equal(
        optimizer_state(ours, mine)["momentum_buffer"],
        optimizer_state(pytorchs, theirs)["momentum_buffer"],
    )


def optimizer_state(optimizer, parameter):
    return optimizer.state[parameter]


def test_orthogonalised_brings_singular_values_near_one():
    for shape in ((2, 30, 9), (3, 9, 30)):
        x = orthogonalised(normal(*shape), COEFFICIENTS, 5, 1e-7)
        values = torch.linalg.svdvals(x)
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_orthogonalised_in_float32_keeps_a_rounding_small_and_in_bfloat16_does_not():
    x = normal(4, 128, 96)
    nearby = x * (1 + 2**-20 * normal(4, 128, 96, seed=1).sign())  # some lie on either side
    apart = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, other = (orthogonalised(m, COEFFICIENTS, 5, 1e-7, dtype) for m in (x, nearby))
        assert one.dtype == torch.float32
        assert torch.equal(one, one.to(dtype).float())
        apart[dtype] = (one - other).abs().max().item()
    assert apart[torch.float32] < 1e-5
    assert apart[torch.bfloat16] > 1e-4


@pytest.mark.parametrize("is_native", [False, True], ids=["emulated", "native"])
def test_muon_computes_in_the_trainings_precision_unless_it_is_emulated(monkeypatch, is_native):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: is_native, raising=False)
    cpu = torch.device("cpu")
    assert muon_dtype(None, cpu) == torch.float32
    wanted = torch.bfloat16 if is_native else torch.float32
    assert muon_dtype(torch.bfloat16, cpu) == wanted

    taken = {}
    for autocast_dtype in (None, torch.bfloat16):
        model = model_of()
        muon = build_optimizers(model, OptimSettings(name="muon"), autocast_dtype)[0]
        # Without the weight, what is left is the update.
        matrix = muon.param_groups[0]["params"][0]
        with torch.no_grad():
            matrix.zero_()
        matrix.grad = normal(*matrix.shape)
        muon.step()
        taken[autocast_dtype] = matrix.detach()
    assert torch.equal(taken[None], taken[torch.bfloat16]) != is_native


def test_one_learning_rate_reaches_every_group():
    _, optimizers = make("muon")
    set_learning_rate(optimizers, 0.125)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {0.125}
