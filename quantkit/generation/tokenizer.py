"""The tokenizer of a checkpoint: text to token ids, ids back to text as they arrive, and which ids end a text.

Encoding is done by Hugging Face's `tokenizers` from `tokenizer.json`, the only vocabulary file that is read. Around it:
special tokens, stop tokens and sampling defaults as the checkpoint's JSON files declare them, and a streaming
`Detokenizer`. Chat templates are `chat.py`'s; this module finds their text.
"""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from quantkit.errors import CheckpointError, GenerationError, UnsupportedError
from quantkit.generation.chat_template import ChatTemplate, Message, choose_template

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What `Tokenizer` reads; all but the first may be missing."""

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
"""Special tokens that end a text wherever a vocabulary has them; often only a turn's end is declared."""

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_turn|>", "<|endofturn|>")
"""Special tokens that end a turn. They end a text where the chat template writes them; base checkpoints that were
fine-tuned often forget to declare them."""

_DEFAULTS = {"temperature": 1.0, "top_k": 50}  # of transformers, when a generation_config samples without naming them
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

_log = logging.getLogger(__name__)


class Tokenizer:
    """Text to token ids and back, with what a checkpoint says about its special tokens.

    Parameters
    ----------
    files : Mapping
        Name -> contents or path, of `TOKENIZER_FILES`.
    origin : path
        Folder or file that they belong to; errors name it.

    Attributes
    ----------
    bos_token_id : int or None
        Beginning-of-text token that the checkpoint declares.
    eos_token_ids : frozenset of int
        Ids that end a text: all that `generation_config.json`, `config.json` and `tokenizer_config.json` declare, and
        the special tokens of `END_OF_TEXT` and, where the chat template writes them, of `END_OF_TURN`.
    generation_defaults : Mapping
        Sampling that `generation_config.json` recommends (`temperature`, `top_k`, `top_p`, `min_p`,
        `repetition_penalty`); empty unless it says `do_sample`.

    Raises
    ------
    CheckpointError
        When `tokenizer.json` is missing, or a file is damaged.
    """

    def __init__(self, files: Mapping[str, bytes | Path], origin: str | PathLike[str]) -> None:
        source = _Files(files, Path(origin))
        self.file = source.path("tokenizer.json")
        self._tokenizer = _backend(source)
        config = source.json("tokenizer_config.json")
        model, generation = source.json("config.json"), source.json("generation_config.json")
        special_tokens = _special_tokens(config)
        self._chat_template = choose_template(
            {
                source.path("chat_template.jinja"): source.text("chat_template.jinja"),
                source.path("chat_template.json"): source.json("chat_template.json").get("chat_template"),
                source.path("tokenizer_config.json"): config.get("chat_template"),
            },
            special_tokens,
        )
        added = self._tokenizer.get_added_tokens_decoder()
        self._skipped = frozenset(token for token, entry in added.items() if entry.special)
        self.eos_token_ids = frozenset(
            [
                *_ids(generation, "eos_token_id", source.path("generation_config.json")),
                *_ids(model, "eos_token_id", source.path("config.json")),
                *self._known([special_tokens.get("eos_token", "")]),
                *self._undeclared_ends({entry.content: token for token, entry in added.items() if entry.special}),
            ]
        )
        if not self.eos_token_ids:
            _log.warning("%s declares no end-of-text token: only limits end a generation", origin)
        declared = self._known([special_tokens.get("bos_token", "")])
        declared = declared or _ids(model, "bos_token_id", source.path("config.json"))
        self.bos_token_id = declared[0] if declared else None
        self.generation_defaults: Mapping[str, float] = _sampling(generation)

    @classmethod
    def from_folder(cls, path: str | PathLike[str]) -> Tokenizer:
        """Open the tokenizer of a checkpoint or packed folder; raises as the class does."""
        folder = Path(path)
        return cls({name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}, folder)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model may have more rows."""
        return self._tokenizer.get_vocab_size()

    @cached_property
    def adds_bos(self) -> bool:
        """Whether `encode` puts `bos_token_id` before a text."""
        return self.bos_token_id is not None and self.encode("")[:1] == [self.bos_token_id]

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint has a chat template."""
        return self._chat_template is not None

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template; raises `GenerationError` when there is none."""
        if self._chat_template is None:
            raise GenerationError(
                f"{self.file.parent}: this model has no chat template; give the prompt as a plain text"
            )
        return self._chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        text : str
            Special tokens that are spelled out in it, such as `<|im_end|>`, become their ids.
        add_special_tokens : bool
            Let the post-processor of `tokenizer.json` add its tokens, usually one at the beginning. False for the
            output of a chat template, which writes them itself.
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some token ids; invalid UTF-8 reads as U+FFFD, ids without a token as nothing."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, continuation: bool = False) -> Detokenizer:
        """Start a streaming decoder.

        Parameters
        ----------
        continuation : bool
            True when the text goes on from a prompt: the space that opens a first word stays. False: the text stands
            alone, as in `decode`.
        """
        return Detokenizer(self._bytes_of, "" if continuation else self._decoding.lead)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the conversation as a prompt; see `ChatTemplate.render`. Encode it with `add_special_tokens=False`."""
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)

    @cached_property
    def _decoding(self) -> _Decoding:
        decoder = self._tokenizer.decoder
        return _Decoding.of(json.loads(decoder.__getstate__()) if decoder else {"type": "null"}, self.file)

    @cached_property
    def _bytes_of(self) -> _TokenBytes:
        return _TokenBytes(self._tokenizer.id_to_token, self._decoding, self._skipped)

    def _known(self, texts: Iterable[str]) -> list[int]:
        ids = (self._tokenizer.token_to_id(text) for text in texts)
        return [token for token in ids if token is not None]

    def _undeclared_ends(self, special: Mapping[str, int]) -> list[int]:
        template = self._chat_template.source if self._chat_template else ""
        ends = [*END_OF_TEXT, *(text for text in END_OF_TURN if text in template)]
        return [special[text] for text in ends if text in special]


