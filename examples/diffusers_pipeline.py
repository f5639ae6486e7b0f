# %% [markdown]
# # A diffusers pipeline in eight steps
#
# `SolverScheduler` puts any solver of fewstep into a pipeline of diffusers, and nothing else of the
# pipeline changes. How much nearer does it come to the converged images than the scheduler that
# the pipeline has?
#
# No hub is needed: the pipeline is made here, of a network that comes with the package. In place of
# that, type for a real checkpoint
#
#     pipe = DiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
#
# and give it a prompt.

# %%
import torch
from diffusers import DDPMPipeline, FlowMatchEulerDiscreteScheduler
from PIL import Image

import fewstep
from fewstep import SolverScheduler

IMAGES = 6
STEPS = 8
CONVERGED = 50
SMILEYS = 6  # the class; this pipeline gives its network none, so a hook does


def add_class(module, args, kwargs):
    return args, {**kwargs, "class_labels": torch.full((len(args[0]),), SMILEYS)}


unet = fewstep.load("emoji").module
unet.register_forward_pre_hook(add_class, with_kwargs=True)
pipe = DDPMPipeline(unet, FlowMatchEulerDiscreteScheduler())
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## Another scheduler
#
# The config of the scheduler that the pipeline has says how its network was trained. That is all
# that `from_config` reads of it; solver and grid are chosen here.


# %%
def draw(scheduler, steps):
    """Images (IMAGES, 32, 32, 3) in [0, 1], always of the same noise."""
    pipe.scheduler, generator = scheduler, torch.Generator().manual_seed(0)
    done = pipe(IMAGES, generator, num_inference_steps=steps, output_type="np")
    return torch.tensor(done.images)


theirs = pipe.scheduler
ours = SolverScheduler.from_config(theirs.config, solver="unipc-3")
exact = draw(ours, CONVERGED)
rows = {
    f"diffusers, {STEPS} steps": draw(theirs, STEPS),
    f"unipc-3, {STEPS} steps": draw(ours, STEPS),
    f"unipc-3, {CONVERGED} steps": exact,
}

# %% [markdown]
# ## How far from converged?
#
# The root mean square distance, where black is 0 and white is 1. The rows of the picture are in
# the same order, each pixel three times as large.

# %%
distances = [float((images - exact).square().mean().sqrt()) for images in rows.values()]
for name, distance in zip(rows, distances, strict=True):
    print(f"{name:22} {distance:.4f}")
picture = torch.cat([torch.cat(list(images), dim=1) for images in rows.values()])
picture = picture.repeat_interleave(3, 0).repeat_interleave(3, 1)
Image.fromarray((255 * picture).byte().numpy()).save("diffusers_pipeline.png")

# %%
assert distances[1] < distances[0]
