"""Methods: one file each, built by Hydra from conf/method/<name>.yaml."""
