"""Nearest training images: do samples copy what the model was shown?"""

import math
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor

from undiffuse.errors import InputError
from undiffuse.metrics.agreement import wilson_interval
from undiffuse.metrics.bootstrap import bootstrap
from undiffuse.metrics.measurement import Measurement
from undiffuse.metrics.seen import Seen

QUERIES, REFERENCES = 1024, 8192  # rows compared at once: 32 MB of products
SPARE_CANDIDATES = 4


def nearest(
    query: Shaped[Tensor, "n ..."], reference: Shaped[Tensor, "m ..."], k: int = 1
) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The k nearest references of each query, nearest first.

        distance = sqrt(mean over pixels and channels of (query - reference)^2)

    so it is in the unit of the input (grey levels for uint8) at any image size, and 0 exactly for a copy. Matrix
    products find a few candidates in each block of references, whose distances are then computed from the differences,
    because |q|^2 + |r|^2 - 2 q.r loses its digits where q is close to r.

    Args:
        query, reference: (N, ...) and (M, ...), alike but for the first dimension, both integers or both floating.
        k: how many neighbours, in [1, M].

    Returns: distances (N, k), rising, and the rows of `reference` (N, k); among equal distances any may come first.

    Raises: InputError for an empty set, unlike shapes or types, values that are not finite, or k out of range.
    """
    if query.shape[1:] != reference.shape[1:] or query.ndim < 2 or not query.numel() or not reference.numel():
        raise InputError(
            f"query and reference must be (N, ...) and (M, ...), alike and not empty, not {tuple(query.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if query.is_floating_point() != reference.is_floating_point():
        raise InputError(f"query and reference must have one scale, but they are {query.dtype} and {reference.dtype}")
    if not 1 <= k <= len(reference):
        raise InputError(f"k must lie in [1, {len(reference)}], the number of references, not {k}")
    if not (query.isfinite().all() and reference.isfinite().all()):
        raise InputError("query and reference must be finite; some values are NaN or infinite")
    with torch.inference_mode():
        blocks = [
            _nearest_of_block(block.flatten(1).float(), reference.flatten(1), k) for block in query.split(QUERIES)
        ]
    distances, rows = zip(*blocks, strict=True)
    return torch.cat(distances).clone(), torch.cat(rows).clone()


def nearest_other(features: Shaped[Tensor, "n ..."]) -> Float32[Tensor, " n"]:
    """The distance from each sample to the nearest other of its own set, 0 where another is its copy.

    A sample is left out by its row, not by its distance. Raises: InputError as `nearest`, for fewer than 2.
    """
    distances, rows = nearest(features, features, k=2)
    itself = rows[:, 0] == torch.arange(len(rows), device=rows.device)
    return torch.where(itself, distances[:, 1], distances[:, 0])


def memorisation(
    samples: Shaped[Tensor, "n ..."], train: Shaped[Tensor, "m ..."], held_out: Shaped[Tensor, "h ..."]
) -> dict[str, Any]:
    """Whether samples lie closer to the training images than unseen real images do.

    A ratio well below 1 strongly suggests copying; about 1 is what a model that has learned the distribution gives;
    above 1, samples are off the data. Blurred samples lie near everything, so look at the nearest pairs too. The ratio
    of medians sees a habit; `suspicious_share` sees a few copies among many: the share of samples closer than the
    nearest 1 % of the held-out images, thus about 0.01 without copying.

    Args:
        samples, train, held_out: images (or latents) of one shape and scale; `train` is what the model was trained on.

    Returns: `ratio` = `samples_median` / `held_out_median` (medians of the distance of `nearest`), its `ratio_error`
        and `ratio_interval` (95 %) by a bootstrap of both sets with the training images as given, `suspicious_share`,
        and the sizes `samples_n`, `train_n`, `held_out_n`.

    Raises: InputError as `nearest`, and when half of the held-out images are themselves copies of training images.
    """
    of_samples, of_held_out = (nearest(images, train)[0].squeeze(1) for images in (samples, held_out))
    # quantile, because torch's median is the lower of the two middle values.
    samples_median, held_out_median = (distances.quantile(0.5).item() for distances in (of_samples, of_held_out))
    if held_out_median == 0:
        raise InputError(
            "half of the held-out images are copies of training images, so they cannot serve as unseen ones"
        )
    error, between = bootstrap(_ratio, of_samples, of_held_out)
    return {
        "ratio": samples_median / held_out_median,
        "ratio_error": error,
        "ratio_interval": between,
        "samples_median": samples_median,
        "held_out_median": held_out_median,
        "suspicious_share": (of_samples < of_held_out.quantile(0.01)).float().mean().item(),
        "samples_n": len(samples),
        "train_n": len(train),
        "held_out_n": len(held_out),
    }


def measure_memorisation(samples: Seen, reference: Seen, train: Seen) -> list[Measurement]:
    """`memorisation` in features: `reference` is held out, `train` is what the model was trained on."""
    assert samples.features is not None and reference.features is not None and train.features is not None
    found = memorisation(samples.features, train.features, reference.features)
    n, m, share = found["samples_n"], found["held_out_n"], found["suspicious_share"]
    settings = {**samples.settings, "train_n": found["train_n"]}
    between, error = wilson_interval(round(share * n), n), math.sqrt(share * (1 - share) / n)
    return [
        Measurement(
            "memorisation-ratio", found["ratio"], found["ratio_error"], "bootstrap", found["ratio_interval"], n, m,
            settings,
        ),
        Measurement("suspicious-share", share, error, "over samples, the threshold as given", between, n, m, settings),
    ]  # fmt: skip


def _ratio(
    samples: Float[Tensor, "resamples n"], held_out: Float[Tensor, "resamples m"]
) -> Float[Tensor, " resamples"]:
    smallest = torch.finfo(torch.float32).tiny  # a resample of copies alone
    return samples.quantile(0.5, dim=1) / held_out.quantile(0.5, dim=1).clamp(min=smallest)


def _nearest_of_block(
    query: Float32[Tensor, "n d"], reference: Shaped[Tensor, "m d"], k: int
) -> tuple[Float32[Tensor, "n k"], Int64[Tensor, "n k"]]:
    best = query.new_empty(len(query), 0)
    best_rows = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(reference), REFERENCES):
        block = reference[start : start + REFERENCES].to(query.device).float()
        centre = block.mean(0)  # distances do not see it, and products of smaller numbers keep more digits
        centred = block - centre
        # |q|^2 is the same for every reference, so the order needs no more than this.
        order = torch.addmm(centred.square().sum(1), query - centre, centred.T, alpha=-2)
        candidates = order.topk(min(k + SPARE_CANDIDATES, len(block)), largest=False).indices
        squares = torch.stack([(query - block[column]).square().mean(1) for column in candidates.unbind(1)], 1)
        rows = torch.cat([best_rows, candidates + start], 1)
        best, place = torch.cat([best, squares], 1).topk(min(k, rows.shape[1]), largest=False)
        best_rows = rows.gather(1, place)
    return best.sqrt(), best_rows
