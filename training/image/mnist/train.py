"""The lesson's training command: `fluxsmith train` under the lesson's option names."""

import argparse

from fluxsmith.cli import main

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--config_path", required=True, help="a YAML config")
parser.add_argument("--num_training_steps", help="in place of the config's train.steps")
parser.add_argument("--batch_size", help="in place of the config's train.batch_size")
parser.add_argument("--resume_from", help="auto, or a checkpoint's path")
parser.add_argument("--overwrite", action="store_true", help="delete the run that is there first")
parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="further settings")
args = parser.parse_intermixed_args()

command = ["train", args.config_path, *args.overrides]
if args.num_training_steps:
    command.append(f"train.steps={args.num_training_steps}")
if args.batch_size:
    command.append(f"train.batch_size={args.batch_size}")
if args.resume_from:
    command += ["--resume", args.resume_from]
if args.overwrite:
    command.append("--overwrite")
main(command)
