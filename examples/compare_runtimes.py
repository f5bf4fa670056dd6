"""quantkit beside other runtimes that pip installs and that read 4-bit weights on a CPU, in turn.

    pip install onnxruntime-genai openvino-genai torchao transformers
    python -m onnxruntime_genai.models.builder -i CHECKPOINT -o ORT_FOLDER -p int4 -e cpu
    python examples/compare_runtimes.py PACKED_FOLDER --onnxruntime ORT_FOLDER --openvino MODEL.Q4_0.gguf \\
        --torchao CHECKPOINT --write

All models are loaded in this process with the same threads and take turns: a prompt of 512 random tokens, another one
in each turn, since some keep what they read; then 64 tokens generated greedily. torchao runs as installed, not compiled
by inductor, which needs a C++ compiler. Medians are printed, and with `--write` stand in `examples/README.md`.
llama.cpp, which can do more, is in `compare_llama_cpp.py`.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from marks import write
from readme_table import README

import quantkit
from quantkit.cli.text import table
from quantkit.engine.machine import cpu_name
from quantkit_kernels.simd import ISA

MARK = "runtimes"
PROMPT, GENERATED = 512, 64


class Seconds(NamedTuple):
    """Of one turn: until the first token is known, and for the others."""

    prompt: float
    generation: float


Turn = Callable[[Sequence[int]], Seconds]


def greedily(likeliest: Callable[[Sequence[int]], int], prompt: Sequence[int]) -> Seconds:
    """A turn of what reads tokens behind those before and returns the likeliest one to follow."""
    begin = time.perf_counter()
    token = likeliest(prompt)
    first = time.perf_counter()
    for _ in range(GENERATED):
        token = likeliest([token])
    return Seconds(first - begin, time.perf_counter() - first)


def quantkit_turn(folder: Path, threads: int) -> Turn:
    """A packed folder."""
    model = quantkit.load_model(folder, threads=threads)

    def turn(prompt: Sequence[int]) -> Seconds:
        with model.new_sequence() as sequence:
            return greedily(lambda ids: int(model.forward([(sequence, ids)])[0].argmax()), prompt)

    return turn


def onnxruntime_turn(folder: Path, threads: int) -> Turn:
    """A folder of onnxruntime-genai's builder."""
    import onnxruntime_genai as genai

    with tempfile.TemporaryDirectory() as scratch:  # threads are set in a file of the folder
        copy = Path(shutil.copytree(folder, Path(scratch) / "model"))
        config = json.loads((copy / "genai_config.json").read_text())
        config["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        (copy / "genai_config.json").write_text(json.dumps(config))
        model = genai.Model(str(copy))

    def turn(prompt: Sequence[int]) -> Seconds:
        params = genai.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=PROMPT + GENERATED + 8)
        generator = genai.Generator(model, params)
        begin = time.perf_counter()
        generator.append_tokens(list(prompt))
        generator.generate_next_token()
        first = time.perf_counter()
        for made in range(GENERATED):
            if generator.is_done():  # greedy, it may end its text: the others count as fast
                return Seconds(first - begin, (time.perf_counter() - first) * GENERATED / max(made, 1))
            generator.generate_next_token()
        return Seconds(first - begin, time.perf_counter() - first)

    return turn


def openvino_turn(path: Path, threads: int) -> Turn:
    """A folder of OpenVINO's exporter, or a GGUF file that OpenVINO GenAI reads."""
    import openvino
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)
    config = genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = GENERATED + 1, True, False

    def turn(prompt: Sequence[int]) -> Seconds:
        ids = np.array([prompt], np.int64)
        inputs = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        metrics: Any = pipeline.generate(inputs, config).perf_metrics
        return Seconds(metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3 * GENERATED)

    return turn


def torchao_turn(folder: Path, threads: int) -> Turn:
    """A checkpoint, run by transformers with torchao's int4 for CPUs in all linear layers."""
    import torch
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=32))

    def turn(prompt: Sequence[int]) -> Seconds:
        cache = DynamicCache(config=model.config)

        def likeliest(ids: Sequence[int]) -> int:
            logits = model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())

        with torch.inference_mode():
            return greedily(likeliest, prompt)

    return turn


RUNTIMES: dict[str, tuple[str, Callable[[Path, int], Turn]]] = {
    "packed": ("quantkit", quantkit_turn),
    "onnxruntime": ("onnxruntime-genai", onnxruntime_turn),
    "openvino": ("openvino-genai", openvino_turn),
    "torchao": ("torchao", torchao_turn),
}
"""Name of an argument -> the package, and what makes turns of a model."""


def main() -> None:
    """Take turns, print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path, help="a folder that quantkit packed")
    parser.add_argument("--onnxruntime", type=Path, metavar="FOLDER", help="the same model for onnxruntime-genai")
    parser.add_argument("--openvino", type=Path, metavar="PATH", help="the same model for OpenVINO GenAI")
    parser.add_argument("--torchao", type=Path, metavar="FOLDER", help="its checkpoint, for torchao and transformers")
    parser.add_argument("--vocabulary", type=int, default=32000, help="random tokens are below this number")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the table into examples/README.md")
    options = parser.parse_args()
    turns = {
        f"{package} {version(package)}": make(path, options.threads)
        for argument, (package, make) in RUNTIMES.items()
        if (path := getattr(options, argument))
    }
    draw = random.Random(0)
    prompts = [draw.choices(range(options.vocabulary), k=PROMPT) for _ in range(1 + options.repetitions)]
    taken = [[turn(prompt) for turn in turns.values()] for prompt in prompts][1:]  # the first one warms up
    rows = []
    for name, samples in zip(turns, zip(*taken, strict=True), strict=True):
        reading, generation = (statistics.median(values) for values in zip(*samples, strict=True))
        rows.append([name, f"{PROMPT / reading:,.0f} tokens/s", f"{GENERATED / generation:,.1f} tokens/s"])
    text = table(["runtime", f"prompt of {PROMPT}", "generation"], rows, markdown=True)
    print(text)
    if options.write:
        machine = f"{options.threads} threads on {cpu_name()} ({ISA})"
        write(README, MARK, f"Medians of {options.repetitions} turns, {machine}:\n\n{text}")


if __name__ == "__main__":
    main()
