"""The tokenizer of a checkpoint: text to token ids, ids back to text as they arrive, and which ids end a text.

Encoding is done by Hugging Face's `tokenizers` from `tokenizer.json`, the only vocabulary file that is read. Around it:
special tokens, stop tokens and sampling defaults as the checkpoint's JSON files declare them, and a streaming
`Detokenizer`. Chat templates are `chat_template.py`'s; this module finds their text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import tokenizers

from quantkit.errors import CheckpointError, GenerationError
from quantkit.generation.text.chat_template import ChatTemplate, Message, choose_template
from quantkit.generation.text.detokenizer import Decoding, Detokenizer, TokenBytes
from quantkit.generation.text.files import TextFiles

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
        source = TextFiles(files, Path(origin))
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
    def _decoding(self) -> Decoding:
        decoder = self._tokenizer.decoder
        return Decoding.of(json.loads(decoder.__getstate__()) if decoder else {"type": "null"}, self.file)

    @cached_property
    def _bytes_of(self) -> TokenBytes:
        return TokenBytes(self._tokenizer.id_to_token, self._decoding, self._skipped)

    def _known(self, texts: Iterable[str]) -> list[int]:
        ids = (self._tokenizer.token_to_id(text) for text in texts)
        return [token for token in ids if token is not None]

    def _undeclared_ends(self, special: Mapping[str, int]) -> list[int]:
        template = self._chat_template.source if self._chat_template else ""
        ends = [*END_OF_TEXT, *(text for text in END_OF_TURN if text in template)]
        return [special[text] for text in ends if text in special]


def _backend(source: TextFiles) -> tokenizers.Tokenizer:
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
