"""Randomly initialised pipelines of the diffusers library, small enough for tests; nothing is downloaded."""

import json
from pathlib import Path

import diffusers
import torch
import transformers

PLAIN = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE = PLAIN | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
LENGTH = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """One token per letter, from a vocabulary written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH
    )  # fmt: skip


def text_encoder(width=16, projection=None, seed=0):
    """A CLIP text model, with a projection where one is asked for."""
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=2 * len(LETTERS) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=2 * len(LETTERS),
        eos_token_id=2 * len(LETTERS) + 1,
        pad_token_id=2 * len(LETTERS) + 1,
        projection_dim=projection or width,
    )
    kind = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return frozen(kind(config))


def frozen(net):
    return net.eval().requires_grad_(False)


def autoencoder(channels=4, seed=1, **config):
    torch.manual_seed(seed)
    return frozen(
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            latent_channels=channels,
            norm_num_groups=4,
            sample_size=16,
            **config,
        )
    )


def unet(channels=4, width=16, seed=2, **config):
    torch.manual_seed(seed)
    return frozen(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=width,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **config,
        )
    )


def shaken(net, scale=0.05, seed=3):
    """Transformers whose last layers start at zero, moved away from it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return frozen(net)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion(folder, scheduler=None, **parts):
    """Text to image as Stable Diffusion does it."""
    parts = {
        "vae": autoencoder(),
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(folder / "words"),
        "unet": unet(),
        "scheduler": scheduler or diffusers.DDIMScheduler(**STABLE),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    } | parts
    return quiet(diffusers.StableDiffusionPipeline(**parts))


def stable_diffusion_xl(folder, **parts):
    """Two text encoders, pooled text and image sizes."""
    net = unet(
        width=28,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
        transformer_layers_per_block=1,
    )
    parts = {
        "vae": autoencoder(scaling_factor=0.13025),
        "text_encoder": text_encoder(),
        "text_encoder_2": text_encoder(12, projection=12, seed=5),
        "tokenizer": tokenizer(folder / "words"),
        "tokenizer_2": tokenizer(folder / "words"),
        "unet": net,
        "scheduler": diffusers.EulerDiscreteScheduler(**PLAIN, timestep_spacing="leading", steps_offset=1),
        "add_watermarker": False,
    } | parts
    return quiet(diffusers.StableDiffusionXLPipeline(**parts))


def stable_diffusion_3(folder, **scheduler):
    """A flow with a transformer, a shifted autoencoder, and no T5."""
    torch.manual_seed(7)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=28,
        pos_embed_max_size=8,
    )
    return quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=shaken(net),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
            vae=autoencoder(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=text_encoder(16, projection=16, seed=8),
            text_encoder_2=text_encoder(12, projection=12, seed=9),
            text_encoder_3=None,
            tokenizer=tokenizer(folder / "words"),
            tokenizer_2=tokenizer(folder / "words"),
            tokenizer_3=None,
        )
    )


def pixart(folder):
    """A transformer that reads T5's tokens and their mask, with a learned variance."""
    torch.manual_seed(10)
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
    )
    config = transformers.T5Config(
        vocab_size=2 * len(LETTERS) + 2, d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    return quiet(
        diffusers.PixArtAlphaPipeline(
            tokenizer=tokenizer(folder / "words"),
            text_encoder=frozen(transformers.T5EncoderModel(config)),
            vae=autoencoder(),
            transformer=shaken(net),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
        )
    )


def dit():
    """By class, with a learned variance that its pipeline ignores."""
    torch.manual_seed(11)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=1000,
    )
    return quiet(
        diffusers.DiTPipeline(
            transformer=shaken(net), vae=autoencoder(), scheduler=diffusers.DDIMScheduler(clip_sample=False)
        )
    )


def pixels(scheduler=None):
    """Unconditional, on pixels."""
    torch.manual_seed(12)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    return quiet(diffusers.DDPMPipeline(frozen(net), scheduler or diffusers.DDPMScheduler()))
