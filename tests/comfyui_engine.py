"""ComfyUI for the tests: the stand-in of `comfyui_stub`, or the real one.

The real one is in the folder that the environment variable COMFYUI names (docs/comfyui.md). It is
imported without a server, and stays in its process.
"""

import asyncio
import importlib.util
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import comfyui_stub
import torch
from torch import nn

PACK = Path(__file__).parents[1] / "integrations" / "comfyui"
FOLDER = os.environ.get("COMFYUI")
CONDITION, NOTHING = torch.ones(1, 1, 4), torch.zeros(1, 1, 4)


class Gaussian(nn.Module):
    """The exact network for data that are normal with mean .3 m and variance .25.

    m is the mean of the condition. It answers with eps, or with the velocity eps - x0, told 1000
    sigma or a label of Stable Diffusion's table.
    """

    def __init__(self, kind="flow", **_):
        super().__init__()
        self.kind, self.dtype, self.rows = kind, torch.float32, 0
        self.table = comfyui_stub.Discrete().sigmas
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, context=None, control=None, transformer_options=None, **_):
        self.rows += len(x)
        flow = self.kind == "flow"
        kappa = None if flow else self.table[t.long()]
        sigma = t / 1000.0 if flow else kappa / (1.0 + kappa**2).sqrt()
        alpha = 1.0 - sigma if flow else 1.0 / (1.0 + kappa**2).sqrt()
        sigma, alpha = (each.reshape(-1, 1, 1, 1) for each in (sigma, alpha))
        mean = 0.3 * context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        gap = (x - alpha * mean) / (0.25 * alpha**2 + sigma**2)
        x0 = mean + 0.25 * alpha * gap
        return sigma * gap - x0 if flow else sigma * gap


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp, self.calls = nn.Linear(width, width), 0

    def forward(self, tokens, vec):
        self.calls += 1
        return tokens + torch.tanh(self.mlp(tokens + vec))


class Blocks(nn.Module):
    """A small transformer of four blocks; it is no class that fewstep knows."""

    def __init__(self, **_):
        super().__init__()
        torch.manual_seed(0)
        self.dtype = torch.float32
        self.blocks = nn.ModuleList([Block(8) for _ in range(4)])
        self.enter, self.leave = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **_):
        vec = (timestep / 1000.0).reshape(-1, 1, 1) + context.mean(dim=(1, 2)).reshape(-1, 1, 1)
        tokens = self.enter(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, vec)
        return self.leave(tokens).transpose(1, 2).reshape(x.shape)

    def count(self):
        return sum(block.calls for block in self.blocks)


class Engine:
    """The parts that both engines have; `nodes` are all nodes by id."""

    @property
    def samplers(self):
        return sys.modules["comfy.samplers"]

    def call(self, node, **inputs):
        """Returns the outputs of one of our nodes."""
        return tuple(self.nodes[node].execute(**inputs)[k] for k in range(self.count(node)))

    def count(self, node):
        return len(self.nodes[node].define_schema().outputs)

    def guide(self, model, scale, positive=CONDITION):
        """Returns ComfyUI's own guider."""
        guider = self.samplers.CFGGuider(model)
        guider.set_conds([[positive, {}]], [[NOTHING, {}]])
        guider.set_cfg(scale)
        return guider

    def draw(self, guider, sampler, sigmas, rows=2, seed=7, mask=None, told=None):
        """Returns the latents that a custom sampler draws."""
        noise = torch.randn(rows, 4, 4, 4, generator=torch.manual_seed(seed))
        latent = torch.zeros_like(noise)
        return guider.sample(noise, latent, sampler, sigmas, mask, told, True, seed)


class StandIn(Engine):
    real = False

    def __init__(self, monkeypatch, folder, version="0.3.75"):
        for name, module in comfyui_stub.make_modules(version, folder).items():
            monkeypatch.setitem(sys.modules, name, module)
        name = "fewstep_comfyui_pack"
        spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py")
        self.pack = importlib.util.module_from_spec(spec)
        for known in [each for each in sys.modules if each.startswith(name)]:
            monkeypatch.delitem(sys.modules, known)
        monkeypatch.setitem(sys.modules, name, self.pack)
        spec.loader.exec_module(self.pack)
        extension = asyncio.run(self.pack.comfy_entrypoint())
        found = asyncio.run(extension.get_node_list())
        self.nodes = {node.define_schema().node_id: node for node in found}

    def model(self, kind, network):
        return comfyui_stub.ModelPatcher(comfyui_stub.BaseModel(kind, network.eval()))

    def part_branches(self, monkeypatch, apart=True):
        """Lets no memory be left for both branches in one batch, or enough."""
        monkeypatch.setattr(comfyui_stub, "TOGETHER", not apart)

    def run(self, graph, outside):
        """Returns the latents that a graph keeps; `outside` are the nodes of others."""
        done = {}

        def find(value):
            if not isinstance(value, list):
                return value
            node, output = value
            if node not in done:
                done[node] = make(graph[node])
            return done[node][output]

        def make(node):
            inputs = {name: find(value) for name, value in node["inputs"].items()}
            if node["class_type"] in self.nodes:
                return self.call(node["class_type"], **inputs)
            return outside[node["class_type"]](**inputs)

        return [
            find([name, 0])
            for name, node in graph.items()
            if node["class_type"] == "FewstepTestKeep"
        ]


