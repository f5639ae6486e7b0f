"""Editors and the V that RF-Edit carries over: keys, bytes, hooks, formulas, refusals."""

from dataclasses import replace

import pytest
import torch
from laws import MIXTURE
from safetensors.torch import load_file
from tiny import TINY, inputs
from tiny import network as tiny
from torch import nn
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.experiments.editing import ClassEdits, Edited, lines
from fewstep.models.adapters import from_module
from fewstep.models.architectures import BY_CLASS, FLUX, HUNYUAN_VIDEO, known_classes
from fewstep.models.attention import (
    Mode,
    Tape,
    ValueStorage,
    find_projections,
    holds_text,
)
from fewstep.models.errors import FewstepError, ModelError, SettingError
from fewstep.models.schedule import RectifiedFlow, VPLinear
from fewstep.samplers.editing import Editor, editor, list_editors, names, take_editor
from fewstep.samplers.editing.rf_edit import list_shared_places
from fewstep.samplers.editing.rf_inversion import RFInversion
from fewstep.samplers.editing.uni_edit import _make_mask
from fewstep.samplers.guidance import CFG
from fewstep.samplers.inversion import invert, reconstruct
from fewstep.samplers.inversion_plan import CLEAN, plan_inversion
from fewstep.samplers.sampler import Sampler

IMAGE = torch.sin(torch.arange(256.0)).reshape(2, 2, 8, 8)
FACTS = {"num_classes": 10, "null_class": 10, "shape": (2, 8, 8)}
QUICK = {
    "flow-edit": "flow-edit:steps=6,n_max=4",
    "rf-inversion": "rf-inversion:steps=8",
    "sdedit": "sdedit:steps=6",
}


def dit(schedule=None, prediction="flow", **facts):
    module = tiny("dit")
    facts = {**FACTS, **facts}
    return Sampler(
        from_module(
            module,
            schedule=schedule or RectifiedFlow(time_scale=1000),
            prediction=prediction,
            **facts,
        )
    )


def edited(spec, sampler=None, image=IMAGE, source=3, target=6, **more):
    return Editor(sampler or dit(), spec)(image, source=source, target=target, **more)


def hooks(sampler):
    return sum(len(each._forward_hooks) for each in sampler.network.module.modules())


def test_inject_0_is_inversion_and_sampling():
    """To the bit."""
    sampler = dit()
    there = invert(sampler, IMAGE, steps=6, class_labels=3)
    plain = reconstruct(sampler, there, class_labels=6, guidance=CFG(2.0)).samples
    assert torch.equal(edited("rf-edit:steps=6,inject=0", sampler).samples, plain)
    assert not torch.equal(edited("rf-edit:steps=6,inject=1", sampler).samples, plain)


@pytest.mark.parametrize(("solver", "slack"), [("fireflow", 1), ("uni-inv", 1), ("rf-solver", 1.1)])
def test_full_injection_of_the_same_condition_reconstructs_no_worse(solver, slack):
    """Where both ways meet at the same nodes. Half of RF-Solver's V comes from the other end of
    its interval, as published, which on these random weights costs a little.
    """

    def off(inject):
        spec = f"rf-edit:solver={solver},steps=12,inject={inject},guidance=1,layers=[0,1,2,3]"
        return float((edited(spec, target=3).samples - IMAGE).square().mean())

    assert off(12) <= slack * off(0)


@pytest.mark.parametrize(
    ("solver", "inject", "places"),
    [
        ("rf-solver", 2, {(0, 0), (0, 1), (1, 0), (1, 1)}),
        ("fireflow", 1, {(0, 0)}),  # the first velocity of the edit has no partner
        ("fireflow", 2, {(0, 0), (1, 0)}),
        ("uni-inv", 2, {(0, 0), (1, 0)}),
        ("rf-solver", 0, set()),
    ],
)
def test_places_are_those_that_both_ways_have(solver, inject, places):
    assert list_shared_places(plan_inversion(dit().network, solver, steps=5), inject) == places


def test_uni_inv_with_all_steps_leaves_out_its_first_velocity():
    way = plan_inversion(dit().network, "uni-inv", steps=3)
    assert way.calls() == ([2, 1, 1], [1, 1, 1])
    assert list_shared_places(way, 3) == {(0, 0), (1, 0), (2, 0)}


