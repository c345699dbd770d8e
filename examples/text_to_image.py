"""Two prompts and a negative one as a formula over a text-to-image pipeline, sampled and decoded.

Without an argument the pipeline is tiny and untrained, so that this runs anywhere and its pictures mean nothing. With
the folder of a checkpoint that you have (what ``save_pretrained`` wrote), the same lines draw from it.
Needs diffusers and transformers: pip install "boltzmix[diffusers]" "boltzmix[transformers]"

Run it: python examples/text_to_image.py [FOLDER]
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch

import boltzmix as bm

try:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
except ImportError:
    sys.exit('this example needs pip install "boltzmix[diffusers]" "boltzmix[transformers]"')

warnings.simplefilter("ignore", bm.SamplingWarning)  # both samplers say why they are biased; keep this out of your code


def tiny_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A pipeline with all its parts, a few thousand random weights, and a token per letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    blocks = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **blocks,
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **blocks
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=54, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
            )
        ),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
    else:
        pipeline = tiny_pipeline(Path(folder))
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval()

p = bm.term(pipeline)  # a density of the autoencoder's latents; the text encoder is asked once for each prompt

# The pipeline's own guidance: guidance_scale=5 with a negative prompt, the same seed, the same picture
cat = p.given(prompt="a cat", negative_prompt="blurry")
draw = bm.sample(cat.guided(5.0), 2, sampler=p.reverse(10), seed=0)
print("one prompt:", tuple(p.decode(draw.x).shape), f"{draw.info.network_rows:.0f} network rows per draw")

# Two prompts at once, away from a third: four conditions, one forward pass of the network
dog, blurry = p.given(prompt="a dog"), p.given(prompt="blurry")
formula = p * (cat / p) ** 3 * (dog / p) ** 3 / (blurry / p) ** 1
print("exponents:", formula.exponents())
for sampler in (p.reverse(10), bm.Annealed(levels=6, sweeps=1)):
    draw = bm.sample(formula, 2, sampler=sampler, seed=0)
    images = p.decode(draw.x)
    print(draw.info.sampler, tuple(images.shape), f"in [{images.min():.2f}, {images.max():.2f}]")
