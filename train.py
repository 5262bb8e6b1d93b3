"""Train one configuration, or sweep with -m: ``python train.py method=hs_lora dataset=svhn``."""

import hydra
from omegaconf import DictConfig

from headwise.commands import completion


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | None:
    """Run what the configuration says."""
    import headwise.runs.experiment as runner

    return runner.job(cfg)


if __name__ == "__main__" and not completion.answered():
    import headwise.runs.experiment as runner

    runner.launch(main)