class _Refused(types.ModuleType):
    """A module that ComfyUI imports and these tests do not use."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"{self.__name__}.{name} is not there")


def _refuse(name):
    module = _Refused(name)
    module.__spec__, module.__path__ = ModuleSpec(name, None), []
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent:
        vars(sys.modules[parent])[child] = module


class Real(Engine):
    real = True

    def __init__(self):
        import diffusers  # noqa: F401  # before torchvision is refused
        import transformers  # noqa: F401

        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            _refuse(name)
        for name in ("torchaudio", "torchaudio.transforms", "torchaudio.functional"):
            _refuse(name)
        sys.path.insert(0, FOLDER)
        argv, sys.argv = sys.argv, ["main.py", "--cpu"]
        try:
            import comfy.options

            comfy.options.enable_args_parsing()
            import execution
            import nodes
        finally:
            sys.argv = argv
        self.execution, self.nodes = execution, nodes.NODE_CLASS_MAPPINGS
        assert asyncio.run(nodes.load_custom_node(str(PACK)))
        custom = Path(FOLDER) / "comfy_extras" / "nodes_custom_sampler.py"
        assert asyncio.run(nodes.load_custom_node(str(custom), module_parent="comfy_extras"))
        self.pack = sys.modules[str(PACK).replace(".", "_x_")]

    def model(self, kind, network):
        from comfy import latent_formats, model_base, model_patcher, supported_models_base

        class Latents(latent_formats.LatentFormat):
            scale_factor, latent_channels = 1.0, 4

        class Config(supported_models_base.BASE):
            unet_config: dict = {}  # noqa: RUF012
            latent_format = Latents
            memory_usage_factor = 1.0
            sampling_settings = {"shift": 3.0} if kind == "flow" else {}

        wanted = {"flow": model_base.ModelType.FLOW, "eps": model_base.ModelType.EPS}[kind]
        model = model_base.BaseModel(
            Config({}), wanted, device="cpu", unet_model=lambda **_: network
        )
        cpu = torch.device("cpu")
        return model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    def draw(self, *args, **named):
        with torch.inference_mode():
            return super().draw(*args, **named)

    def part_branches(self, monkeypatch, apart=True):
        memory = sys.modules["comfy.model_management"]
        monkeypatch.setattr(memory, "get_free_memory", lambda *_, **__: 0 if apart else 1e12)

    def run(self, graph, outside):
        kept = []
        for name, function in outside.items():
            if name.startswith("FewstepTest"):
                self.nodes[name] = _make_node(name, function, kept)
        server = types.SimpleNamespace(
            client_id=None, last_node_id=None, last_prompt_id=None, send_sync=lambda *_: None
        )
        name = f"test {id(kept)}"
        outputs = [key for key, node in graph.items() if node["class_type"] == "FewstepTestKeep"]
        valid = asyncio.run(self.execution.validate_prompt(name, graph, None))
        assert valid[0], valid
        runner = self.execution.PromptExecutor(
            server,
            cache_type=self.execution.CacheType.CLASSIC,
            cache_args={"lru": 0, "ram": 0},
        )
        runner.execute(graph, name, {}, outputs)
        errors = [facts for kind, facts in runner.status_messages if kind == "execution_error"]
        assert runner.success, errors
        return kept


def _make_node(name, function, kept):
    """Returns a node of ComfyUI's first kind from a function that returns a tuple."""
    types_of = {
        "FewstepTestLoader": ({}, ("MODEL", "CLIP", "VAE")),
        "FewstepTestCondition": ({"empty": ("BOOLEAN",)}, ("CONDITIONING",)),
        "FewstepTestKeep": ({"samples": ("LATENT",)}, ()),
    }
    inputs, outputs = types_of[name]

    def run(self, **given):
        results = function(**given)
        if not outputs:
            kept.extend(results)
        return results if outputs else {}

    return type(
        name,
        (),
        {
            "INPUT_TYPES": classmethod(
                lambda cls: {"required": dict.fromkeys(inputs, ("LATENT",))}
            ),
            "RETURN_TYPES": outputs,
            "FUNCTION": "run",
            "CATEGORY": "test",
            "OUTPUT_NODE": not outputs,
            "run": run,
        },
    )
