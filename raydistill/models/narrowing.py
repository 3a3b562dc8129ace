"""What a narrower student keeps of a wider model, measured on rows of its own data, and how it makes up for the rest.

The hidden states of all layers are one stream, so they are cut in one basis: the first principal components of what
the layers read of it. Whatever writes to the stream is multiplied by that basis (SliceGPT 2024, 2401.15024). Layer
norms are the difficulty: where they stand behind the layers, as BERT's, their weights cannot be made part of what reads
them. So the basis has the direction of equal entries among its own, which makes subtracting the mean the same in both
models, and of all bases of its components it is the one in which the mean of the norms' weights is diagonal; what is
not diagonal in a single norm is left out, by least squares.

Of attention, the heads are kept that matter most, of a feed-forward block the inner entries, and so of the states
inside a classifier's head: an entry matters by the variance of what it adds to the next layer's output, its own times
the squared norm of its weights (its mean square in a layer without a bias, which could take up a mean).

A layer that reads what was cut predicts what it lacks from what it still has, by least squares over the tokens (He,
Zhang and Sun 2017, 1707.06168, for channels of convolutions). With a part P, orthonormal rows, and the covariance C of
the inputs: W' = W Pᵀ + W (I - PᵀP) C Pᵀ (P C Pᵀ)⁻¹, and the bias takes up the means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raydistill.models.capture import texts_apart
from raydistill.models.embedding import LAYERS
from raydistill.models.fields import intermediate
from raydistill.models.signals import BEGINS, SECOND, UNITS
from raydistill.models.slices import Heads, Kept, layer_of, reads_heads, taken

RIDGE = 1.0
"""Added to the diagonal of P C Pᵀ: this share of its mean, times kept entries over tokens; little of many tokens."""
NORM_RIDGE = 1e-6
"""Added to the variance of an entry that a norm has made, which has 1 in the mean over its entries."""

_GROUPS = "num_key_value_heads"
"""Of a config whose heads share keys and values: they keep the first ones."""
Measurable = nn.Linear | nn.LayerNorm


@dataclass
class Moments:
    """Sums over tokens of entries (N, width), and of their products with each other."""

    width: int
    count: int = 0
    total: Tensor | float = 0.0
    products: Tensor | float = 0.0

    def add(self, entries: Tensor) -> None:
        self.count += len(entries)
        self.total = self.total + entries.sum(0)
        self.products = self.products + entries.T @ entries

    def covariance(self, is_centred: bool) -> tuple[Tensor, Tensor]:
        """Return means (width,) and covariance (width, width) in float64, or 0 and mean products. Of what was never
        called: 0 and the identity."""
        if not self.count:
            return torch.zeros(self.width, dtype=torch.float64), torch.eye(self.width, dtype=torch.float64)
        means, products = (torch.as_tensor(sums).cpu().double() / self.count for sums in (self.total, self.products))
        return (means, products - means.outer(means)) if is_centred else (torch.zeros_like(means), products)


@torch.no_grad()
def narrowed(
    source: PreTrainedModel,
    shapes: Mapping[str, torch.Size],
    heads: Heads,
    narrow: PreTrainedConfig,
    sample: Iterable[Mapping[str, Tensor]],
) -> tuple[Kept, dict[str, Tensor]]:
    """Return what a model with the config ``narrow`` keeps of ``source``, and the weights that make up for the rest.

    ``shapes``: those of the narrow model's parameters, by the names of the parameters of ``source`` that they come
    from. ``sample``: batches of model inputs. Weights are returned without the inputs that are dropped, and with all of
    their outputs. A family with parts that are not known here keeps the first entries of everything.
    """
    given = source.state_dict()
    cuts = {name: shape for name, shape in shapes.items() if name in given and given[name].shape != shape}
    modules = {
        name: module
        for name, module in source.named_modules()
        if isinstance(module, Measurable) and f"{name}.weight" in shapes
    }
    moments = _moments(source, modules, sample)
    kept = Kept(heads, source.config.hidden_size, intermediate(source.config)[1], *_behind(list(moments), modules))
    if not _is_known(source, kept, cuts, given):
        return Kept(heads), {}
    kept = _choose(modules, moments, kept, narrow)
    folded: dict[str, Tensor] = {}
    for name, module in modules.items():
        weight, device = f"{name}.weight", module.weight.device
        have, want = module.weight.shape[-1], shapes[weight][-1]
        if have == want:
            continue
        part = kept.part(weight, module.weight.dim() - 1, have, want)
        fold = _norm if isinstance(module, nn.LayerNorm) else _reader
        for kind, tensor in zip(("weight", "bias"), fold(module, moments[name], part), strict=True):
            if tensor is not None:
                folded[f"{name}.{kind}"] = tensor.to(device, module.weight.dtype)
    return kept, folded


def _moments(
    source: PreTrainedModel, modules: Mapping[str, Measurable], sample: Iterable[Mapping[str, Tensor]]
) -> dict[str, Moments]:
    """Moments of the inputs of linear layers, and of what norms have normalised, over the real tokens of all rows; in
    the order in which the modules are called."""
    found: dict[str, Moments] = {}
    mask, others = torch.ones(0), set()

    def add(name: str, module: Measurable, inputs: Tensor) -> None:
        moments = found.setdefault(name, Moments(inputs.shape[-1]))
        if inputs.dim() > 2 and inputs.shape[:2] == mask.shape:  # pooled (B, width) is no (B, L), even of L = width
            inputs = inputs[mask]
        elif inputs.dim() != 2 or len(inputs) != len(mask):  # no entry a row either: deberta's relative positions
            if name in others:  # which are the same for all rows
                return
            others.add(name)
            inputs = inputs.flatten(0, -2)
        if isinstance(module, nn.LayerNorm):
            inputs = F.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        moments.add(inputs)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(lambda module, given, name=name: add(name, module, given[0]))
            hooks.callback(hook.remove)
        for inputs in sample:
            apart = texts_apart(inputs) if SECOND in inputs else inputs
            on_device = {key: t.to(source.device) for key, t in apart.items() if key not in (UNITS, BEGINS)}
            mask = on_device["attention_mask"].bool()
            source(**on_device)
    return found | {name: Moments(module.weight.shape[-1]) for name, module in modules.items() if name not in found}


def _behind(called: list[str], modules: Mapping[str, Measurable]) -> tuple[frozenset[str], frozenset[str]]:
    """Of modules in the order of their calls those linear layers behind all others that read the stream, and what comes
    after them: a classifier's head."""
    in_layers = [i for i, name in enumerate(called) if layer_of(f"{name}.weight") and not name.startswith(LAYERS)]
    behind = called[max(in_layers, default=-1) + 1 :]
    linear = [name for name in behind if isinstance(modules[name], nn.Linear)]
    first = {name for name in linear if name == linear[0] or name == f"{LAYERS}.0"}
    after = behind[behind.index(linear[0]) :] if linear else []
    return frozenset(first), frozenset(after) - first