def watched_places(spec, monkeypatch):
    """What an edit records and uses: ("rec" or "use", key, time)."""
    seen, sampler, now = [], dit(), []
    forward, keep, fetch = sampler.network.forward, Tape._keep, Tape._fetch

    def watched(x, node, conditions):
        now[:] = [round(node.t, 3)]
        return forward(x, node, conditions)

    monkeypatch.setattr(
        Tape, "_keep", lambda s, k, v: (seen.append(("rec", k, *now)), keep(s, k, v))[1]
    )
    monkeypatch.setattr(
        Tape, "_fetch", lambda s, k, o: (seen.append(("use", k, *now)), fetch(s, k, o))[1]
    )
    object.__setattr__(sampler.network, "forward", watched)
    edited(spec, sampler)
    return seen


def test_v_is_recorded_at_the_nodes_that_the_spec_says(monkeypatch):
    """Of the last interval of the inversion: its clean end, then its middle; used at its noisy
    end, then its middle."""
    spec = "rf-edit:steps=4,inject=1,grid=uniform,guidance=1,layers=[2]"
    assert watched_places(spec, monkeypatch) == [
        ("rec", (0, 1, 2), 0.75),
        ("rec", (0, 0, 2), 0.875),
        ("use", (0, 1, 2), 1.0),
        ("use", (0, 0, 2), 0.875),
    ]


@pytest.mark.parametrize("solver", ["fireflow", "uni-inv"])
def test_v_of_the_cheap_solvers_meets_its_own_node(solver, monkeypatch):
    """In every interval; FireFlow's velocity at either end of the grid has no partner."""
    spec = f"rf-edit:solver={solver},steps=3,inject=3,grid=uniform,guidance=1,layers=[2]"
    seen = watched_places(spec, monkeypatch)
    recorded, used = ({k: t for d, k, t in seen if d == did} for did in ("rec", "use"))
    assert recorded == used
    assert len(used) == 3


def test_bytes_are_those_of_the_formula_and_are_freed():
    """2 stages, 3 steps, 2 layers, 2 images, 16 tokens, 16 wide, float32; hooks are taken off."""
    sampler, tapes = dit(), []
    plain = Tape.check
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tape, "check", lambda self: (tapes.append(self), plain(self)))
        found = edited("rf-edit:steps=5,inject=3", sampler)
    expected = 2 * 3 * 2 * 2 * 16 * 16 * 4
    assert (found.bytes_predicted, found.bytes_held) == (expected, expected)
    assert tapes[0].values == {}
    assert len(tapes[0].used) == len(tapes[0].recorded) == 12
    assert hooks(sampler) == 0


