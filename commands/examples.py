"""Two examples for every command, which stand below its help: what it does, and what is typed."""

Pair = tuple[tuple[str, str], tuple[str, str]]

EXAMPLES: dict[str, Pair] = {
    "": (
        ("Draw a grid of images with the network that comes with fewstep", "fewstep sample"),
        ("See what has a name", "fewstep list"),
    ),
    "sample": (
        (
            "Draw eight images of each of ten classes in eight evaluations, with guidance",
            "sample fashion-unet --classes 0-9 --nfe 8 --cfg-scale 1.5",
        ),
        ("Repeat a run from its picture", "sample --from-png samples.png --out again.png"),
    ),
    "list": (
        ("See what can be listed", "fewstep list"),
        ("List the solvers; the recommended ones are marked", "fewstep list solvers"),
    ),
    "data": (
        ("Fetch a data set and check it", "fewstep data fashion-mnist"),
        (
            "Use a file that is already here",
            "fewstep data cifar10 --path cifar-10-python.tar.gz",
        ),
    ),
    "fid": (
        (
            "Measure the FID of a folder of images against a test set",
            "fewstep fid pictures --reference cifar10:test",
        ),
        (
            "Measure several metrics of an archive",
            "fewstep fid images.zip --reference cifar10:test --metrics fid,kid,precision",
        ),
    ),
    "stats": (
        (
            "Measure the statistics of a network, for --solver dpm-solver-v3",
            "fewstep stats fashion-dit --out dit.safetensors",
        ),
        (
            "Try it out with few images",
            "fewstep stats fashion-dit --samples 16 --nodes 12 --out quick.safetensors",
        ),
    ),
    "calibrate": (
        (
            "Find the cheapest cache that changes images by 5 % at most",
            "fewstep calibrate fashion-dit --quality rel-l2=0.05 --out cache.json",
        ),
        (
            "Try only two caches, on a run of 20 evaluations",
            "fewstep calibrate fashion-dit --nfe 20 --cache taylorseer --cache easycache",
        ),
    ),
    "fit": (
        (
            "Fit the weights of linear-ag to a network",
            "fewstep fit linear-ag fashion-dit --cfg-scale 2 --out weights.json",
        ),
        ("See all options of the fit", "fewstep fit linear-ag --help"),
    ),
    "fit linear-ag": (
        (
            "Fit the weights for runs of ten evaluations at guidance scale 2",
            "fewstep fit linear-ag fashion-dit --cfg-scale 2 --out weights.json",
        ),
        (
            "Choose the steps that evaluate both branches",
            "fewstep fit linear-ag emoji --cfg-scale 2 --nfe 4 --mask 1010 --out w.json",
        ),
    ),
    "search": (
        (
            "Search for a schedule of five evaluations for twenty minutes",
            "fewstep search fashion-dit --nfe 5 --budget 20m --out five.json",
        ),
        (
            "Search for schedules of four to eight evaluations under guidance",
            "fewstep search fashion-dit --nfe-range 4-8 --cfg-scale 2 --budget 2h",
        ),
    ),
    "tune": (
        (
            "Find the best settings for one image in 300 milliseconds",
            "fewstep tune fashion-dit --ms 300 --out plan.json",
        ),
        (
            "Find a plan for each number of evaluations, and write a page",
            "fewstep tune fashion-dit --html tune.html",
        ),
    ),
    "compare": (
        (
            "Compare two solvers at five evaluations",
            "fewstep compare emoji --setting nfe=5 --setting 'solver=dpmpp-2m nfe=5'",
        ),
        (
            "Draw the same images with and without guidance",
            "fewstep compare emoji --setting nfe=5 --setting 'nfe=5 cfg-scale=3'",
        ),
    ),
    "invert": (
        (
            "Find the noise of a picture of class 0 and show how well it is restored",
            "fewstep invert shirt.png --class 0 --strip strip.png",
        ),
        (
            "Use another solver and more evaluations",
            "fewstep invert shirt.png --solver fireflow --nfe 60 --out noise.safetensors",
        ),
    ),
    "edit": (
        (
            "Turn a boot into a sneaker",
            "fewstep edit boot.png --from-class 9 --to-class 7 --out sneaker.png",
        ),
        (
            "Use another editor and show picture, reconstruction and edit side by side",
            "fewstep edit boot.png --to-class 7 --editor flow-edit --strip strip.png",
        ),
    ),
    "hub": (
        ("Prepare a pipeline that `save_pretrained` has written", "fewstep hub my-pipeline"),
        ("Prepare a pipeline in another folder", "fewstep hub models/my-pipeline"),
    ),
    "bench": (
        ("Measure what a solver step costs beside diffusers' schedulers", "fewstep bench overhead"),
        (
            "Measure image quality at four and five evaluations",
            "fewstep bench fid-nfe --solver unipc-2 --rival dpmpp-2m --nfe 4,5 --n 200",
        ),
    ),
    "bench inception": (
        ("Compare with the file that the extra `eval` installs", "fewstep bench inception"),
        (
            "Compare with a file of your own",
            "fewstep bench inception --weights inception.pt --repeats 3",
        ),
    ),
    "bench speed": (
        ("Measure everything that the store does not hold yet", "fewstep bench speed"),
        ("Measure only solver steps", "fewstep bench speed --part steps --repeats 10"),
    ),
    "bench scaling": (
        ("Measure every axis and draw the curves", "fewstep bench scaling --plot scaling.png"),
        (
            "Measure only how time grows with the number of steps",
            "fewstep bench scaling --axis steps --repeats 3",
        ),
    ),
    "bench overhead": (
        ("Measure all solvers", "fewstep bench overhead"),
        ("Measure faster and less exactly", "fewstep bench overhead --steps 10 --repeats 3"),
    ),
    "bench search-toy": (
        ("Search schedules of five evaluations", "fewstep bench search-toy --nfe 5"),
        (
            "Search little, to see that it runs",
            "fewstep bench search-toy --candidates 50 --noises 256",
        ),
    ),
    "bench accuracy": (
        ("Measure all solvers on a distribution whose solution is known", "fewstep bench accuracy"),
        (
            "Measure two solvers on a network",
            "fewstep bench accuracy fashion-dit --solver unipc-2 --solver heun --nfe 5-9",
        ),
    ),
    "bench rivals": (
        (
            "Measure the default at five and eight evaluations",
            "fewstep bench rivals fashion-dit --nfe 5,8",
        ),
        (
            "Measure two networks with few images",
            "fewstep bench rivals emoji fashion-dit --noises 8 --store rivals.jsonl",
        ),
    ),
    "bench guidance": (
        (
            "Measure guidance that skips evaluations, at one scale",
            "fewstep bench guidance --model fashion-dit --cfg-scale 2 --plot guidance.png",
        ),
        (
            "Measure one guidance, and print all results",
            "fewstep bench guidance --guidance adaptive --steps 8-12 --table csv",
        ),
    ),
    "bench cache": (
        (
            "Measure caches beside fewer plain steps",
            "fewstep bench cache fashion-dit --plot caches.png",
        ),
        (
            "Measure one cache, and its time in three runs",
            "fewstep bench cache fashion-dit --cache taylorseer --time 3",
        ),
    ),
    "bench fid-nfe": (
        (
            "Measure a solver beside a scheduler of diffusers, and write a page",
            "fewstep bench fid-nfe --solver unipc-2 --rival dpmpp-2m --html report.html",
        ),
        (
            "Measure a searched schedule, 500 images for each figure",
            "fewstep bench fid-nfe --solver five.json --n 500 --store results.jsonl",
        ),
    ),
    "bench table": (
        ("Print the table of a store", "fewstep bench table results.jsonl"),
        (
            "Join two stores into one page",
            "fewstep bench table a.jsonl b.jsonl --html report.html",
        ),
    ),
    "bench command": (
        ("Measure both commands", "fewstep bench command"),
        ("Measure each of them ten times", "fewstep bench command --repeats 10"),
    ),
    "bench gpu": (
        ("Measure everything on a GPU", "fewstep bench gpu --store gpu.jsonl"),
        ("See in a minute that it runs, on a CPU", "fewstep bench gpu --device cpu --tiny"),
    ),
    "bench inversion": (
        ("Measure all kinds of solvers", "fewstep bench inversion"),
        (
            "Measure two solvers on few images",
            "fewstep bench inversion --solver rf-solver --solver uni-inv --images 16",
        ),
    ),
    "bench edit": (
        ("Measure all editors and draw some edits", "fewstep bench edit --strip edits.png"),
        ("Measure one editor", "fewstep bench edit --editor flow-edit --images 16"),
    ),
}


def format_examples(command: str) -> str:
    """Returns the examples of a command as they stand below its help."""
    lines = [f"{purpose}:\n  {line}" for purpose, line in EXAMPLES[command]]
    return "\n".join(["[bold]Examples[/bold]", *lines])
