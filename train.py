"""Train one configuration, or sweep with -m: ``python train.py method=hs_lora dataset=svhn``."""

import hydra
from omegaconf import DictConfig

import headwise.runs.experiment


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run what the configuration says."""
    return headwise.runs.experiment.job(cfg)


if __name__ == "__main__":
    headwise.runs.experiment.launch(main)
