"""timm's networks as Backbones, and the weights that go into them. The only importer of timm."""
