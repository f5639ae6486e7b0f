"""A stand-in for ComfyUI: what its samplers do around ours, as far as the node pack can see it.

It says nothing about ComfyUI's own code, only how it calls: `test_comfyui.py` holds the pack to the
same assertions in the real one, if the environment variable COMFYUI names its folder.
"""

import sys
import types
from itertools import pairwise
from typing import NamedTuple

import torch

MODULES = ("comfy", "comfy.samplers", "comfy.k_diffusion", "comfy.k_diffusion.sampling")
MODULES += ("comfy.patcher_extension", "comfy_api", "comfy_api.latest", "comfyui_version")
MODULES += ("folder_paths",)


class EPS:
    def calculate_input(self, sigma, x):
        return x / (sigma**2 + 1.0) ** 0.5

    def calculate_denoised(self, sigma, output, x):
        return x - sigma * output

    def noise_scaling(self, sigma, noise, latent, max_denoise):
        return latent + noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, x):
        return x


class CONST(EPS):
    def calculate_input(self, sigma, x):
        return x

    def noise_scaling(self, sigma, noise, latent, max_denoise):
        return sigma * noise + (1.0 - sigma) * latent

    def inverse_noise_scaling(self, sigma, x):
        return x / (1.0 - sigma)


class Discrete(EPS):
    """Stable Diffusion's table; the network is told the nearest whole timestep."""

    def __init__(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        kept = torch.cumprod(1.0 - betas, dim=0)
        self.sigmas = ((1.0 - kept) / kept).sqrt().float()

    def timestep(self, sigma):
        return (sigma.log()[..., None] - self.sigmas.log()).abs().argmin(dim=-1)

    def sigma(self, timestep):
        t = timestep.float().clamp(0, 999)
        low, high = self.sigmas[t.floor().long()].log(), self.sigmas[t.ceil().long()].log()
        return torch.lerp(low, high, t.frac()).exp()


class DiscreteFlow(CONST):
    shift = 3.0

    def __init__(self):
        self.sigmas = self.sigma(torch.arange(1.0, 1001.0))

    def timestep(self, sigma):
        return 1000.0 * sigma

    def sigma(self, timestep):
        t = timestep / 1000.0
        return self.shift * t / (1.0 + (self.shift - 1.0) * t)


class Executor:
    """Calls the wrappers of one kind, outermost first, and then the original."""

    def __init__(self, original, owner, wrappers):
        self.original, self.class_obj, self.wrappers = original, owner, wrappers

    def __call__(self, *args, **named):
        if not self.wrappers:
            return self.original(*args, **named)
        first, *rest = self.wrappers
        return first(Executor(self.original, self.class_obj, rest), *args, **named)


class BaseModel:
    def __init__(self, kind, network):
        self.model_sampling = DiscreteFlow() if kind == "flow" else Discrete()
        self.diffusion_model = network

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, options=None, **c):
        ms, sigma = self.model_sampling, t.reshape(-1, *[1] * (x.ndim - 1))
        time = ms.timestep(t).float()
        out = self.diffusion_model(
            ms.calculate_input(sigma, x), time, context=c_crossattn, transformer_options=options
        )
        return ms.calculate_denoised(sigma, out, x)


class ModelPatcher:
    def __init__(self, model):
        self.model, self.model_options, self.wrappers = model, {"transformer_options": {}}, {}

    def clone(self):
        twin = ModelPatcher(self.model)
        twin.wrappers = {kind: list(pairs) for kind, pairs in self.wrappers.items()}
        return twin

    def get_model_object(self, name):
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, []).append((key, wrapper))

    def get_wrappers(self, kind, key):
        return [wrapper for own, wrapper in self.wrappers.get(kind, []) if own == key]

    def list_wrappers(self, kind):
        return [wrapper for _, wrapper in self.wrappers.get(kind, [])]


class CFGGuider:
    def __init__(self, model_patcher):
        self.model_patcher, self.model_options = model_patcher, model_patcher.model_options
        self.conds, self.cfg = {}, 1.0

    def set_conds(self, positive, negative):
        for name, conds in (("positive", positive), ("negative", negative)):
            self.conds[name] = [{"cross_attn": c, "uuid": object(), **more} for c, more in conds]

    def set_cfg(self, cfg):
        self.cfg = cfg

    def __call__(self, x, sigma, model_options=None, seed=None):
        return self.predict_noise(x, sigma, model_options, seed)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        positive, negative = self.conds["positive"], self.conds["negative"]
        conds = [positive, None if self.cfg == 1.0 else negative]
        cond, uncond = calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return uncond + (cond - uncond) * self.cfg if self.cfg != 1.0 else cond

    def inner_sample(self, noise, latent, device, sampler, sigmas, mask, callback, bar, seed):
        options = {"transformer_options": {"sample_sigmas": sigmas, "patcher": self.model_patcher}}
        extra = {"model_options": options | self.model_options.get("other", {}), "seed": seed}
        return sampler.sample(self, sigmas, extra, callback, noise, latent, mask, bar)

    def outer_sample(self, noise, latent, sampler, sigmas, mask=None, call=None, bar=True, seed=0):
        self.inner_model = self.model_patcher.model
        return self.inner_sample(noise, latent, "cpu", sampler, sigmas, mask, call, bar, seed)

    def sample(self, *args, **named):
        wrappers = self.model_patcher.list_wrappers("outer_sample")
        with torch.inference_mode():
            return Executor(self.outer_sample, self, wrappers)(*args, **named)


TOGETHER = True  # whether memory allows both branches in one batch