def test_runs_are_independent_also_after_a_failure():
    sampler = dit()
    first = edited("rf-edit:steps=4", sampler).samples
    assert torch.equal(edited("rf-edit:steps=4", sampler).samples, first)
    forward, calls = sampler.network.forward, []

    def failing(x, node, conditions):
        calls.append(node)
        if len(calls) == 11:  # in the middle of the way back
            raise RuntimeError("out of memory")
        return forward(x, node, conditions)

    object.__setattr__(sampler.network, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        edited("rf-edit:steps=4", sampler)
    assert hooks(sampler) == 0
    object.__setattr__(sampler.network, "forward", forward)
    assert torch.equal(edited("rf-edit:steps=4", sampler).samples, first)


def test_images_do_not_depend_on_the_batch():
    both = edited("rf-edit:steps=4").samples
    one = edited("rf-edit:steps=4", image=IMAGE[1:]).samples
    torch.testing.assert_close(both[1:], one, atol=1e-4, rtol=1e-4)


def test_v_of_other_lengths_is_refused():
    module = tiny("flux")
    taps = find_projections(module)
    tape = Tape(taps, {(0, 0)})
    longer = inputs("flux")
    longer["encoder_hidden_states"] = torch.zeros(2, 7, 12)
    longer["txt_ids"] = torch.zeros(7, 3)
    with tape.on():
        tape.mode, tape.place = Mode.RECORD, (0, 0)
        module(**inputs("flux"))
        tape.mode = Mode.REPLACE
        with pytest.raises(SettingError, match=r"21 tokens.*23.*pad the shorter"):
            module(**longer)


def test_tape_that_saw_nothing_says_so():
    tape = Tape(find_projections(tiny("dit")), {(0, 0)})
    with pytest.raises(ModelError, match="0 were recorded"):
        tape.check()


TAPPED = [name for name in TINY if BY_CLASS[TINY[name].cls].attention]


def test_every_known_attention_is_tapped():
    tried = {TINY[name].cls for name in TAPPED}
    assert tried == set(known_classes(lambda card: card.attention))


@pytest.mark.parametrize("name", TAPPED)
def test_v_put_back_gives_the_same_answer_and_other_v_another(name):
    """Record at one call, put back at the same: nothing changes; at another: something does."""
    module = tiny(name)
    tape = Tape(find_projections(module), {(0, 0)})
    plain, other = (module(**inputs(name, step=step))[0] for step in (3, 4))
    with tape.on():
        tape.place = (0, 0)
        for step, expected in ((3, plain), (4, None)):
            tape.mode = Mode.RECORD
            module(**inputs(name, step=3))
            tokens = {value.shape[1] for value in tape.values.values()}
            # images have even numbers of tokens here, and texts five
            assert {count % 2 == 1 for count in tokens} == {holds_text(module)}
            tape.mode = Mode.REPLACE
            out = module(**inputs(name, step=step))[0]
            assert not tape.values  # each is dropped when it has been used
            assert expected is None or torch.equal(out, expected)
            assert expected is not None or not torch.allclose(out, other)
    assert torch.equal(module(**inputs(name, step=4))[0], other)


def test_fused_projections_are_tapped_too():
    module = tiny("flux")
    module.fuse_qkv_projections()
    (tap,) = find_projections(module)
    assert tap.module.weight.shape[0] == 3 * tap.width
    tape, plain = Tape([tap], {(0, 0)}), module(**inputs("flux"))[0]
    with tape.on():
        tape.place = (0, 0)
        tape.mode = Mode.RECORD
        module(**inputs("flux"))
        assert tape.values[0, 0, 1].shape == (2, 21, 16)
        tape.mode = Mode.REPLACE
        assert torch.equal(module(**inputs("flux"))[0], plain)


def test_guided_rows_take_the_v_of_their_image():
    module = tiny("dit")
    tape = Tape(find_projections(module), {(0, 0)}, ValueStorage.CPU)
    call = inputs("dit")
    doubled = {k: torch.cat([v, v]) for k, v in call.items() if k != "return_dict"}
    with tape.on():
        tape.place, tape.mode = (0, 0), Mode.RECORD
        out = module(**call)[0]
        tape.mode = Mode.REPLACE
        both = module(**doubled, return_dict=False)[0]
    torch.testing.assert_close(both, torch.cat([out, out]))


def test_published_layers():
    """Flux single blocks 20 to 37 of 38, HunyuanVideo 21 to 39 of 40."""
    assert FLUX.attention.default_layers(38) == tuple(range(20, 38))
    assert HUNYUAN_VIDEO.attention.default_layers(40) == tuple(range(21, 40))


def test_layers_can_be_chosen():
    assert [tap.layer for tap in find_projections(tiny("dit"))] == [2, 3]
    assert [tap.layer for tap in find_projections(tiny("dit"), [3, 0])] == [0, 3]
    for wrong in ([4], [-1], [1, 1], []):
        with pytest.raises(SettingError, match=r"network has 0 .* 3 .transformer_blocks\.3\.attn1"):
            find_projections(tiny("dit"), wrong)


def test_networks_without_self_attention_are_refused():
    class Plain(nn.Module):
        def forward(self, x, time):
            return x

    bare = tiny(
        "unet",
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        add_attention=False,
    )
    for module, why in ((bare, "no self-attention"), (Plain(), "Plain"), (None, "plain function")):
        with pytest.raises(FewstepError, match=why):
            find_projections(module)
    law = Sampler(MIXTURE.network(RectifiedFlow(), (2, 1, 2)))
    with pytest.raises(ModelError, match="flow-edit"):
        Editor(law, "rf-edit:guidance=1")(torch.zeros(1, 2, 1, 2))


@pytest.mark.parametrize("name", names())
def test_same_condition_and_no_guidance_keeps_the_image(name):
    """Every editor has settings with which an edit to what is there already changes little."""
    spec = {
        "rf-edit": "rf-edit:steps=20,guidance=1",
        "uni-edit": "uni-edit:steps=20,omega=0",
        "rf-inversion": "rf-inversion:eta=1,stop=1,steps=20",
        "flow-edit": "flow-edit:steps=6,n_max=4,guidance=1,source_guidance=1",
        "sdedit": "sdedit:strength=0.01,steps=100,grid=logsnr",
    }[name]
    found = edited(spec, target=3).samples
    torch.testing.assert_close(found, IMAGE, atol=0.05, rtol=0)
    assert not torch.allclose(edited(QUICK.get(name, name)).samples, IMAGE, atol=0.05)


def test_evaluations_of_each_editor():
    """Spec 7: RF-Solver 2 S each way, FlowEdit 2 n_avg (n_max - n_min) + n_min; guidance doubles
    rows."""
    cost = {}
    specs = {
        "rf-edit": "rf-edit:steps=5",
        "fireflow": "rf-edit:solver=fireflow,steps=8,inject=1",
        "uni-edit": "uni-edit:steps=10,alpha=0.6",
        "flow-edit": "flow-edit:steps=8,n_max=6,n_min=2,n_avg=3,guidance=1,source_guidance=1",
        "rf-inversion": "rf-inversion:steps=7",
        "sdedit": "sdedit:steps=10,strength=0.5,guidance=2",
    }
    for name, spec in specs.items():
        ledger = edited(spec).ledger
        cost[name] = ledger.nfe, ledger.rows / 2
    assert cost == {
        "rf-edit": (20, 30),
        "fireflow": (18, 27),
        "uni-edit": (7 + 12, 19),
        "flow-edit": (2 * 3 * 4 + 2, 26),
        "rf-inversion": (14, 14),
        "sdedit": (5, 10),
    }


def test_seeds_decide_where_noise_is_drawn():
    for spec in QUICK.values():
        first, again = (edited(spec, seeds=[7, 8]).samples for _ in range(2))
        assert torch.equal(first, again)
        assert not torch.equal(edited(spec, seeds=[7, 9]).samples[1], first[1])
        torch.testing.assert_close(edited(spec, seeds=[7, 9]).samples[0], first[0])
        assert editor(spec.partition(":")[0]).info.random
    with pytest.raises(SettingError, match="1 seeds for 2 images"):
        edited("flow-edit", seeds=[1])


def test_flow_edit_is_its_formula():
    """One step from t to s: z + (s - t) (v_target - v_source) at x_source noised alike."""
    sampler = dit()
    spec = "flow-edit:steps=2,n_max=1,guidance=1,source_guidance=1,grid=uniform"
    found = edited(spec, sampler, seeds=[4, 5]).samples
    eps = torch.stack(
        [torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(s)) for s in (4, 5)]
    )
    noised = 0.5 * IMAGE + 0.5 * eps
    node = sampler.network.schedule.at(0.5)
    v = [
        sampler.network.forward(noised, node, {"class_labels": torch.full((2,), label)})
        for label in (6, 3)
    ]
    expected = IMAGE + (CLEAN - 0.5) * (v[0] - v[1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_uni_edit_mask_runs_from_0_to_1_in_each_image():
    g = (
        torch.sin(torch.arange(96.0)).reshape(2, 3, 4, 4)
        * torch.tensor([1.0, 9.0])[:, None, None, None]
    )
    m = _make_mask(g)
    assert m.shape == (2, 1, 4, 4)
    for row in m:
        assert float(row.min()) == 0.0
        assert float(row.max()) == pytest.approx(1.0, abs=1e-5)


def test_uni_edit_is_its_formula():
    """The last of two steps alone, from the state that Uni-Inv reaches."""
    sampler = dit()
    found = edited("uni-edit:steps=2,alpha=0.5,omega=3,grid=uniform", sampler).samples
    there = invert(sampler, IMAGE, solver="uni-inv", grid=[0.5, CLEAN], class_labels=3)
    node, x = there.route.grid.nodes[0], there.noise
    source, target = (
        sampler.network.forward(x, node, {"class_labels": torch.full((2,), label)})
        for label in (3, 6)
    )
    g, h = target - source, CLEAN - 0.5
    m = _make_mask(g)
    expected = x + 3 * h * (1 + m) * g + h * (m * target + (1 - m) * source)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_uni_edit_runs_the_steps_next_to_the_data():
    sampler, seen = dit(), []
    forward = sampler.network.forward

    def watched(x, node, conditions):
        seen.append(round(node.t, 3))
        return forward(x, node, conditions)

    object.__setattr__(sampler.network, "forward", watched)
    edited("uni-edit:steps=5,alpha=0.6,grid=uniform", sampler)
    assert seen == [0.0, 0.2, 0.4, 0.6, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2]
    with pytest.raises(SettingError, match="leaves none"):
        edited("uni-edit:steps=5,alpha=0.1")


def test_rf_inversion_pull_is_where_the_settings_say():
    settings = RFInversion(eta=0.8, start=0.25, stop=0.75, decay=1.0, steps=8)
    found = [settings._compute_eta(i) for i in range(8)]
    assert found == pytest.approx([0, 0, 0.8 * 0.75, 0.8 * 0.625, 0.8 * 0.5, 0.8 * 0.375, 0, 0])


def test_eps_networks_take_rf_edit_and_no_flow_editor():
    sampler = dit(VPLinear(time_scale=999.0), "eps")
    found = edited("rf-edit:solver=ddim,steps=6", sampler)
    assert found.samples.isfinite().all()
    for name in ("flow-edit", "uni-edit", "rf-inversion"):
        with pytest.raises(SettingError, match="needs a velocity"):
            Editor(sampler, name)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("rf-edti", "did you mean 'rf-edit'"),
        ("rf-edit:injct=1", "did you mean 'inject'"),
        ("rf-edit:inject=-1", "inject"),
        ("rf-edit:steps=4,inject=5", "more than the 4 steps"),
        ("rf-edit:solver=sa-solver", "adds noise"),
        ("rf-edit:store=disk", "store"),
        ("flow-edit:n_max=99", "n_min <= n_max <= steps"),
        ("uni-edit:alpha=2", "alpha"),
        ("sdedit:strength=0", "strength"),
        ("sdedit:strength=0.01", "leaves none of 20 steps"),
        ("sdedit:solver=ode-bosh3", "chooses its own steps"),
    ],
)
def test_bad_settings_are_refused(spec, match):
    with pytest.raises(FewstepError, match=match):
        edited(spec)