class Detokenizer:
    """Turns token ids into text as they arrive, in constant time per token.

    Bytes go through an incremental UTF-8 decoder: a character whose bytes are spread over several tokens appears with
    the last of them. U+FFFD appears only for bytes that no further token can mend, or for an unfinished character at
    the end. Special tokens are silent.
    """

    def __init__(self, bytes_of: Mapping[int, bytes], lead: str) -> None:
        self._bytes_of = bytes_of
        self._lead = lead
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """Return the text that `token` completes, possibly none."""
        return self._trimmed(self._utf8.decode(self._bytes_of[token]))

    def finish(self) -> str:
        """Return what is left: U+FFFD when the text ends inside of a character, otherwise nothing."""
        return self._trimmed(self._utf8.decode(b"", final=True))

    def _trimmed(self, text: str) -> str:
        if self._lead and text:
            text, self._lead = text.removeprefix(self._lead), ""
        return text


class _TokenBytes(dict[int, bytes]):
    """Token id -> the UTF-8 bytes that it stands for, found when first asked for."""

    def __init__(self, piece_of: Callable[[int], str | None], decoding: _Decoding, skipped: frozenset[int]) -> None:
        super().__init__(dict.fromkeys(skipped, b""))
        self._piece_of, self._decoding = piece_of, decoding

    def __missing__(self, token: int) -> bytes:
        piece = self._piece_of(token)
        found = self[token] = b"" if piece is None else self._decoding.bytes_of(piece)
        return found


class _Decoding:
    """The `decoder` section of a `tokenizer.json`, applied to one piece at a time.

    A piece stays a str through the steps; raw bytes travel in it as surrogate escapes (PEP 383) until `bytes_of`.
    """

    def __init__(self, steps: Sequence[Callable[[str], str]], lead: str) -> None:
        self._steps = steps
        self.lead = lead  # what is taken off the beginning of a whole text

    @classmethod
    def of(cls, decoder: Mapping[str, Any], file: Path) -> _Decoding:
        steps: list[Callable[[str], str]] = []
        lead = ""
        for section in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
            match section:
                case {"type": "ByteLevel"}:
                    steps.append(_byte_level)
                case {"type": "ByteFallback"}:
                    steps.append(_byte_fallback)
                case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                    steps.append(partial(_replace, old=pattern, new=content))
                case {"type": "Metaspace", "replacement": mark}:
                    steps.append(partial(_replace, old=mark, new=" "))
                    lead = "" if section.get("prepend_scheme") == "never" else " "
                case {"type": "Strip", "content": content, "start": 0 | 1 as start, "stop": 0}:
                    lead = content * start
                case {"type": "Fuse"}:
                    continue
                case _:
                    known = "ByteLevel, ByteFallback, Replace, Metaspace, Strip, Fuse and sequences of them"
                    raise UnsupportedError(f"{file}: cannot stream the decoder {dict(section)}; supported: {known}")
        return cls(steps, lead)

    def bytes_of(self, piece: str) -> bytes:
        for step in self._steps:
            piece = step(piece)
        return piece.encode("utf-8", "surrogateescape")


def _byte_alphabet() -> dict[str, int]:
    # GPT-2's bytes_to_unicode: printable Latin-1 stands for itself, the other bytes for 256, 257, ...
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_level(piece: str) -> str:
    try:
        return bytes([_BYTE_OF[char] for char in piece]).decode("utf-8", "surrogateescape")
    except KeyError:
        return piece  # an added token, written as it reads


def _replace(piece: str, old: str, new: str) -> str:
    return piece.replace(old, new)


def _byte_fallback(piece: str) -> str:
    byte = _BYTE_TOKEN.fullmatch(piece)
    return bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape") if byte else piece


class _Files:
    """The checkpoint's small files, read with errors that name them."""

    def __init__(self, files: Mapping[str, bytes | Path], origin: Path) -> None:
        self._files, self._origin = files, origin

    def path(self, name: str) -> Path:
        held = self._files.get(name)
        return held if isinstance(held, Path) else self._origin / name

    def text(self, name: str) -> str | None:
        held = self._files.get(name)
        if held is None:
            return None
        try:
            return (held.read_bytes() if isinstance(held, Path) else held).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path(name)}: cannot be read: {error}") from error

    def json(self, name: str) -> Mapping[str, Any]:
        try:
            content = json.loads(self.text(name) or "{}")
        except ValueError as error:
            raise CheckpointError(f"{self.path(name)}: not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.path(name)}: not a JSON object")
        return content


def _backend(source: _Files) -> tokenizers.Tokenizer:
    file, text = source.path("tokenizer.json"), source.text("tokenizer.json")
    if text is None:
        raise CheckpointError(f"{file} is missing: download it, or save it with transformers' fast tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises no other class
        raise CheckpointError(f"{file}: not a tokenizer that the tokenizers library can read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    # A token is written as its text or as an AddedToken dict; flags such as add_bos_token are neither.
    texts = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token")
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _ids(config: Mapping[str, Any], field: str, file: Path) -> list[int]:
    value = config.get(field)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"{file}: {field} is {value!r}, neither a token id nor a list of them")
    return ids


def _sampling(generation: Mapping[str, Any]) -> Mapping[str, float]:
    if not generation.get("do_sample"):
        return {}
    declared = {name: generation[name] for name in _SAMPLING if generation.get(name) is not None}
    return _DEFAULTS | declared