def calc_cond_batch(model, conds, x, timestep, model_options):
    """Returns x0 of each list of conditions; zeros for an empty one."""
    options, outputs = model_options["transformer_options"], [torch.zeros_like(x) for _ in conds]
    wanted = [(n, cond) for n, each in enumerate(conds) for cond in each or []][::-1]
    batches = [wanted] if TOGETHER and wanted else [[each] for each in wanted]
    for batch in batches:
        numbers, which = zip(*batch, strict=True)
        mine = options | {"uuids": [c["uuid"] for c in which], "cond_or_uncond": list(numbers)}
        context = torch.cat([c["cross_attn"].expand(len(x), -1, -1) for c in which])
        states, times = torch.cat([x] * len(batch)), torch.cat([timestep] * len(batch))
        apply = Executor(model.apply_model, model, options["patcher"].list_wrappers("apply_model"))
        parts = apply(states, times, None, context, None, mine).chunk(len(batch))
        for number, part in zip(numbers, parts, strict=True):
            outputs[number] += part
    return outputs


class Inpaint:
    """The model that a sampler is given: x0, with the kept part put back on both sides."""

    def __init__(self, guider, noise, latent):
        self.inner_model, self.noise, self.latent = guider, noise, latent

    def __call__(self, x, sigma, denoise_mask, model_options, seed):
        if denoise_mask is not None:
            ms = self.inner_model.inner_model.model_sampling
            s = sigma.reshape(-1, 1, 1, 1)
            kept = ms.noise_scaling(s, self.noise, self.latent, False)
            x = x * denoise_mask + kept * (1.0 - denoise_mask)
        x0 = self.inner_model(x, sigma, model_options, seed)
        if denoise_mask is not None:
            x0 = x0 * denoise_mask + self.latent * (1.0 - denoise_mask)
        return x0


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, guider, sigmas, extra_args, callback, noise, latent, mask=None, bar=True):
        ms = guider.inner_model.model_sampling
        model = Inpaint(guider, noise, latent)
        most = float(ms.sigmas[-1])
        whole = float(sigmas[0]) >= most * (1.0 - 1e-5)
        x = ms.noise_scaling(sigmas[0], noise, latent, whole)
        told = callback and (lambda d: callback(d["i"], d["denoised"], d["x"], len(sigmas) - 1))
        extra = {**extra_args, "denoise_mask": mask}
        x = self.sampler_function(
            model, x, sigmas, extra_args=extra, callback=told, disable=bar, **self.extra_options
        )
        return ms.inverse_noise_scaling(sigmas[-1], x)


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for i, (t, s) in enumerate(pairwise(sigmas)):
        x0 = model(x, t.expand(len(x)), **extra_args)
        if callback:
            callback({"x": x, "i": i, "sigma": t, "sigma_hat": t, "denoised": x0})
        x = x + (s - t) * (x - x0) / t
    return x


def sample_heun(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for t, s in pairwise(sigmas):
        slope = (x - model(x, t.expand(len(x)), **extra_args)) / t
        ahead = x + (s - t) * slope
        if s > 0:
            there = (ahead - model(ahead, s.expand(len(x)), **extra_args)) / s
            ahead = x + (s - t) * (slope + there) / 2
        x = ahead
    return x


class SchedulerHandler(NamedTuple):
    handler: object
    use_ms: bool = True


class ComfyExtension:
    pass


class ComfyNode:
    pass


class NodeOutput(tuple):
    def __new__(cls, *args):
        return super().__new__(cls, args)


class _Kind:
    """`io.Model` and its like: what is declared is kept."""

    Input = staticmethod(lambda name, **facts: (name, facts))
    Output = staticmethod(lambda **facts: facts)


def make_modules(version, input_folder):
    """Returns the modules by name, made new, so that lists start without our names."""
    modules = {name: types.ModuleType(name) for name in MODULES}
    for name in MODULES:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, modules[name])
    kinds = ("Combo", "Conditioning", "Float", "Guider", "Int", "Model", "Sampler", "Sigmas")
    io = types.SimpleNamespace(**dict.fromkeys((*kinds, "String"), _Kind))
    io.ComfyNode, io.NodeOutput, io.Schema = ComfyNode, NodeOutput, types.SimpleNamespace
    parts = {
        "comfy.samplers": {
            "CFGGuider": CFGGuider,
            "KSAMPLER": KSAMPLER,
            "KSAMPLER_NAMES": ["euler", "heun"],
            "SAMPLER_NAMES": ["euler", "heun", "uni_pc"],
            "SCHEDULER_HANDLERS": {},
            "SCHEDULER_NAMES": [],
            "SchedulerHandler": SchedulerHandler,
            "calc_cond_batch": calc_cond_batch,
        },
        "comfy.k_diffusion.sampling": {"sample_euler": sample_euler, "sample_heun": sample_heun},
        "comfy.patcher_extension": {
            "WrappersMP": types.SimpleNamespace(
                OUTER_SAMPLE="outer_sample", APPLY_MODEL="apply_model"
            )
        },
        "comfy_api.latest": {"ComfyExtension": ComfyExtension, "io": io},
        "comfyui_version": {"__version__": version},
        "folder_paths": {"get_input_directory": lambda: str(input_folder)},
    }
    for name, values in parts.items():
        vars(modules[name]).update(values)
    modules["comfy.samplers"].ksampler = lambda name: KSAMPLER(
        getattr(sys.modules["comfy.k_diffusion.sampling"], f"sample_{name}")
    )
    return modules
