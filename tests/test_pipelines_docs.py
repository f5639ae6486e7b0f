"""The examples of docs/pipelines.md on tiny networks, and the tables of pipeline-support.md."""

import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import diffusers.utils
import pytest
import tiny_pipes

from fewstep import SolverScheduler
from fewstep.models import pipeline_network

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "pipelines.md").read_text()
SUPPORT = (ROOT / "docs" / "pipeline-support.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
EXAMPLES = [block for block in BLOCKS if "from_pretrained" in block]
TINY_OF = {pipe.cls: name for name, pipe in tiny_pipes.PIPES.items() if name != "sd-v"}


def test_every_pipeline_that_reads_sigmas_stands_in_the_table():
    folder = Path(diffusers.__file__).parent / "pipelines"
    sources = [file.read_text(encoding="utf-8") for file in folder.rglob("*.py")]
    readers = {
        name
        for source in sources
        if "scheduler.sigmas" in source
        for name in re.findall(r"^class (\w+)\(", source, re.MULTILINE)
        if not name.endswith("Output")
    }
    (section,) = re.findall(r"## Pipelines that read .*?\n(?=##)", SUPPORT, re.DOTALL)
    named = set(re.findall(r"\w+(?:Pipeline\w*|Refiner)", section))
    assert len(readers) > 20
    assert readers == named


def test_every_pipeline_that_slices_its_timesteps_stands_in_the_table():
    """Of those that do not tell the scheduler where they begin."""
    folder = Path(diffusers.__file__).parent / "pipelines"
    sources = [file.read_text(encoding="utf-8") for file in folder.rglob("*.py")]
    sliced = re.compile(r"timesteps\[(?!:1\])[^\]\n]*:[^\]\n]*\]")
    classes = {
        name
        for source in sources
        if sliced.search(source) and "set_begin_index" not in source
        for name in re.findall(r"^class (\w+)\(", source, re.MULTILINE)
        if not name.endswith("Output")
    }
    (section,) = re.findall(
        r"## Pipelines that choose .*?(?=\nPipelines that call)", SUPPORT, re.DOTALL
    )
    assert len(classes) > 30
    assert classes == set(re.findall(r"\w+Pipeline\w*", section))


class Stand:
    """A pipeline that is asked with a prompt and answers pictures, as the real one."""

    def __init__(self, name: str) -> None:
        self.name, self.pipe = name, tiny_pipes.pipeline(name)

    @property
    def scheduler(self):
        return self.pipe.scheduler

    @scheduler.setter
    def scheduler(self, made) -> None:
        self.pipe.scheduler = made

    def __call__(self, prompt: str, **own) -> SimpleNamespace:
        assert prompt == "a cat"
        made = tiny_pipes.call(self.name, self.pipe, **own)
        assert made.isfinite().all()
        steps = own["num_inference_steps"]
        assert type(self.scheduler) is SolverScheduler
        assert self.scheduler.num_inference_steps == steps
        picture = SimpleNamespace(save=lambda path: None)
        return SimpleNamespace(images=[picture], frames=[made])


def example_of(cls: str) -> str:
    (found,) = [
        block for block in EXAMPLES if f"{cls}.from_pretrained" in block and "made" in block
    ]
    return found


@pytest.mark.parametrize("cls", re.findall(r"### .*?(\w+Pipeline)\.from", TEXT, re.DOTALL))
def test_every_example_runs(cls, monkeypatch):
    name = TINY_OF[cls]
    monkeypatch.setattr(getattr(diffusers, cls), "from_pretrained", lambda hub, **own: Stand(name))
    monkeypatch.setattr(diffusers.utils, "export_to_video", lambda frames, path: None)
    code = example_of(cls)
    exec(compile(code, cls, "exec"), {})
    assert len(list(filter(None, code.splitlines()))) <= 11


@pytest.mark.parametrize("page", ["README.md", "docs/pipelines.md", "docs/quickstart.md"])
def test_the_first_example_runs(page, monkeypatch):
    stand = Stand("sd")
    cls = diffusers.StableDiffusionPipeline
    monkeypatch.setattr(cls, "from_pretrained", lambda hub: stand)
    text = (ROOT / page).read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(compile(code, page, "exec"), {})
    assert stand.scheduler.nfe == 8


def test_the_sampler_example_runs(monkeypatch, tmp_path):
    (code,) = [block for block in EXAMPLES if "Sampler.from_pipeline" in block]
    pipe = tiny_pipes.pipeline("sd3", **tiny_pipes.vae())
    monkeypatch.setattr(diffusers.StableDiffusion3Pipeline, "from_pretrained", lambda hub: pipe)
    texts = {key: value for key, value in tiny_pipes.PIPES["sd3"].call.items() if "embeds" in key}
    plain = pipeline_network.encoded
    monkeypatch.setattr(
        pipeline_network, "encoded", lambda pipe, size, **_: plain(pipe, size, **texts)
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("=1024", "=16"), "sampler", "exec"), {})
    assert (tmp_path / "cat.png").is_file()
