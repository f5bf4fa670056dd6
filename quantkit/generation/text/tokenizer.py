"""The tokenizer of a checkpoint: text to token ids, ids back to text, which ids end a text, and its chat template.

It puts together what its neighbours read: `vocabulary.py` opens `tokenizer.json`, as which `formats.vocabularies` has
rebuilt those of other kinds; `special_tokens.py` and `generation_config.py` read the JSON files beside it;
`detokenizer.py` decodes a stream; `chat_template.py` writes conversations as prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from os.path import expanduser
from pathlib import Path
from typing import Any, Literal, overload

from quantkit.errors import GenerationError, OptionError, notice
from quantkit.formats.vocabularies import VOCABULARIES, with_tokenizer
from quantkit.generation.generation_config import declared_ids, not_applied, recommended_sampling
from quantkit.generation.options import is_whole
from quantkit.generation.text.chat_template import ChatTemplate, Message, choose_template
from quantkit.generation.text.detokenizer import Decoding, Detokenizer, TokenBytes
from quantkit.generation.text.files import TextFiles
from quantkit.generation.text.special_tokens import SpecialTokens
from quantkit.generation.text.vocabulary import Vocabulary

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What `Tokenizer` reads; all but the first may be missing."""

_NO_VARIABLES = frozenset({"chat_template", "continue_final_message", "return_dict", "return_tensors"})
"""Options that transformers' `apply_chat_template` keeps to itself: no template reads them."""

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
        Ids that end a text: all that `generation_config.json`, `config.json` and the named `eos_token` declare, and the
        tokens that are known to end one by how they are written (`quantkit.formats.vocabularies.end_tokens`).
    generation_defaults : Mapping
        Sampling that `generation_config.json` recommends, see `recommended_sampling`.

    Raises
    ------
    CheckpointError
        When `tokenizer.json` is missing, or a file is damaged or holds a value that makes no sense.
    """

    def __init__(self, files: Mapping[str, bytes | Path], origin: str | PathLike[str]) -> None:
        source = TextFiles(files, Path(origin))
        config, model = source.json("tokenizer_config.json"), source.json("config.json")
        generation, generation_file = source.json("generation_config.json"), source.path("generation_config.json")
        special = SpecialTokens.read(source)
        rows = model.get("vocab_size")
        self._vocabulary = Vocabulary(source, special, rows if is_whole(rows) else None)
        self.file = self._vocabulary.file
        self._chat_template = choose_template(
            {
                source.path("chat_template.jinja"): source.text("chat_template.jinja"),
                source.path("chat_template.json"): source.json("chat_template.json").get("chat_template"),
                source.path("tokenizer_config.json"): config.get("chat_template"),
            },
            special.variables,
        )
        named = {name: self._vocabulary.id_of(text) for name, text in special.named.items()}
        self.eos_token_ids = self._vocabulary.ends.union(
            declared_ids(generation, "eos_token_id", generation_file),
            declared_ids(model, "eos_token_id", source.path("config.json")),
            [token] if (token := named.get("eos_token")) is not None else [],
        )
        if not self.eos_token_ids:
            notice(_log, f"{origin} declares no end-of-text token: only limits end a generation")
        begins = declared_ids(model, "bos_token_id", source.path("config.json"))
        bos = named.get("bos_token")
        self.bos_token_id = bos if bos is not None else begins[0] if begins else None
        self.generation_defaults: Mapping[str, float] = recommended_sampling(generation, generation_file)
        for setting in not_applied(generation):
            notice(_log, f"{generation_file}: {setting} is {generation[setting]!r:.60}, which quantkit does not apply")
        self._leading = self._begin(config.get("add_bos_token"))

    @classmethod
    def from_folder(cls, path: str | PathLike[str]) -> Tokenizer:
        """Open the tokenizer of a checkpoint or packed folder; raises as the class does."""
        folder = Path(expanduser(path))
        names = (*TOKENIZER_FILES, *VOCABULARIES)
        return cls(with_tokenizer({name: folder / name for name in names if (folder / name).is_file()}, folder), folder)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model may have more rows."""
        return len(self._vocabulary)

    @property
    def adds_bos(self) -> bool:
        """Whether `encode` puts `bos_token_id` before a text."""
        return self.bos_token_id is not None and self._leading[:1] == [self.bos_token_id]

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

    def encode(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text.

        Parameters
        ----------
        text : str
            Half a surrogate pair, which is no character, reads as U+FFFD.
        add_special_tokens : bool
            Put the tokens before the text with which a text of this model begins, usually the BOS. False for the output
            of a chat template, which writes them itself.

            Whether the BOS is one of them is said by `add_bos_token` in `tokenizer_config.json`, else by the
            post-processor of `tokenizer.json`, else it is not. A GGUF file says the same in its own way. Nothing is
            ever put behind the text, whatever `add_eos_token` or the post-processor say: an EOS there is for training;
            a prompt is to be continued, and a text that is measured goes on in the next window.
        split_special_tokens : bool
            Read the spelling of a special token, such as `<|im_end|>`, as ordinary characters; else it is the token.

        Raises
        ------
        GenerationError
            When the tokenizer fails on the text, or would make it many times as long.
        """
        ids = self._vocabulary.encode(_well_formed(text), split_special_tokens=split_special_tokens)
        return [*self._leading, *ids] if add_special_tokens else ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of some token ids; invalid UTF-8 reads as U+FFFD, ids without a token as nothing."""
        return self._vocabulary.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, continuation: bool = False) -> Detokenizer:
        """Start a streaming decoder.

        Parameters
        ----------
        continuation : bool
            True when the text goes on from a prompt: the space that opens a first word stays. False: the text stands
            alone, as in `decode`.
        """
        return Detokenizer(self._bytes_of, "" if continuation else self._decoding.lead)

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tokenize: Literal[False] = False,
        **variables: Any,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tokenize: Literal[True],
        **variables: Any,
    ) -> list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        *,
        tokenize: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """Return the conversation as a prompt; see `ChatTemplate.render`.

        Parameters
        ----------
        tokenize : bool
            Return the prompt's token ids; else its text, which is encoded with `add_special_tokens=False`.

        Raises
        ------
        OptionError
            When an option of transformers is given that quantkit does not have.
        """
        for name in variables.keys() & _NO_VARIABLES:
            if variables.pop(name):
                raise OptionError(f"{name}: is an option of transformers that quantkit does not have")
        text = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    @cached_property
    def _decoding(self) -> Decoding:
        return Decoding.of(self._vocabulary.decoder, self.file)

    @cached_property
    def _bytes_of(self) -> TokenBytes:
        return TokenBytes(self._vocabulary.text_of, self._decoding, self._vocabulary.special_ids)

    def _begin(self, add_bos_token: Any) -> list[int]:
        """Return the tokens before a text; see `encode`."""
        leading, bos = list(self._vocabulary.leading), self.bos_token_id
        if bos is None or not isinstance(add_bos_token, bool):
            return leading
        rest = leading[1:] if leading[:1] == [bos] else leading
        return [bos, *rest] if add_bos_token else rest


def _well_formed(text: str) -> str:
    """Return the text with pairs of surrogates joined, and U+FFFD for what is left of them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
