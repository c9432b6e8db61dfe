"""Variants as they stand in variants.json, for tests of the report and its plots."""

import copy
import dataclasses
from types import SimpleNamespace

from modeling.accounting import CacheCurve


def decode_point(context, batch=1, ms=4.0, beyond=False):
    return {
        "batch": batch,
        "context": context,
        "ms_per_token": ms,
        "tokens_per_second": 1e3 * batch / ms,
        "cache_bytes": 1728 * context * batch,
        "cache_bytes_read": 1728 * context * batch,
        "roofline_ms": 0.4,
        "peak_extra_bytes": 17152,
        "beyond_trained": beyond,
    }


def cache_of(slope, plateau=0, beyond=None, context=256):
    """What a variant's cache is at a context, and how it grows."""
    beyond = slope if beyond is None else beyond
    curve = CacheCurve(0, slope, plateau, beyond)
    return {
        "kv_cache_bytes_per_token": beyond,
        "kv_cache_bytes_measured": curve.bytes(context) / context,
        "kv_cache_context": context,
        "kv_cache_bytes_at_context": curve.bytes(context),
        "kv_cache_bytes_read_per_step": curve.bytes(context),
        "kv_cache_curve": dataclasses.asdict(curve),
        "kv_cache_points": [[t, curve.bytes(t)] for t in (1, 64, 128, context)],
        "trained_context": 256,
    }


_MLA = {
    "name": "mla",
    "attention": "mla",
    "layers": "uniform",
    "positions": "RoPE",
    "runs": ["mla-seed0", "mla-seed1"],
    "seeds": [0, 1],
    "num_parameters": 2548800,
    "tokens_trained": 1501184,
    "budget": {
        "embeddings": 786432,
        "attention": 599424,
        "mlp": 1161216,
        "norms": 1728,
        "total": 2548800,
        "kv_cache_bytes_per_token": 1728,
        "kv_cache_bytes_at_context": 442368,
        "cache_ratio_to_mha": 0.28125,
        "training_flops_per_token": 15.0e6,
    },
    "nll": 3.771,
    "perplexity": 43.43,
    "perplexity_by_seed": [43.2, 43.66],
    "perplexity_sd": 0.325,
    "perplexity_ci95_text": [42.01, 44.92],
    "perplexity_ci95_seeds": [40.52, 46.34],
    "word_perplexity": 43086.0,
    "bits_per_byte": 1.536,
    "baseline": "mha",
    "is_baseline": False,
    "delta_nll": 0.034,
    "delta_percent": 3.4,
    "delta_nll_ci95_text": [0.02, 0.048],
    "delta_nll_ci95_seeds": [-0.003, 0.07],
    "delta_percent_ci95_text": [2.0, 4.9],
    "delta_percent_ci95_seeds": [-0.3, 7.2],
    "verdict": "unresolved",
    "delta_nll_ci95_alone": [-0.004, 0.072],
    "delta_percent_ci95_alone": [-0.4, 7.4],
    "comparison_method": "Dunnett, pooled",
    "minimum_detectable_nll": 0.029,
    "minimum_detectable_percent": 2.9,
    "seeds_to_resolve": 2,
    "verdict_note": "",
    "unequal": {},
    "documents_scored": 31,
    "influential_documents": [],
    "delta_percent_without_influential": None,
    **cache_of(1728),
    "cache_ratio_to_mha": 0.28125,
    "cache_ratio_to_baseline": 0.28125,
    "train_tokens_per_second": 2169.4,
    "train_peak_memory_bytes": 721907712,
    "train_wall_seconds": 727.0,
    "decode": [],
    "break_even": {},
    "sample": "def first():\n    return 1",
}
_OF_THE_BASELINE = {
    "delta_nll": None,
    "delta_percent": None,
    "delta_nll_ci95_text": None,
    "delta_nll_ci95_seeds": None,
    "delta_percent_ci95_text": None,
    "delta_percent_ci95_seeds": None,
    "verdict": "baseline",
    "is_baseline": True,
}
_WITHOUT_SEEDS = {
    "seeds": [0],
    "perplexity_sd": None,
    "perplexity_ci95_seeds": None,
    "delta_nll_ci95_seeds": None,
    "delta_percent_ci95_seeds": None,
    "verdict_note": "single seed",
}
_UNSCORED = dict.fromkeys(
    key for key in _MLA if key.startswith(("nll", "perplexity", "word", "bits", "delta", "verdict"))
)


def mla(**changes):
    return copy.deepcopy(_MLA) | changes


def mha(**changes):
    own = {
        "name": "mha",
        "attention": "mha",
        "runs": ["mha-seed0", "mha-seed1"],
        "perplexity": 41.99,
        "perplexity_ci95_text": [40.6, 43.4],
        "perplexity_ci95_seeds": [39.2, 44.8],
        **cache_of(6144),
        "cache_ratio_to_mha": 1.0,
        "cache_ratio_to_baseline": 1.0,
    }
    return mla(**own, **_OF_THE_BASELINE) | changes


def single_seed(variant):
    return variant | _WITHOUT_SEEDS | {"runs": variant["runs"][:1]}


def unscored(variant):
    return variant | _UNSCORED


def curves_of(*variants):
    """Two validations for every run, the second seed a tenth above the first."""
    return {
        run: {
            "variant": variant["name"],
            "attention": variant["attention"],
            "tokens": [1000, 2000],
            "perplexity": [200.0 * (1 + seed / 10), 50.0 * (1 + seed / 10)],
        }
        for variant in variants
        for seed, run in enumerate(variant["runs"])
    }


CARD = {
    **{"corpus": "tiny", "split": "validation", "context": 8, "stride": 8, "dtype": "float32"},
    **{"words": 1000, "utf8_bytes": 5000, "tokenizer_sha256": "a" * 64, "revision": None},
    **{"data_fingerprint": "b" * 64, "intra_document_mask": False, "tasks": "lm_eval <b>"},
}


def group(*variants, **changes):
    """Variants of one protocol card, with rows of their runs."""
    card = dict(CARD)
    rows = [
        {
            **{"run_name": name, "seed": seed, "protocol": card, "tokens_scored": 99},
            **{"perplexity": variant["perplexity"], "bits_per_byte": variant["bits_per_byte"]},
            **{"word_perplexity": variant["word_perplexity"], "baseline_run": None},
            **dict.fromkeys(("perplexity_ci95", "delta_nll", "delta_nll_ci95")),
        }
        for variant in variants
        for name, seed in zip(variant["runs"], variant["seeds"], strict=False)
    ]
    lists = {"held_equal": ["optim: muon"], "differs": ["attention"]}
    lists |= {key: [] for key in ("variants", "pairs", "unranked", "how_sure")}
    runs = [SimpleNamespace(row=row, windows=True) for row in rows]
    found = {"results": list(variants), "runs": runs, "protocol": card}
    return SimpleNamespace(**found | lists | changes)
