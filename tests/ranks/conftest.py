"""The jobs are scripts for several processes, and one needs DeepSpeed: pytest leaves them alone."""

collect_ignore_glob = ["*_job.py"]
