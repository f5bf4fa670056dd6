"""Models that continue no text: why each is refused, by the `model_type` or the facts of its `config.json`.

What is not here and runs nowhere in quantkit is merely not supported; the list only makes the reason clear where a
model could never run, whatever quantkit learns. Names are those of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_ENCODER = "is an encoder, which turns a text into numbers and continues none"
_ENCODER_DECODER = "is an encoder-decoder; quantkit runs decoders alone"
_DIFFUSION = "makes texts by diffusion, all tokens at once; quantkit makes them one after the other"
_SOUND = "hears or makes sounds; quantkit runs language models"
_IMAGE = "sees or makes images; quantkit runs language models"


def _each(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


REASONS: Mapping[str, str] = MappingProxyType(
    _each(
        """albert bert big_bird bros camembert canine colmodernvbert convbert data2vec-text deberta deberta-v2
        distilbert dpr electra ernie esm esmc esmfold2 eurobert flaubert fnet funnel gte ibert jina_embeddings_v3
        layoutlm layoutlmv2 layoutlmv3 layoutxlm lilt longformer luke lxmert markuplm megatron-bert mobilebert
        modernbert modernvbert mpnet mra neomme nomic_bert nystromformer perceiver rembert roberta
        roberta-prelayernorm roc_bert roformer splinter squeezebert tapas ultrabert visual_bert xlm xlm-roberta
        xlm-roberta-xl xmod yoso""",
        _ENCODER,
    )
    | _each(
        """bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder florence2 fsmt led longt5 m2m_100 marian
        mbart mt5 mvp nllb-moe nougat pegasus pegasus_x pix2struct plbart pp_formulanet prophetnet rag
        switch_transformers t5 t5gemma t5gemma2 udop umt5 vision-encoder-decoder""",
        _ENCODER_DECODER,
    )
    | _each("Dream diffusion_gemma llada llada_moe sdar sdar_moe", _DIFFUSION)
    | _each(
        """audio-spectrogram-transformer bark canary clap clvp cohere_asr csm dac data2vec-audio dia encodec
        fastspeech2_conformer fastspeech2_conformer_with_hifigan higgs_audio_v2 hubert kyutai_speech_to_text
        lasr_ctc mimi moonshine moonshine_streaming musicgen musicgen_melody omniasr_ctc parakeet_ctc
        parakeet_rnnt parakeet_tdt pocket_tts pop2piano seamless_m4t seamless_m4t_v2 sew sew-d
        speech-encoder-decoder speech_to_text speecht5 unispeech unispeech-sat univnet vibevoice vits wav2vec2
        wav2vec2-bert wav2vec2-conformer wavlm whisper xcodec""",
        _SOUND,
    )
    | _each(
        """aimv2 align altclip beit bit blip chinese_clip clip clip_vision_model clipseg colpali colqwen2 convnext
        convnextv2 data2vec-vision deformable_detr deit depth_anything depth_pro detr dinov2 dinov2_with_registers
        dinov3_convnext dinov3_vit donut-swin dpt efficientnet eomt glpn grounding-dino groupvit hiera ijepa
        imagegpt levit mask2former maskformer metaclip_2 mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 oneformer
        owlv2 owlvit pixtral poolformer pvt pvt_v2 regnet resnet rt_detr rt_detr_v2 sam sam2 sam2_video sam3
        sam_hq segformer siglip siglip2 siglip_vision_model superglue superpoint swin swin2sr swinv2
        table-transformer timesformer timm_backbone timm_wrapper upernet videomae vilt vit vit_mae vit_msn vitdet
        vitmatte vitpose vivit vjepa2 xclip yolos zoedepth""",
        _IMAGE,
    )
)
"""`model_type` -> what is said of it."""


def reason(config: Mapping[str, Any]) -> str | None:
    """Return why a model could never run, or None."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in REASONS:
        return REASONS[model_type]
    return _ENCODER_DECODER if config.get("is_encoder_decoder") is True else None
