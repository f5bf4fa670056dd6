"""Pre-tokenizers by the names that GGUF files give them: how a text is split before its pieces are merged.

A GGUF file names its pre-tokenizer (`tokenizer.ggml.pre`) but does not spell it out. `PRE_TOKENIZERS` says what
llama.cpp does for each name, in the spelling of the models' published tokenizer.json. Names that are not in the table
are refused, because a wrong split is a wrong answer without an error. Vocabularies of other kinds are split as some of
these.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class PreTokenizer(NamedTuple):
    """How text is split before BPE: every pattern in turn splits the pieces that the one before left.

    `whole_words`: a piece that is a token is taken as it is, without merging (`ignore_merges`).
    `begins`: whether BOS comes first when the file does not say (`tokenizer.ggml.add_bos_token`).
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False


_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWERCASED, _UPPERCASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{word}" for word in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_CASED_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_MARKED = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_SIGN_AND_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENGLISH}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_ENGLISH}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}"
_QWEN35 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}"
_TEKKEN = rf"{_LOWERCASED}|{_UPPERCASED}|\p{{N}}|{_CASED_SIGNS}|{_SPACE}"
_GPT4O = rf"{_LOWERCASED}{_ENGLISH}?|{_UPPERCASED}{_ENGLISH}?|\p{{N}}{{1,3}}|{_CASED_SIGNS}|{_SPACE}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_ENGLISH}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}"
_EXAONE_MOE = (
    rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_DEEPSEEK_LETTERS = (
    r"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ"
    r"-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ"
    r"-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""Letters that have a case, in the version of Unicode that DeepSeek's first tokenizer was made with."""

_PER_DIGIT = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_BEGINS = PreTokenizer((_LLAMA3,), whole_words=True, begins=True)
_DEEPSEEK3 = PreTokenizer((r"\p{N}{1,3}", _CJK, rf"{_SIGN_AND_WORD}|{_MARKED}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}"))
_THREE_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*\b)"


def _named(names: str, pre_tokenizer: PreTokenizer) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), pre_tokenizer)


PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    _named("default", PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")))
    | _named("gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 gigachat a.x-4.0", PreTokenizer((_GPT2,)))
    | _named("mellum jina-es jina-de jina-v2-es jina-v2-de modern-bert", PreTokenizer((_GPT2,)))
    | _named("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _PER_DIGIT)
    | _named("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", _LLAMA3_BEGINS)
    | _named("smaug-bpe dbrx chatglm-bpe", PreTokenizer((_LLAMA3,)))
    | _named("glm4 glm5", PreTokenizer((_LLAMA3,), whole_words=True))
    | _named("minicpm5", PreTokenizer((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), whole_words=True))
    | _named("qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez grok-2", PreTokenizer((_QWEN2,)))
    | _named("laguna", PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)))
    | _named("ufakzeka", PreTokenizer((_QWEN2.removeprefix(f"{_ENGLISH}|"),)))
    | _named("qwen35", PreTokenizer((_QWEN35,)))
    | _named("tekken", PreTokenizer((_TEKKEN,), whole_words=True, begins=True))
    | _named("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer((_GPT4O,)))
    | _named("tiny_aya cohere2moe", PreTokenizer((_THREE_FROM_THE_RIGHT, _GPT4O)))
    | _named("deepseek-coder", PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")))
    | _named(
        "deepseek-llm",
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
                r"\s+$",
                "[一-龥ࠀ-一가-퟿]+",
                r"\p{N}+",
            )
        ),
    )
    | _named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _DEEPSEEK3)
    | _named("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")))
    | _named("bloom poro-chat gpt3-finnish", PreTokenizer((_BLOOM,)))
    | _named("viking", PreTokenizer((_BLOOM, r"\p{N}")))
    | _named("bailingmoe bailingmoe2 llada-moe", PreTokenizer((_BAILING,)))
    | _named("seed-coder", PreTokenizer((_SEED,)))
    | _named("exaone-moe", PreTokenizer((_EXAONE_MOE,)))
)
"""Name -> what it stands for. Where a name is missing, a file that gives none is split as by `default`."""