def _is_known(source: PreTrainedModel, kept: Kept, cuts: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> bool:
    """Whether all that is cut has a known part in the model, and what is done to the stream is linear, or a norm."""
    for name, shape in cuts.items():
        roles = [kept.role(name, dim, have) for dim, have in enumerate(given[name].shape) if have != shape[dim]]
        module = source.get_submodule(name.rpartition(".")[0])
        if None in roles or roles.count("residual") > 1:
            return False
        if "residual" in roles and not isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
            return False
    return any(map(reads_heads, given))


def _choose(
    modules: Mapping[str, Measurable], moments: Mapping[str, Moments], kept: Kept, narrow: PreTrainedConfig
) -> Kept:
    """Let ``kept`` say what is kept."""
    num_inner, width, is_grouped = intermediate(narrow)[1] or 0, narrow.hidden_size, hasattr(narrow, _GROUPS)
    head = torch.zeros(kept.width, dtype=torch.float64)
    chosen_heads, chosen_inner, read, norms = {}, {}, [], []
    for name, module in modules.items():
        weight = f"{name}.weight"
        role = kept.role(weight, module.weight.dim() - 1, module.weight.shape[-1])
        if isinstance(module, nn.LayerNorm):
            norms += [module.weight] if role == "residual" else []
            continue
        covariance = moments[name].covariance(module.bias is not None)[1]
        importance = covariance.diagonal() * module.weight.cpu().double().square().sum(0)
        match role:
            case "attention" if not is_grouped:
                by_head = importance.view(-1, kept.heads.wide).sum(1)
                chosen_heads[layer_of(weight)] = _most(by_head, narrow.num_attention_heads)
            case "feed_forward":
                chosen_inner[layer_of(weight)] = _most(importance, num_inner)
            case "residual" if moments[name].count:
                read.append(moments[name].covariance(is_centred=True)[1])
            case "head":
                head += importance
    stream = _basis(read, norms, width) if width < kept.width else None
    return replace(kept, stream=stream, head=_most(head, width), chosen_heads=chosen_heads, inner=chosen_inner)


def _most(importance: Tensor, count: int) -> Tensor:
    """The most important entries in ascending order; of equal ones the first."""
    return importance.argsort(descending=True, stable=True)[:count].sort().values


def _basis(read: Sequence[Tensor], norms: Sequence[Tensor], width: int) -> Tensor:
    """Orthonormal rows (width, wide width) that span the direction of equal entries, which is that of equal entries in
    the narrow model, too, and beside it the principal components of what is read, each covariance of trace 1."""
    wide = len(read[0])
    equal = torch.full((wide, 1), wide**-0.5, dtype=torch.float64)
    beside = torch.eye(wide, dtype=torch.float64) - equal @ equal.T
    together = sum((covariance / covariance.trace().clamp_min(1e-12) for covariance in read), torch.zeros(wide, wide))
    components = torch.linalg.eigh(beside @ together @ beside).eigenvectors[:, wide - width + 1 :]
    if norms:
        mean = torch.stack([weight.cpu().double() for weight in norms]).mean(0)
        components = components @ torch.linalg.eigh(components.T @ (mean[:, None] * components)).eigenvectors
    first = torch.zeros(width, dtype=torch.float64)
    first[0] = 1
    mirror = F.normalize(torch.full((width,), width**-0.5, dtype=torch.float64) - first, dim=0)  # Householder's
    columns = torch.cat([equal, components], 1)
    return (columns - 2 * (columns @ mirror).outer(mirror)).T


def _reader(module: Measurable, moments: Moments, part: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a linear layer that reads a part and makes up for the rest."""
    means, covariance = moments.covariance(module.bias is not None)
    whole = module.weight.cpu().double()
    weight, inner = taken(whole, 1, part), taken(taken(covariance, 0, part), 1, part)
    lost = taken(whole @ covariance, 1, part) - weight @ inner
    ridge = RIDGE * len(part) / max(1, moments.count) * inner.diagonal().mean().clamp_min(1e-9)
    weight = weight + torch.linalg.solve(inner + ridge * torch.eye(len(part), dtype=inner.dtype), lost.T).T
    if module.bias is None:
        return weight, None
    return weight, module.bias.cpu().double() + whole @ means - weight @ taken(means, 0, part)


def _norm(module: Measurable, moments: Moments, part: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a norm over a part: it divides by the part's own deviation, so its weight is multiplied by
    that, in the mean over the tokens; the rest is fitted, entry by entry."""
    means, covariance = moments.covariance(module.bias is not None)
    products = taken(taken(moments.covariance(is_centred=False)[1], 0, part), 1, part)
    deviation = (products.diagonal().mean() - products.mean()).clamp_min(0).sqrt()
    given = module.weight.cpu().double()

    def entries(matrix: Tensor) -> Tensor:
        return taken(taken(matrix, 0, part), 1, part).diagonal()

    prior = entries(given.diag())
    fitted = (entries(given[:, None] * covariance) + NORM_RIDGE * prior) / (entries(covariance) + NORM_RIDGE)
    if module.bias is None:
        return fitted * deviation, None
    bias = module.bias.cpu().double() + given * means
    return fitted * deviation, taken(bias, 0, part) - fitted * taken(means, 0, part)
