"""The first day on a card: every measurement that needs one, most valuable first.

    python experiments/benchmarks/first_day.py results --camvid data/camvid --voc data/voc2012

The steps, in this order:

    quickstart        train the quickstart
    update_bf16       time an update of ResNet-101 in bfloat16 against PyTorch
    update_msc_bf16   the same with multi-scale inputs
    suite             time all cases of network.py's accelerator suite
    same_bits         a killed and resumed run ends with the weights of one in one piece
    crf               time the CRF (needs --voc)
    small_camvid      train the preset small on CamVid (needs --camvid)
    resnet101_camvid  train resnet101_aspp_msc on CamVid (needs --camvid)

A finished step leaves DEST/STEP.json and is not run again, so that the command can be interrupted
and typed again at any time; DEST/STEP.log holds what it printed. A step that fails is named, and
the others run. `--list` prints the commands without running any.
"""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent


@dataclass(frozen=True)
class Args:
    dest: Annotated[Path, tyro.conf.Positional]
    """Folder of the results."""
    camvid: Path | None = None
    """CamVid in VOC layout; steps that train on it are left out without it."""
    voc: Path | None = None
    """Photographs of 375x500 in VOC layout, for the CRF; left out without it."""
    torch_python: str = sys.executable
    """The Python that has torch, to compare with."""
    list: bool = False
    """Only print the commands."""


def steps(args: Args) -> dict[str, str]:
    """Name -> shell command, most valuable first."""
    python, torch = shlex.quote(sys.executable), shlex.quote(args.torch_python)
    scripts, dest = shlex.quote(str(EXPERIMENTS)), shlex.quote(str(args.dest))
    train = f"{python} {scripts}/train_voc.py"
    network = f"{python} {scripts}/benchmarks/network.py --suite accelerator --torch-python {torch}"
    found = {
        "quickstart": f"{train} quickstart --workdir {dest}/quickstart",
        "update_bf16": f'{network} --cases "train resnet101_aspp 321 b10 bf16"',
        "update_msc_bf16": f'{network} --cases "train resnet101_aspp MSC 321 b10 bf16"',
        "suite": network,
        # A killed and resumed run, and one in one piece by the same programs: the same bits.
        "same_bits": (
            f"({train} quickstart --deterministic --workdir {dest}/cut --num-steps 400 "
            f"--save-every 50 & k=$!; until grep -q '\"step\": 100,' {dest}/cut/metrics.jsonl || "
            "! kill -0 $k; do sleep 0.1; done 2>/dev/null; kill -KILL $k; true) && "
            f"{train} quickstart --deterministic --workdir {dest}/cut --num-steps 400 "
            f"--save-every 50 && mkdir -p {dest}/whole && "
            f"cp -r {dest}/cut/programs {dest}/whole && "
            f"{train} quickstart --deterministic --workdir {dest}/whole --num-steps 400 && "
            f"{python} {scripts}/benchmarks/same_weights.py {dest}/whole {dest}/cut"
        ),
    }
    if args.voc is not None:
        data = shlex.quote(str(args.voc))
        found["crf"] = f"{python} {scripts}/benchmarks/crf.py --data {data}"
    if args.camvid is not None:
        data = shlex.quote(str(args.camvid))
        found["small_camvid"] = f"{train} small --data.root {data} --workdir {dest}/small"
        found["resnet101_camvid"] = (
            f"{train} resnet101_aspp_msc --data.root {data} --workdir {dest}/resnet101 "
            "--model.norm trained --num-steps 1500 --optim.learning-rate 0.01 "
            "--optim.classifier-multiplier 0.1 --class-balance 0.5"
        )
    return found


def run(name: str, command: str, dest: Path) -> bool:
    """Runs a step, unless it is done; whether it is done now."""
    record = dest / f"{name}.json"
    if record.exists():
        print(f"{name}: done before")
        return True
    print(f"{name}: {command}", flush=True)
    start = time.monotonic()
    with (dest / f"{name}.log").open("w") as log:
        status = subprocess.run(command, shell=True, stdout=log, stderr=log).returncode
    seconds = round(time.monotonic() - start, 1)
    if status:
        print(f"{name}: ended with status {status} after {seconds} s, see {dest / name}.log")
        return False
    record.write_text(json.dumps({"command": command, "seconds": seconds}) + "\n")
    print(f"{name}: {seconds} s")
    return True


def main(args: Args) -> None:
    args.dest.mkdir(parents=True, exist_ok=True)
    planned = steps(args)
    if args.list:
        print("\n".join(f"{name}: {command}" for name, command in planned.items()))
        return
    failed = [name for name, command in planned.items() if not run(name, command, args.dest)]
    if failed:
        sys.exit(f"not done: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    sys.path.insert(0, str(EXPERIMENTS))
    import cli

    main(cli.parse(Args, __doc__))
