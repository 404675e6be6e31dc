"""The training recipes of the BoT paper's supplement as data: `--preset NAME` of each script.

Keys are options of the scripts (batch_size is the global one, over all processes and accumulation
steps) or fields of `transformers.TrainingArguments`. Options on the command line override them.
Settings that a table leaves out have transformers' defaults.
"""

from typing import Any

Recipes = dict[str, dict[str, Any]]

_BERT = {
    "optim": "adamw_torch",
    "adam_epsilon": 1e-6,
    "learning_rate": 2e-4,
    "weight_decay": 0.1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "max_steps": 400_000,
    "batch_size": 256,
    "seq_length": 128,
    "fit_steps": 100,  # C.5
    "fit_lr": 2e-4,
    "fit_batch_size": 256,
}
MLM: Recipes = {"paper": _BERT}  # Table 11, BERT and RoBERTa alike

_GPT2 = {
    "optim": "adamw_torch",
    "adam_epsilon": 1e-8,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "batch_size": 512,
    "seq_length": 1024,
    "dropout": 0.1,
    "fit_steps": 100,  # C.5
    "fit_lr": 1e-5,
    "fit_batch_size": 512,
}
CLM: Recipes = {  # Table 13
    "paper-small": {**_GPT2, "max_steps": 150_000},
    "paper-base": {**_GPT2, "max_steps": 50_000},
}

_DEIT = {  # Table 7
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "weight_decay": 0.05,
    "num_train_epochs": 150,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "drop_path": 0.1,
    "fit_steps": 100,  # C.5
    "fit_lr": 5e-4,
    "fit_batch_size": 256,
}
_DOWNSTREAM = {  # Table 9: what its rows share
    "optim": "adamw_torch",
    "batch_size": 512,
    "num_train_epochs": 300,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "random_erase": 0.25,
    "mixup": 0.0,
    "cutmix": 0.0,
    "fit_steps": 100,
    "fit_lr": 5e-4,
    "fit_batch_size": 256,
}
_LARGE_SETS = {"learning_rate": 5e-4, "dataloader_drop_last": True, "drop_path": 0.1, "color_jitter": 0.4}
_SMALL_SETS = {"learning_rate": 3e-4, "dataloader_drop_last": False}
IMAGES: Recipes = {
    "paper-small": {**_DEIT, "learning_rate": 2.5e-4, "batch_size": 256},
    "paper-base": {**_DEIT, "learning_rate": 1.25e-4, "batch_size": 128},
    "paper-flowers": {**_DOWNSTREAM, **_SMALL_SETS, "drop_path": 0.0, "color_jitter": 0.4},
    "paper-cub": {
        **_DOWNSTREAM,
        **_SMALL_SETS,
        "drop_path": 0.1,
        "color_jitter": 0.0,
        "auto_augment": "rand-m9-mstd0.5-inc1",  # the table's "msk0.5" is no option of RandAugment
    },
    "paper-cars": {**_DOWNSTREAM, **_SMALL_SETS, "drop_path": 0.1, "color_jitter": 0.0},
    "paper-cifar10": {**_DOWNSTREAM, **_LARGE_SETS},
    "paper-cifar100": {**_DOWNSTREAM, **_LARGE_SETS},
    "paper-food101": {**_DOWNSTREAM, **_LARGE_SETS},
    "paper-inat2019": {**_DOWNSTREAM, **_LARGE_SETS, "num_train_epochs": 100},
}
