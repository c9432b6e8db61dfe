"""train_model.py as torchrun starts it, with a fault in one rank that RANK_FAULT describes."""

import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from commands import train  # noqa: E402
from launch.run import run  # noqa: E402
from launch.schemas import TrainConfig  # noqa: E402
from modeling.gpt import GPT  # noqa: E402
from tracking import checkpoint  # noqa: E402
from training import loop  # noqa: E402


def stop():
    os.kill(os.getpid(), signal.SIGSTOP)


def fail():
    raise ValueError("broken on purpose")


def sleep():
    time.sleep(600)


def leave():
    os._exit(0)


def lose_the_numbers():
    lose_the_numbers.factor = math.nan


lose_the_numbers.factor = 1.0


def fill_the_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def at_step(number, act):
    rate = loop.learning_rate

    def acting(settings, peak, step, num_steps):
        if step == number - 1:
            act()
        return rate(settings, peak, step, num_steps)

    loop.learning_rate = acting


def slow_saves(seconds, note):
    save_file = checkpoint.save_file

    def slow(*args):
        with Path(note).open("a") as file:
            file.write(f"{args[1]}\n")
        time.sleep(seconds)
        return save_file(*args)

    checkpoint.save_file = slow


def multiply_losses():
    loss = GPT.loss
    GPT.loss = lambda *args, **options: loss(*args, **options) * lose_the_numbers.factor


fault = json.loads(os.environ.get("RANK_FAULT", "{}"))
if fault.get("rank") == int(os.environ.get("RANK", "0")):
    if "save_seconds" in fault:
        slow_saves(fault["save_seconds"], fault["note"])
    else:
        multiply_losses()
        at_step(fault["step"], globals()[fault["act"]])
sys.argv[0] = str(ROOT / "train_model.py")
run("train", TrainConfig, train.main)
