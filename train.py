"""Train one configuration, or sweep with -m: ``python train.py method=hs_lora dataset=svhn``."""

import sys

import hydra
from omegaconf import DictConfig

from headwise.commands import completion


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run what the configuration says."""
    import headwise.runs.experiment

    return headwise.runs.experiment.job(cfg)


if __name__ == "__main__" and not completion.answered(sys.argv):
    import headwise.runs.experiment

    headwise.runs.experiment.launch(main)
