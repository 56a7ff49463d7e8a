"""The lesson's sampling command: `fluxsmith sample` under the lesson's option names."""

import argparse

from fluxsmith.cli import main

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--config_path", required=True, help="the config the model was trained with")
parser.add_argument("--checkpoint", required=True, help="a checkpoint, or a run's folder")
parser.add_argument("--num_samples", help="number of pictures")
parser.add_argument("--guidance", help="guidance scale; 1 is off")
parser.add_argument("--sampling_steps", help="solver steps")
parser.add_argument("--prompt", action="append", help="what to draw; may be repeated")
parser.add_argument("--seed", help="equal seeds draw equal pictures")
args = parser.parse_args()

command = ["sample", args.checkpoint, "--config", args.config_path]
for option, value in (
    ("--num-samples", args.num_samples),
    ("--guidance", args.guidance),
    ("--steps", args.sampling_steps),
    ("--seed", args.seed),
):
    if value is not None:
        command += [option, value]
for prompt in args.prompt or ():
    command += ["--prompt", prompt]
main(command)
