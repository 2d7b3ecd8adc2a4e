"""Prunes your own network on your own data.

    python prune.py --model my.keras --data_path images --target_rate 0.5 --train_path runs/mine
    python prune.py --model MobileNetV2 --weights mobilenet.weights.h5 --classes 3 \\
        --data_path images --rescale -1 1
    python prune.py --model my.keras --inspect

The pruned network is trained_param.keras in the run folder, or slimmed_param.keras where
fine-tuning made it worse. With --max_drop the run folder holds one run folder per rate that is
tried, and final_RATE. The same command again resumes where a run stopped.
"""

import utils  # before TensorFlow: it sets TensorFlow's environment
from ekg.commands.prune import load_model as load_model
from ekg.commands.prune import main, parse_args

if __name__ == "__main__":
    utils.run_script(main, parse_args)