def test_bad_images_and_classes_are_refused():
    unconditional = Sampler(replace(dit().network, num_classes=0, null_class=None, needs=()))
    with pytest.raises(SettingError, match="has no classes"):
        edited("rf-edit", unconditional)
    no_null = dit(null_class=None)
    with pytest.raises(SettingError, match="set the guidance of the editor to 1"):
        edited("rf-edit", no_null)
    with pytest.raises(SettingError, match="class 11"):
        edited("rf-edit", target=11)
    with pytest.raises(SettingError, match="NaN"):
        edited("rf-edit", image=IMAGE * torch.nan)
    with pytest.raises(SettingError, match="shape"):
        edited("rf-edit", image=IMAGE[..., :4])


def test_list_of_editors_names_all_settings():
    rows = {row[0]: row for row in list_editors()}
    assert (
        rows.keys() - {"editor"}
        == set(names())
        == {"flow-edit", "rf-edit", "rf-inversion", "sdedit", "uni-edit"}
    )
    assert "inject=2" in rows["rf-edit"][2]
    assert take_editor("rf-edit:layers=[1,2]").layers == (1, 2)


def test_table_of_edits():
    found = Edited("rf-edit", 0.75, 0.1234, 60, 90, IMAGE)
    assert "| rf-edit | 75.0% | 0.123 | 60 | 90 |" in list(lines([found], "lpips"))


