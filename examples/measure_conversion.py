"""How fast `convert` is and how much memory it takes, on a checkpoint of any size that takes little room on the disk.

    python examples/measure_conversion.py FOLDER --gigabytes 16
    python examples/measure_conversion.py FOLDER --gigabytes 1 --dense --quantize int4,int8

Makes `FOLDER/source`, a mixture of experts of the shape of Qwen3-30B-A3B in BF16 with as many layers as fit, in shards
of 5 GB. Of each tensor the first megabyte is random, the rest a hole in the file that reads as zeros: a search takes as
long for them. With `--dense` all of it is random. Then packs it in a process of its own, into `FOLDER/packed`, and
prints the figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from random_mixture import CONFIG

from quantkit.models.registry import read

SHARD_BYTES = 5_000_000_000
RANDOM_BYTES = 1 << 20
"""Of each tensor, unless it is dense."""

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(gigabytes: float, config: dict[str, Any]) -> Shapes:
    """Return the tensors of a model with as many layers as fit, but one at least; the config gets their number."""
    for layers in range(1, 1000):
        specs = read({**config, "num_hidden_layers": layers}).record().tensors
        if layers > 1 and sum(2 * spec.weights for spec in specs.values()) > gigabytes * 1e9:
            break
        config["num_hidden_layers"] = layers
        shapes = {name: spec.shape for name, spec in specs.items()}
    return shapes


def write_checkpoint(folder: Path, shapes: Shapes, config: Mapping[str, Any], *, dense: bool) -> None:
    """Write config.json, shards and their index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shards = list(_shards(shapes))
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    weights = (np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(0.02)).view(np.uint32) >> 16
    for name, shard in zip(names, shards, strict=True):
        with open(folder / name, "wb") as file:
            _write_shard(file, shard, weights.astype(np.uint16).tobytes(), dense=dense)
    index = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if shard and 2 * sum(map(math.prod, [*shard.values(), shape])) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _write_shard(file: BinaryIO, shapes: Shapes, random: bytes, *, dense: bool) -> None:
    header: dict[str, dict[str, Any]] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    start = file.tell()
    file.truncate(start + end)
    for entry in header.values():
        begin, end = entry["data_offsets"]
        for place in range(begin, end if dense else min(begin + RANDOM_BYTES, end), len(random)):
            file.seek(start + place)
            file.write(random[: min(end - place, len(random) if dense else RANDOM_BYTES)])


def measure(source: Path, output: Path, kinds: str) -> dict[str, float]:
    """Convert in a process of its own; returns its times in seconds and its peak memory in bytes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [
        sys.executable,
        "-c",
        "from quantkit.cli import main; main()",
        "convert",
        str(source),
        "-o",
        str(output),
        "-q",
        kinds,
    ]
    subprocess.run(command, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu, "peak_memory": after.ru_maxrss * 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=16)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--quantize", default="int4")
    parser.add_argument("--config", type=json.loads, default={}, help="fields of config.json, as JSON")
    options = parser.parse_args()
    config = CONFIG | options.config
    shapes = shapes_of(options.gigabytes, config)
    source = options.folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    write_checkpoint(source, shapes, config, dense=options.dense)
    sizes = [2 * math.prod(shape) for shape in shapes.values()]
    found = measure(source, options.folder / "packed", options.quantize)
    facts = {"source_bytes": sum(sizes), "largest_tensor": max(sizes), "layers": config["num_hidden_layers"]}
    speed = {"MB_per_second": sum(sizes) / 1e6 / found["seconds"], "load": os.getloadavg()[0]}
    print(json.dumps({**facts, **found, **speed}))


if __name__ == "__main__":
    main()
