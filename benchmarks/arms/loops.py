"""Arms without Ray: one plain process, the forward pass alone, padding, sentence-transformers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arms.setting import BATCH_ROWS, LIMITS, Setting, encoded_windows, row_sizes
from rematch_ray.data.batching import cut_batches, padding_share


def plain(setting: Setting) -> dict[str, float]:
    """One process that does everything in turn, one thread; the first rows warm up."""
    torch.set_num_threads(1)
    model = setting.load()
    begin, end = setting.marks
    done, began, began_wall, first = 0, 0.0, 0.0, 0
    for rows in encoded_windows(model, setting.rows):
        for chosen in cut_batches(*row_sizes(rows, model), LIMITS):
            made = model.embed(model.batch([rows[i] for i in chosen], "document"), "document")
            made.cpu().vectors.half().numpy()
        done += len(rows)
        if done >= begin and not began:
            began, began_wall, first = time.process_time(), time.monotonic(), done
        if done >= end:
            break
    return {
        "cpu_s_per_row": (time.process_time() - began) / (done - first),
        "rows_per_s": (done - first) / (time.monotonic() - began_wall),
    }


def bare(setting: Setting) -> dict[str, float]:
    """The forward pass alone, batches ready in memory."""
    model = setting.load()
    batches = [
        model.batch([rows[i] for i in chosen], "document")
        for rows in encoded_windows(model, setting.rows)
        for chosen in cut_batches(*row_sizes(rows, model), LIMITS)
    ]
    model.embed(batches[0], "document").cpu()
    began = time.monotonic()
    for batch in batches:
        model.embed(batch, "document").cpu()
    return {"rows_per_s": sum(map(len, batches)) / (time.monotonic() - began)}


def padding(setting: Setting) -> dict[str, float]:
    """Padding in the order given and grouped by length, and real tokens per CPU-second of each."""
    torch.set_num_threads(1)
    model = setting.load()
    spent, tokens, padded = [0.0, 0.0], 0, [0.0, 0.0]
    done = 0
    for rows in encoded_windows(model, setting.rows):
        lengths, patches = row_sizes(rows, model)
        given = [
            list(range(start, min(start + BATCH_ROWS, len(rows))))
            for start in range(0, len(rows), BATCH_ROWS)
        ]
        for which, batches in enumerate((given, cut_batches(lengths, patches, LIMITS))):
            padded[which] += sum(lengths) / (1 - padding_share(lengths, batches))
            began = time.process_time()
            for chosen in batches:
                model.embed(model.batch([rows[i] for i in chosen], "document"), "document")
            spent[which] += time.process_time() - began
        tokens += sum(lengths)
        done += len(rows)
        if done >= setting.size.padding:
            break
    return {
        "before": round(1 - tokens / padded[0], 4),
        "after": round(1 - tokens / padded[1], 4),
        "tokens_per_s_gain": round(spent[0] / spent[1], 3),
        "rows": done,
    }


def st(setting: Setting) -> dict[str, float]:
    """sentence-transformers' `encode` with our model as its module."""
    from peers.st_embedding import bank_encoder, encode_items

    peer = bank_encoder(setting.load(), setting.device)
    return _timed(setting, lambda data: encode_items(peer, data, BATCH_ROWS))


def st_stock(setting: Setting) -> dict[str, float]:
    """The same with the model that it builds itself on the same base."""
    from peers.st_embedding import encode_stock
    from peers.st_training import stock_encoder

    copy = setting.folder / f"stock-{time.time_ns()}"
    peer = stock_encoder(setting.base, copy, setting.device)
    return _timed(setting, lambda data: encode_stock(peer, data, BATCH_ROWS))


def _timed(setting: Setting, encode: Callable[[Path], Any]) -> dict[str, float]:
    """Rows per second over all files, every core allowed, after a warm-up on other rows."""
    torch.set_num_threads(os.cpu_count() or 1)
    encode(sorted(setting.data(f"rows-{setting.marks[0]}").glob("*.parquet"))[0])
    began = time.monotonic()
    made = encode(setting.rows)
    return {"rows_per_s": len(made) / (time.monotonic() - began)}