def test_the_distance_of_edits_is_checked_before_a_network_or_images_are_looked_for():
    for distance, match in (
        ("fid", "compares sets of images; take one of lpips"),
        ("lpip", "lpips"),
    ):
        with pytest.raises(FewstepError, match=match):
            ClassEdits(model="nowhere", data="nowhere", distance=distance).run()


@pytest.fixture
def picture(tmp_path):
    from PIL import Image

    path = tmp_path / "dress.png"
    Image.linear_gradient("L").resize((32, 32)).save(path)
    return path


def test_commands_write_what_they_say(picture, tmp_path):
    run, out = CliRunner(), tmp_path
    args = ["invert", str(picture), "--class", "3", "--steps", "2"]
    args += ["--out", str(out / "n.safetensors"), "--strip", str(out / "back.png")]
    done = run.invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "NFE 4" in done.output
    assert "PSNR" in done.output
    args = ["edit", str(picture), "--from-class", "3", "--to-class", "6"]
    args += ["--editor", "rf-edit:steps=2,inject=1", "--out", str(out / "e.png")]
    done = run.invoke(app, [*args, "--strip", str(out / "strip.png"), "--quiet"])
    assert (done.exit_code, done.output) == (0, "")
    assert {path.name for path in out.iterdir()} == {
        *("dress.png", "n.safetensors", "back.png", "e.png", "strip.png"),
    }
    assert load_file(out / "n.safetensors")["noise"].shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--editor", "rf-edti"], "did you mean 'rf-edit'"),
        (["--model", "fashion-unet", "--editor", "flow-edit"], "needs a velocity"),
        (["--to-class", "12"], "class 12 does not exist"),
        (["--out", "nowhere/e.png"], "does not exist"),
        (["--seed", "-1"], "'--seed'"),
    ],
)
def test_commands_refuse_in_one_line(args, match, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["edit", str(picture), "--to-class", "6", *args])
    assert done.exit_code == 2
    assert match in done.output
    assert done.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["dress.png"]
