"""The architectures that quantkit runs: `config.json`'s `model_type` -> its configuration and its forward pass.

`read` parses a `config.json` once; what it returns records the program. A family's file holds a `Config`, the fields it
understands, and `forward`, which reads like the forward pass. No file, no kernel and no number is touched here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models.config import DecoderConfig, shown
from quantkit.models.config.fields import check_unused
from quantkit.models.program import Program
from quantkit.models.recorder import Recorder
from quantkit.models.registry import refused
from quantkit.models.registry.wrappers import PREFIXES, WRAPPERS, text_config
from quantkit.models.rope import context_of
from quantkit.models.stored import Stored, described

Forward = Callable[[Any, Recorder], None]
"""Records the forward pass of the configuration that it is given."""


class Family(NamedTuple):
    """How the checkpoints of one `model_type` are configured, how they compute, what they store in another way; and
    which models they are, for people."""

    config: type[DecoderConfig]
    forward: Forward
    stored: tuple[Stored, ...] = ()
    known_as: str = ""


class Row(NamedTuple):
    """Where a family stands, by names: its module is imported when it is asked for, since a process runs one model."""

    module: str
    """Of `quantkit.models.families`."""
    config: str
    forward: str
    stored: str = ""
    """Name in the module; with dots, in another module of `quantkit.models`."""
    known_as: str = ""

    def load(self) -> Family:
        """Import the family."""
        module = import_module(f"quantkit.models.families.{self.module}")
        elsewhere, _, name = self.stored.rpartition(".")
        holder = import_module(f"quantkit.models.{elsewhere}") if elsewhere else module
        stored = getattr(holder, name) if name else ()
        return Family(getattr(module, self.config), getattr(module, self.forward), stored, self.known_as)


class Families(Mapping[str, Family]):
    """Families by their `model_type`, each imported when it is asked for."""

    def __init__(self, rows: Mapping[str, Row]) -> None:
        self._rows = rows

    def __getitem__(self, model_type: str) -> Family:
        return self._rows[model_type].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, model_type: object) -> bool:
        return model_type in self._rows


ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "afmoe": Row("mixtures.afmoe", "Config", "forward", known_as="Trinity Nano, Mini and Large"),
        "apertus": Row("dense.llama", "ApertusConfig", "apertus", "APERTUS_STORED", known_as="Apertus 8B, 70B"),
        "arcee": Row("dense.llama", "ArceeConfig", "arcee", known_as="AFM 4.5B"),
        "aria_text": Row("mixtures.mixtral", "AriaConfig", "aria", "ARIA_STORED", known_as="Aria, text"),
        "axk1": Row("latent.deepseek", "AxK1Config", "axk1", "decoder.latent_attention.STORED", known_as="A.X K1"),
        "bamba": Row("hybrid.mamba2", "BambaConfig", "bamba", "decoder.state_space.STORED", known_as="Bamba 9B"),
        "biogpt": Row("gpt.opt", "BioGptConfig", "biogpt", "BIOGPT_STORED", known_as="BioGPT"),
        "bitnet": Row("dense.llama", "BitnetConfig", "bitnet", known_as="BitNet b1.58 2B4T"),
        "bloom": Row("gpt.bloom", "BloomConfig", "bloom", "BLOOM_STORED", known_as="BLOOM, BLOOMZ"),
        "codegen": Row("gpt.gptj", "CodegenConfig", "codegen", "CODEGEN_STORED", known_as="CodeGen 350M to 16B"),
        "cohere": Row("dense.cohere", "CohereConfig", "cohere", known_as="Command R, Aya"),
        "cohere2": Row("dense.cohere", "Cohere2Config", "cohere2", known_as="Command R7B, Command A"),
        "cohere2_moe": Row("dense.cohere", "Cohere2MoeConfig", "cohere2_moe", known_as="Command A+, North Mini Code"),
        "cwm": Row("dense.exaone", "CwmConfig", "cwm", known_as="CWM 32B"),
        "dbrx": Row("mixtures.dbrx", "Config", "forward", "STORED", known_as="DBRX"),
        "deepseek_v2": Row(
            "latent.deepseek",
            "V2Config",
            "deepseek_v2",
            "decoder.latent_attention.STORED",
            known_as="DeepSeek-V2, V2-Lite, Coder-V2",
        ),
        "deepseek_v3": Row(
            "latent.deepseek",
            "V3Config",
            "deepseek_v3",
            "decoder.latent_attention.STORED",
            known_as="DeepSeek-V3, R1, Moonlight",
        ),
        "dots1": Row("mixtures.glm4_moe", "DotsConfig", "dots1", known_as="dots.llm1"),
        "ernie4_5": Row("dense.glm", "ErnieConfig", "ernie4_5", known_as="ERNIE 4.5 0.3B"),
        "ernie4_5_moe": Row("dense.glm", "ErnieMoeConfig", "ernie4_5_moe", known_as="ERNIE 4.5 21B-A3B, 300B-A47B"),
        "exaone": Row("dense.exaone", "ExaoneConfig", "exaone", "EXAONE_STORED", known_as="EXAONE 3.0, 3.5, Deep"),
        "exaone4": Row("dense.olmo", "Exaone4Config", "exaone4", known_as="EXAONE 4.0"),
        "exaone_moe": Row("mixtures.glm4_moe", "ExaoneConfig", "exaone_moe", known_as="K-EXAONE"),
        "falcon": Row("gpt.neox", "FalconConfig", "falcon", "FALCON_STORED", known_as="Falcon 7B, 40B"),
        "falcon_h1": Row(
            "hybrid.falcon_h1", "Config", "forward", "decoder.state_space.STORED", known_as="Falcon-H1 0.5B to 34B"
        ),
        "falcon_mamba": Row("hybrid.mamba", "FalconConfig", "falcon_mamba", "STORED", known_as="Falcon Mamba 7B"),
        "flex_olmo": Row("dense.olmo", "FlexOlmoConfig", "flex_olmo", known_as="FlexOlmo"),
        "gemma": Row("gemma.gemma", "GemmaConfig", "gemma", known_as="Gemma 1"),
        "gemma2": Row("gemma.gemma", "Gemma2Config", "gemma2", known_as="Gemma 2"),
        "gemma3_text": Row("gemma.gemma3", "Config", "forward", known_as="Gemma 3, text"),
        "gemma3n_text": Row("gemma.gemma3n", "Config", "forward", known_as="Gemma 3n, text"),
        "gemma4_text": Row("gemma.gemma4", "Config", "forward", "STORED", known_as="Gemma 4, text"),
        "gemma4_unified_text": Row("gemma.gemma4", "UnifiedConfig", "forward", known_as="Gemma 4 12B, text"),
        "glm": Row("dense.glm", "GlmConfig", "glm", "GLM_STORED", known_as="GLM-4 9B"),
        "glm4": Row("dense.glm", "GlmConfig", "glm4", "GLM_STORED", known_as="GLM-4 9B and 32B of 2025"),
        "glm4_moe": Row("mixtures.glm4_moe", "GlmConfig", "glm4_moe", known_as="GLM-4.5 and 4.6, GLM-4.5-Air"),
        "glm4_moe_lite": Row(
            "latent.deepseek",
            "Glm4MoeLiteConfig",
            "deepseek_v3",
            "decoder.latent_attention.STORED",
            known_as="GLM-4.7-Flash",
        ),
        "gpt2": Row("gpt.gpt2", "Gpt2Config", "gpt2", "GPT2_STORED", known_as="GPT-2"),
        "gpt_bigcode": Row(
            "gpt.gpt2", "BigCodeConfig", "gpt_bigcode", "BIGCODE_STORED", known_as="StarCoder, SantaCoder"
        ),
        "gpt_neo": Row("gpt.gpt2", "NeoConfig", "gpt_neo", "NEO_STORED", known_as="GPT-Neo 125M to 2.7B"),
        "gpt_neox": Row("gpt.neox", "NeoXConfig", "gpt_neox", "NEOX_STORED", known_as="Pythia, GPT-NeoX 20B"),
        "gpt_neox_japanese": Row(
            "gpt.neox", "JapaneseConfig", "japanese", "JAPANESE_STORED", known_as="GPT-NeoX Japanese 2.7B"
        ),
        "gpt_oss": Row("mixtures.gpt_oss", "Config", "forward", "STORED", known_as="gpt-oss 20B, 120B"),
        "gptj": Row("gpt.gptj", "Config", "gptj", "GPTJ_STORED", known_as="GPT-J 6B"),
        "granite": Row("dense.granite", "Config", "forward", known_as="Granite 3"),
        "granite_swa": Row("dense.granite", "SwaConfig", "swa", known_as="Granite with windows"),
        "granitemoe": Row("dense.granite", "MoeConfig", "moe", "MOE_STORED", known_as="Granite 3 with experts"),
        "granitemoe_swa": Row(
            "dense.granite", "MoeSwaConfig", "moe_swa", "MOE_SWA_STORED", known_as="Granite with experts and windows"
        ),
        "granitemoehybrid": Row("hybrid.granitemoehybrid", "Config", "forward", "STORED", known_as="Granite 4"),
        "granitemoeshared": Row(
            "dense.granite",
            "MoeSharedConfig",
            "moe_shared",
            "MOE_STORED",
            known_as="Granite 3 with experts and a shared one",
        ),
        "helium": Row("dense.glm", "HeliumConfig", "helium", known_as="Helium 1"),
        "hunyuan_v1_dense": Row("dense.hunyuan", "Config", "dense", known_as="Hunyuan 0.5B to 7B"),
        "hunyuan_v1_moe": Row("dense.hunyuan", "MoeConfig", "moe", known_as="Hunyuan A13B"),
        "hy_v3": Row("mixtures.glm4_moe", "HunyuanConfig", "hy_v3", known_as="Hunyuan 3"),
        "hyperclovax": Row("dense.granite", "HyperclovaxConfig", "hyperclovax", known_as="HyperCLOVA X SEED Think"),
        "internlm3": Row("dense.llama", "InternLM3Config", "internlm3", known_as="InternLM 3"),
        "iquestcoder": Row("dense.exaone", "IQuestConfig", "iquestcoder", known_as="IQuest-Coder V1 40B"),
        "jais2": Row("gpt.neox", "Jais2Config", "jais2", known_as="Jais 2 8B, 70B"),
        "jamba": Row("hybrid.mamba", "JambaConfig", "jamba", "STORED", known_as="Jamba 1.5, Jamba 3B"),
        "lfm2": Row("hybrid.lfm2", "Lfm2Config", "lfm2", "STORED", known_as="LFM2 350M to 2.6B"),
        "lfm2_moe": Row("hybrid.lfm2", "MoeConfig", "lfm2_moe", "STORED", known_as="LFM2 8B-A1B"),
        "lfm3": Row("hybrid.lfm2", "Lfm3Config", "lfm3", "LFM3_STORED", known_as="LFM3 1.7B"),
        "llama": Row(
            "dense.llama",
            "LlamaConfig",
            "llama",
            known_as="Llama 1 to 3.x, SmolLM2, TinyLlama, Yi, DeepSeek-R1-Distill-Llama",
        ),
        "llama4_text": Row(
            "mixtures.llama4", "Config", "forward", "STORED", known_as="Llama 4 Scout and Maverick, text"
        ),
        "mamba": Row("hybrid.mamba", "Config", "mamba", "STORED", known_as="Mamba 130M to 2.8B"),
        "mamba2": Row(
            "hybrid.mamba2", "Config", "mamba2", "decoder.state_space.STORED", known_as="Mamba-2, Codestral Mamba"
        ),
        "minicpm3": Row(
            "latent.minicpm3", "Config", "forward", "decoder.latent_attention.STORED", known_as="MiniCPM3 4B"
        ),
        "minimax_m2": Row("mixtures.mixtral", "MiniMaxConfig", "minimax_m2", known_as="MiniMax-M2"),
        "ministral": Row("dense.llama", "MistralConfig", "mistral", known_as="Ministral 8B"),
        "ministral3": Row("dense.llama", "Ministral3Config", "ministral3", known_as="Ministral 3"),
        "mistral": Row("dense.llama", "MistralConfig", "mistral", known_as="Mistral 7B"),
        "mixtral": Row("mixtures.mixtral", "MixtralConfig", "mixtral", known_as="Mixtral 8x7B, 8x22B"),
        "mpt": Row("gpt.bloom", "MptConfig", "mpt", "MPT_STORED", known_as="MPT 7B, 30B"),
        "nanochat": Row("dense.nanochat", "Config", "forward", "STORED", known_as="nanochat"),
        "nemotron": Row("gpt.neox", "NemotronConfig", "nemotron", known_as="Minitron, Nemotron 4"),
        "nemotron_h": Row(
            "hybrid.nemotron_h",
            "Config",
            "forward",
            "decoder.state_space.STORED",
            known_as="Nemotron-H, Nemotron Nano 2 and 3",
        ),
        "olmo": Row("dense.olmo", "OlmoConfig", "olmo", known_as="OLMo 1"),
        "olmo2": Row("dense.olmo", "Olmo2Config", "olmo2", known_as="OLMo 2"),
        "olmo3": Row("dense.olmo", "Olmo3Config", "olmo3", known_as="OLMo 3"),
        "olmo_hybrid": Row("hybrid.olmo_hybrid", "Config", "forward", "STORED", known_as="OLMo Hybrid"),
        "olmoe": Row("mixtures.mixtral", "OlmoeConfig", "olmoe", known_as="OLMoE"),
        "openai-gpt": Row("gpt.gpt2", "GptConfig", "openai_gpt", "GPT2_STORED", known_as="GPT"),
        "opt": Row("gpt.opt", "OptConfig", "opt", "OPT_STORED", known_as="OPT 125M to 66B"),
        "persimmon": Row("gpt.neox", "PersimmonConfig", "persimmon", "PERSIMMON_STORED", known_as="Persimmon 8B"),
        "phi": Row("gpt.neox", "PhiConfig", "phi", "PHI_STORED", known_as="Phi-1, Phi-2"),
        "phi3": Row("dense.llama", "Phi3Config", "phi3", "PHI3_STORED", known_as="Phi-3, Phi-3.5, Phi-4"),
        "phimoe": Row("mixtures.mixtral", "PhiMoeConfig", "phimoe", known_as="Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE"),
        "qwen2": Row("dense.llama", "Qwen2Config", "qwen2", known_as="Qwen2, Qwen2.5"),
        "qwen2_moe": Row("mixtures.mixtral", "Qwen2MoeConfig", "qwen2_moe", known_as="Qwen1.5-MoE, Qwen2-57B-A14B"),
        "qwen3": Row("dense.llama", "Qwen3Config", "qwen3", known_as="Qwen3"),
        "qwen3_5_moe_text": Row(
            "hybrid.qwen3_next", "MoeConfig", "mixture", "MOE_STORED", known_as="Qwen3.5-35B-A3B and larger, text"
        ),
        "qwen3_5_text": Row("hybrid.qwen3_next", "Config", "dense", "STORED", known_as="Qwen3.5, text"),
        "qwen3_moe": Row("mixtures.mixtral", "Qwen3MoeConfig", "qwen3_moe", known_as="Qwen3-30B-A3B, Qwen3-235B-A22B"),
        "qwen3_next": Row("hybrid.qwen3_next", "NextConfig", "mixture", "NEXT_STORED", known_as="Qwen3-Next-80B-A3B"),
        "recurrent_gemma": Row(
            "hybrid.recurrent_gemma", "Config", "forward", "STORED", known_as="RecurrentGemma 2B, 9B"
        ),
        "sarvam_mla": Row(
            "latent.deepseek", "SarvamConfig", "deepseek_v3", "decoder.latent_attention.STORED", known_as="Sarvam 105B"
        ),
        "sarvam_moe": Row("mixtures.glm4_moe", "SarvamConfig", "glm4_moe", "SARVAM_STORED", known_as="Sarvam 30B"),
        "seed_oss": Row("dense.llama", "SeedConfig", "seed_oss", known_as="Seed-OSS 36B"),
        "smollm3": Row("dense.llama", "SmolLM3Config", "smollm3", known_as="SmolLM3"),
        "solar_open": Row("mixtures.glm4_moe", "SolarConfig", "solar_open", known_as="Solar Open 100B"),
        "stablelm": Row(
            "gpt.neox", "StableLmConfig", "stablelm", "STABLELM_STORED", known_as="StableLM 2, StableLM Zephyr"
        ),
        "starcoder2": Row("gpt.neox", "Starcoder2Config", "starcoder2", "STARCODER2_STORED", known_as="StarCoder2"),
        "vaultgemma": Row("gemma.gemma", "Gemma2Config", "vaultgemma", known_as="VaultGemma 1B"),
        "xglm": Row("gpt.opt", "XglmConfig", "xglm", "OPT_STORED", known_as="XGLM 564M to 7.5B"),
        "youtu": Row(
            "latent.deepseek", "YoutuConfig", "youtu", "decoder.latent_attention.STORED", known_as="Youtu-LLM 2B"
        ),
        "zamba2": Row("hybrid.zamba2", "Config", "forward", "STORED", known_as="Zamba2 1.2B, 2.7B, 7B"),
    }
)

FAMILIES: Mapping[str, Family] = Families(ROWS)


@dataclass(frozen=True)
class Architecture:
    """A model as its `config.json` describes it, read and checked.

    Attributes
    ----------
    config : DecoderConfig
    family : Family
    source : Mapping
        The `config.json` of the text model, which is another one where that is a part of a multimodal model.
    part_of : str
        `model_type` of the multimodal model, if it is part of one.
    renamed : tuple of str
        How names of tensors begin in the program, and in what stores them in other words than a Hugging Face folder.
    """

    config: DecoderConfig
    family: Family
    source: Mapping[str, Any]
    part_of: str = ""
    renamed: tuple[str, str] = ("", "")

    @property
    def prefixes(self) -> tuple[tuple[str, str], ...]:
        """How names of tensors may begin in the checkpoint -> how they begin in the program."""
        return PREFIXES if self.part_of else ()

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for, prompt and answer together: of short texts, where rope turns long ones
        otherwise."""
        return context_of(self.config).usual

    @property
    def longest_context(self) -> int:
        """Tokens that it can be opened for."""
        return context_of(self.config).longest

    def untied(self) -> Architecture:
        """Return the same with an output projection of its own, whatever the config says."""
        return replace(self, config=replace(self.config, tie_word_embeddings=False))

    def storing(self, rows: Sequence[Stored]) -> Architecture:
        """Return the same, of which a checkpoint stores some tensors in another way than its family does."""
        return replace(self, family=self.family._replace(stored=(*rows, *self.family.stored)))

    def record(self, text_length: int | None = None) -> Program:
        """Record the forward pass, for texts of up to `text_length` tokens; by default, of `context_length`.

        Raises
        ------
        UnsupportedError
            The rope type, the activation or another field's value is none that quantkit can run.
        CheckpointError
            A field contradicts another.
        """
        ops = Recorder(text_length)
        self.family.forward(self.config, ops)
        program = ops.program()
        return replace(program, tensors=described(program.tensors, self.family.stored, self.config, self.renamed))


def read(config: Mapping[str, Any]) -> Architecture:
    """Read a `config.json`.

    Raises
    ------
    UnsupportedError
        The model type is none that quantkit runs, or a field asks for something that its family does not compute.
    CheckpointError
        A field is missing or ill-typed.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json: model_type is missing; is this a Hugging Face language model?")
    if (reason := refused.reason(config)) is not None:
        raise UnsupportedError(f"config.json: model_type {shown(model_type)} {reason}")
    text = text_config(config)
    if text["model_type"] not in FAMILIES:
        where = "" if text is config else f" of the text model in {shown(model_type)}"
        supported = ", ".join([*FAMILIES, *WRAPPERS])
        raise UnsupportedError(
            f"config.json: model_type {shown(text['model_type'])}{where} is not supported; supported are {supported}"
        )
    family = FAMILIES[text["model_type"]]
    parsed = family.config.from_dict(text)
    check_unused(text, parsed)
    if text is config:
        return Architecture(parsed, family, text)
    family = family._replace(stored=(*family.stored, *WRAPPERS[model_type].stored))
    return Architecture(parsed, family, text, model_type)
