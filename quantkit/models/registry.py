"""The architectures that quantkit runs: `config.json`'s `model_type` -> its configuration and its forward pass.

`read` parses a `config.json` once; what it returns records the program. A family's file holds a `Config`, the fields it
understands, and `forward`, which reads like the forward pass. No file, no kernel and no number is touched here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from quantkit.errors import CheckpointError, UnsupportedError
from quantkit.models import refused
from quantkit.models.config import DecoderConfig, shown
from quantkit.models.config.fields import check_unused
from quantkit.models.decoder import latent_attention, state_space
from quantkit.models.families.dense import cohere, exaone, glm, granite, hunyuan, llama, nanochat, olmo
from quantkit.models.families.gemma import gemma, gemma3, gemma3n, gemma4
from quantkit.models.families.gpt import bloom, gpt2, gptj, neox, opt
from quantkit.models.families.hybrid import (
    falcon_h1,
    granitemoehybrid,
    lfm2,
    mamba,
    mamba2,
    nemotron_h,
    olmo_hybrid,
    qwen3_next,
    recurrent_gemma,
    zamba2,
)
from quantkit.models.families.latent import deepseek, minicpm3
from quantkit.models.families.mixtures import afmoe, glm4_moe, gpt_oss, llama4, mixtral
from quantkit.models.program import Program
from quantkit.models.recorder import Recorder
from quantkit.models.rope import context_of
from quantkit.models.stored import Stored, described
from quantkit.models.wrappers import PREFIXES, WRAPPERS, text_config

Forward = Callable[[Any, Recorder], None]
"""Records the forward pass of the configuration that it is given."""


class Family(NamedTuple):
    """How the checkpoints of one `model_type` are configured, how they compute, what they store in another way; and
    which models they are, for people."""

    config: type[DecoderConfig]
    forward: Forward
    stored: tuple[Stored, ...] = ()
    known_as: str = ""


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "afmoe": Family(afmoe.Config, afmoe.forward, known_as="Trinity Nano, Mini and Large"),
        "apertus": Family(llama.ApertusConfig, llama.apertus, llama.APERTUS_STORED, known_as="Apertus 8B, 70B"),
        "arcee": Family(llama.ArceeConfig, llama.arcee, known_as="AFM 4.5B"),
        "bamba": Family(mamba2.BambaConfig, mamba2.bamba, state_space.STORED, known_as="Bamba 9B"),
        "axk1": Family(deepseek.AxK1Config, deepseek.axk1, latent_attention.STORED, known_as="A.X K1"),
        "biogpt": Family(opt.BioGptConfig, opt.biogpt, opt.BIOGPT_STORED, known_as="BioGPT"),
        "bitnet": Family(llama.BitnetConfig, llama.bitnet, known_as="BitNet b1.58 2B4T"),
        "bloom": Family(bloom.BloomConfig, bloom.bloom, bloom.BLOOM_STORED, known_as="BLOOM, BLOOMZ"),
        "codegen": Family(gptj.CodegenConfig, gptj.codegen, gptj.CODEGEN_STORED, known_as="CodeGen 350M to 16B"),
        "cohere": Family(cohere.CohereConfig, cohere.cohere, known_as="Command R, Aya"),
        "cohere2": Family(cohere.Cohere2Config, cohere.cohere2, known_as="Command R7B, Command A"),
        "cwm": Family(exaone.CwmConfig, exaone.cwm, known_as="CWM 32B"),
        "deepseek_v2": Family(
            deepseek.V2Config, deepseek.deepseek_v2, latent_attention.STORED, known_as="DeepSeek-V2, V2-Lite, Coder-V2"
        ),
        "deepseek_v3": Family(
            deepseek.V3Config, deepseek.deepseek_v3, latent_attention.STORED, known_as="DeepSeek-V3, R1, Moonlight"
        ),
        "dots1": Family(glm4_moe.DotsConfig, glm4_moe.dots1, known_as="dots.llm1"),
        "ernie4_5": Family(glm.ErnieConfig, glm.ernie4_5, known_as="ERNIE 4.5 0.3B"),
        "ernie4_5_moe": Family(glm.ErnieMoeConfig, glm.ernie4_5_moe, known_as="ERNIE 4.5 21B-A3B, 300B-A47B"),
        "exaone": Family(exaone.ExaoneConfig, exaone.exaone, exaone.EXAONE_STORED, known_as="EXAONE 3.0, 3.5, Deep"),
        "exaone4": Family(olmo.Exaone4Config, olmo.exaone4, known_as="EXAONE 4.0"),
        "exaone_moe": Family(glm4_moe.ExaoneConfig, glm4_moe.exaone_moe, known_as="K-EXAONE"),
        "falcon": Family(neox.FalconConfig, neox.falcon, neox.FALCON_STORED, known_as="Falcon 7B, 40B"),
        "flex_olmo": Family(olmo.FlexOlmoConfig, olmo.flex_olmo, known_as="FlexOlmo"),
        "falcon_h1": Family(falcon_h1.Config, falcon_h1.forward, state_space.STORED, known_as="Falcon-H1 0.5B to 34B"),
        "gemma": Family(gemma.GemmaConfig, gemma.gemma, known_as="Gemma 1"),
        "gemma2": Family(gemma.Gemma2Config, gemma.gemma2, known_as="Gemma 2"),
        "gemma3_text": Family(gemma3.Config, gemma3.forward, known_as="Gemma 3, text"),
        "gemma3n_text": Family(gemma3n.Config, gemma3n.forward, known_as="Gemma 3n, text"),
        "gemma4_text": Family(gemma4.Config, gemma4.forward, gemma4.STORED, known_as="Gemma 4, text"),
        "gemma4_unified_text": Family(gemma4.UnifiedConfig, gemma4.forward, known_as="Gemma 4 12B, text"),
        "glm": Family(glm.GlmConfig, glm.glm, glm.GLM_STORED, known_as="GLM-4 9B"),
        "glm4": Family(glm.GlmConfig, glm.glm4, glm.GLM_STORED, known_as="GLM-4 9B and 32B of 2025"),
        "glm4_moe_lite": Family(
            deepseek.Glm4MoeLiteConfig, deepseek.deepseek_v3, latent_attention.STORED, known_as="GLM-4.7-Flash"
        ),
        "glm4_moe": Family(glm4_moe.GlmConfig, glm4_moe.glm4_moe, known_as="GLM-4.5 and 4.6, GLM-4.5-Air"),
        "gpt2": Family(gpt2.Gpt2Config, gpt2.gpt2, gpt2.GPT2_STORED, known_as="GPT-2"),
        "gpt_bigcode": Family(
            gpt2.BigCodeConfig, gpt2.gpt_bigcode, gpt2.BIGCODE_STORED, known_as="StarCoder, SantaCoder"
        ),
        "gpt_neo": Family(gpt2.NeoConfig, gpt2.gpt_neo, gpt2.NEO_STORED, known_as="GPT-Neo 125M to 2.7B"),
        "gpt_neox": Family(neox.NeoXConfig, neox.gpt_neox, neox.NEOX_STORED, known_as="Pythia, GPT-NeoX 20B"),
        "gpt_oss": Family(gpt_oss.Config, gpt_oss.forward, gpt_oss.STORED, known_as="gpt-oss 20B, 120B"),
        "gptj": Family(gptj.Config, gptj.gptj, gptj.GPTJ_STORED, known_as="GPT-J 6B"),
        "granite": Family(granite.Config, granite.forward, known_as="Granite 3"),
        "granite_swa": Family(granite.SwaConfig, granite.swa, known_as="Granite with windows"),
        "granitemoe": Family(granite.MoeConfig, granite.moe, granite.MOE_STORED, known_as="Granite 3 with experts"),
        "granitemoe_swa": Family(
            granite.MoeSwaConfig, granite.moe_swa, granite.MOE_SWA_STORED, known_as="Granite with experts and windows"
        ),
        "granitemoehybrid": Family(
            granitemoehybrid.Config, granitemoehybrid.forward, granitemoehybrid.STORED, known_as="Granite 4"
        ),
        "granitemoeshared": Family(
            granite.MoeSharedConfig,
            granite.moe_shared,
            granite.MOE_STORED,
            known_as="Granite 3 with experts and a shared one",
        ),
        "helium": Family(glm.HeliumConfig, glm.helium, known_as="Helium 1"),
        "hunyuan_v1_dense": Family(hunyuan.Config, hunyuan.dense, known_as="Hunyuan 0.5B to 7B"),
        "hunyuan_v1_moe": Family(hunyuan.MoeConfig, hunyuan.moe, known_as="Hunyuan A13B"),
        "hy_v3": Family(glm4_moe.HunyuanConfig, glm4_moe.hy_v3, known_as="Hunyuan 3"),
        "hyperclovax": Family(granite.HyperclovaxConfig, granite.hyperclovax, known_as="HyperCLOVA X SEED Think"),
        "internlm3": Family(llama.InternLM3Config, llama.internlm3, known_as="InternLM 3"),
        "iquestcoder": Family(exaone.IQuestConfig, exaone.iquestcoder, known_as="IQuest-Coder V1 40B"),
        "jais2": Family(neox.Jais2Config, neox.jais2, known_as="Jais 2 8B, 70B"),
        "lfm2": Family(lfm2.Lfm2Config, lfm2.lfm2, lfm2.STORED, known_as="LFM2 350M to 2.6B"),
        "lfm2_moe": Family(lfm2.MoeConfig, lfm2.lfm2_moe, lfm2.STORED, known_as="LFM2 8B-A1B"),
        "lfm3": Family(lfm2.Lfm3Config, lfm2.lfm3, lfm2.LFM3_STORED, known_as="LFM3 1.7B"),
        "llama": Family(
            llama.LlamaConfig, llama.llama, known_as="Llama 1 to 3.x, SmolLM2, TinyLlama, Yi, DeepSeek-R1-Distill-Llama"
        ),
        "falcon_mamba": Family(mamba.FalconConfig, mamba.falcon_mamba, mamba.STORED, known_as="Falcon Mamba 7B"),
        "jamba": Family(mamba.JambaConfig, mamba.jamba, mamba.STORED, known_as="Jamba 1.5, Jamba 3B"),
        "mamba": Family(mamba.Config, mamba.mamba, mamba.STORED, known_as="Mamba 130M to 2.8B"),
        "mamba2": Family(mamba2.Config, mamba2.mamba2, state_space.STORED, known_as="Mamba-2, Codestral Mamba"),
        "minicpm3": Family(minicpm3.Config, minicpm3.forward, latent_attention.STORED, known_as="MiniCPM3 4B"),
        "minimax_m2": Family(mixtral.MiniMaxConfig, mixtral.minimax_m2, known_as="MiniMax-M2"),
        "llama4_text": Family(
            llama4.Config, llama4.forward, llama4.STORED, known_as="Llama 4 Scout and Maverick, text"
        ),
        "ministral": Family(llama.MistralConfig, llama.mistral, known_as="Ministral 8B"),
        "ministral3": Family(llama.Ministral3Config, llama.ministral3, known_as="Ministral 3"),
        "mistral": Family(llama.MistralConfig, llama.mistral, known_as="Mistral 7B"),
        "mixtral": Family(mixtral.MixtralConfig, mixtral.mixtral, known_as="Mixtral 8x7B, 8x22B"),
        "mpt": Family(bloom.MptConfig, bloom.mpt, bloom.MPT_STORED, known_as="MPT 7B, 30B"),
        "nanochat": Family(nanochat.Config, nanochat.forward, nanochat.STORED, known_as="nanochat"),
        "nemotron": Family(neox.NemotronConfig, neox.nemotron, known_as="Minitron, Nemotron 4"),
        "nemotron_h": Family(
            nemotron_h.Config, nemotron_h.forward, state_space.STORED, known_as="Nemotron-H, Nemotron Nano 2 and 3"
        ),
        "olmo": Family(olmo.OlmoConfig, olmo.olmo, known_as="OLMo 1"),
        "olmo2": Family(olmo.Olmo2Config, olmo.olmo2, known_as="OLMo 2"),
        "olmo3": Family(olmo.Olmo3Config, olmo.olmo3, known_as="OLMo 3"),
        "olmo_hybrid": Family(olmo_hybrid.Config, olmo_hybrid.forward, olmo_hybrid.STORED, known_as="OLMo Hybrid"),
        "olmoe": Family(mixtral.OlmoeConfig, mixtral.olmoe, known_as="OLMoE"),
        "openai-gpt": Family(gpt2.GptConfig, gpt2.openai_gpt, gpt2.GPT2_STORED, known_as="GPT"),
        "opt": Family(opt.OptConfig, opt.opt, opt.OPT_STORED, known_as="OPT 125M to 66B"),
        "persimmon": Family(neox.PersimmonConfig, neox.persimmon, neox.PERSIMMON_STORED, known_as="Persimmon 8B"),
        "phi": Family(neox.PhiConfig, neox.phi, neox.PHI_STORED, known_as="Phi-1, Phi-2"),
        "phi3": Family(llama.Phi3Config, llama.phi3, llama.PHI3_STORED, known_as="Phi-3, Phi-3.5, Phi-4"),
        "phimoe": Family(mixtral.PhiMoeConfig, mixtral.phimoe, known_as="Phi-3.5-MoE, Phi-mini-MoE, Phi-tiny-MoE"),
        "qwen2": Family(llama.Qwen2Config, llama.qwen2, known_as="Qwen2, Qwen2.5"),
        "qwen2_moe": Family(mixtral.Qwen2MoeConfig, mixtral.qwen2_moe, known_as="Qwen1.5-MoE, Qwen2-57B-A14B"),
        "qwen3": Family(llama.Qwen3Config, llama.qwen3, known_as="Qwen3"),
        "qwen3_5_moe_text": Family(
            qwen3_next.MoeConfig, qwen3_next.mixture, qwen3_next.MOE_STORED, known_as="Qwen3.5-35B-A3B and larger, text"
        ),
        "qwen3_5_text": Family(qwen3_next.Config, qwen3_next.dense, qwen3_next.STORED, known_as="Qwen3.5, text"),
        "qwen3_moe": Family(mixtral.Qwen3MoeConfig, mixtral.qwen3_moe, known_as="Qwen3-30B-A3B, Qwen3-235B-A22B"),
        "sarvam_mla": Family(
            deepseek.SarvamConfig, deepseek.deepseek_v3, latent_attention.STORED, known_as="Sarvam 105B"
        ),
        "recurrent_gemma": Family(
            recurrent_gemma.Config,
            recurrent_gemma.forward,
            recurrent_gemma.STORED,
            known_as="RecurrentGemma 2B, 9B",
        ),
        "sarvam_moe": Family(glm4_moe.SarvamConfig, glm4_moe.glm4_moe, glm4_moe.SARVAM_STORED, known_as="Sarvam 30B"),
        "qwen3_next": Family(
            qwen3_next.NextConfig, qwen3_next.mixture, qwen3_next.NEXT_STORED, known_as="Qwen3-Next-80B-A3B"
        ),
        "seed_oss": Family(llama.SeedConfig, llama.seed_oss, known_as="Seed-OSS 36B"),
        "smollm3": Family(llama.SmolLM3Config, llama.smollm3, known_as="SmolLM3"),
        "solar_open": Family(glm4_moe.SolarConfig, glm4_moe.solar_open, known_as="Solar Open 100B"),
        "stablelm": Family(
            neox.StableLmConfig, neox.stablelm, neox.STABLELM_STORED, known_as="StableLM 2, StableLM Zephyr"
        ),
        "starcoder2": Family(neox.Starcoder2Config, neox.starcoder2, neox.STARCODER2_STORED, known_as="StarCoder2"),
        "vaultgemma": Family(gemma.Gemma2Config, gemma.vaultgemma, known_as="VaultGemma 1B"),
        "xglm": Family(opt.XglmConfig, opt.xglm, opt.OPT_STORED, known_as="XGLM 564M to 7.5B"),
        "youtu": Family(deepseek.YoutuConfig, deepseek.youtu, latent_attention.STORED, known_as="Youtu-LLM 2B"),
        "zamba2": Family(zamba2.Config, zamba2.forward, zamba2.STORED, known_as="Zamba2 1.2B, 2.7B, 7B"),
    }
)


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
