"""Every key of a configuration with its type, unit, default and legal range. Adding a key means adding a field here."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, Optional

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from rpg_ms.files import user_path
from rpg_ms.pruning import ALLOCATIONS, DENSITY_SCHEDULES, METHODS, SCORES, STARTS, Method
from rpg_ms.tasks import TASKS

INT32_MAX = 2**31 - 1
Text = Annotated[str, Field(min_length=1)]
UserPath = Annotated[Text, AfterValidator(user_path)]
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
CountOrZero = Annotated[int, Field(ge=0, le=INT32_MAX)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ScoreName = Literal[tuple(SCORES)]


class Group(BaseModel):
    """A group of keys: immutable, no unknown keys, no conversion but integer to number, no inf or nan."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Group):
    name: Text = Field("resnet_small", description="Network: ours, any of mindcv's, or your own module:function.")
    pretrained: Optional[UserPath] = Field(
        None, description="Weights to start from, MindSpore's, PyTorch's or safetensors; null: none."
    )
    pretrained_allow: tuple[Text, ...] = Field(
        (), strict=False, description="Name patterns of what may differ between model.pretrained and the network."
    )
    pretrained_entry: Optional[Text] = Field(
        None,
        description="Entry of a PyTorch checkpoint, a.b for one in another; null: averaged weights, else the weights.",
    )
    pretrained_prefix: Optional[Text] = Field(
        None, description="Only what has this prefix in model.pretrained; null: all, and the prefix is found."
    )
    width: float = Field(1.0, gt=0, le=64, description="Factor on the channels of a CIFAR ResNet.")
    pool_padding: Literal["pytorch", "mindcv"] = Field(
        "pytorch", description="Max pooling of mindcv's ResNets: as in PyTorch's weights, or as in mindcv's."
    )
    num_classes: Optional[int] = Field(
        None,
        ge=2,
        le=INT32_MAX,
        description="Width of the classifier, classes, with a detector's background; null: the data's classes.",
    )
    masks: bool = Field(True, description="Whether a detector predicts masks; false: Faster R-CNN.")


class DataConfig(Group):
    name: Text = Field("fashion_mnist", description="Dataset.")
    root: Optional[UserPath] = Field(None, description="Dataset's folder; null: its usual place.")
    validation: float = Field(
        0.0, ge=0, lt=1, description="Share of the training images evaluated in place of the test images."
    )
    workers: Count = Field(1, description="Loader's parallel workers.")
    limit: Optional[Count] = Field(
        None,
        description="Use only so many training and test images, the first ones, of photographs evenly spread ones; "
        "null: all.",
    )
    augment: Literal["auto", "none", "crop_flip", "random_resized_crop", "randaugment"] = Field(
        "auto", description="Augmentation of training images; auto: the dataset's customary one."
    )
    image_size: Optional[int] = Field(
        None, ge=8, le=4096, description="Side of the network's images, pixels; null: the dataset's."
    )


class DetectionConfig(Group):
    boxes_per_image: Count = Field(32, description="Most objects of a training image, of more some are left out.")
    scale_jitter: float = Field(
        0.0, ge=0, lt=1, description="Training images are scaled by up to this share, up or down; 0: not at all."
    )
    trainable_layers: int = Field(
        5, ge=0, le=5, description="Parts of the backbone that are trained, the last ones of stem and 4 stages."
    )
    norm: Literal["live", "frozen"] = Field(
        "live", description="Batch norms of the backbone: live, or frozen as in the weights to start from."
    )
    norm_epsilon: float = Field(
        1e-5, ge=0, description="What these norms add to the variance; torchvision's COCO_V1 weights need 0."
    )
    fpn_channels: Count = Field(256, description="Width of the feature pyramid, channels.")
    hidden: Count = Field(1024, description="Width of the box head's dense layers.")
    anchor_sizes: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), strict=False, description="Sides of the anchors, pixels, one a level; empty: 8 times each level's stride."
    )
    roi_align: Literal["gather", "operator"] = Field(
        "gather", description="RoI align: gather runs resume to the bit; operator: MindSpore's, of less memory."
    )
    pre_nms_proposals: Count = Field(1000, description="Proposals of each level before non-maximum suppression.")
    proposals: Count = Field(1000, description="Proposals of an image after it.")
    rois_per_image: Count = Field(512, description="Proposals of an image that the heads are trained on.")
    detections: Count = Field(100, description="Most detections of an image.")
    score_threshold: float = Field(0.05, ge=0, lt=1, description="Score that a detection exceeds, probability.")


class TrainConfig(Group):
    epochs: Count = Field(300, description="Length of training, epochs.")
    batch_size: Count = Field(128, description="Training batch on each device, images.")
    micro_batches: Count = Field(
        1, description="Pieces a device's batch is computed in, one after the other; divides it."
    )
    amp_level: Literal["O0", "O1", "O2", "O3"] = Field(
        "O0", description="MindSpore's mixed precision (float16) with dynamic loss scaling; O0: float32."
    )
    clip_norm: Optional[float] = Field(
        None, gt=0, description="Largest global norm of the gradient; null: the method's (st3: 3, others: any)."
    )
    ema_decay: Optional[float] = Field(
        None, gt=0, lt=1, description="Decay per step of a moving average of the weights; null: no average."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all classes, fraction."
    )
    mixup: float = Field(0.0, ge=0, description="Mixup: alpha of its Beta distribution; 0: off.")
    cutmix: float = Field(0.0, ge=0, description="CutMix: alpha of its Beta distribution; 0: off.")
    eval_every: Count = Field(1, description="Interval between evaluations, epochs.")
    eval_batch_size: Count = Field(256, description="Evaluation batch on each device, images.")
    log_every: Count = Field(10, description="Interval between logged lines, steps.")
    sink_size: Optional[Count] = Field(
        None,
        description="Steps that run in one graph, without the host, where nothing else is due; null: log_every on "
        "Ascend, else 1.",
    )


class OptimizerConfig(Group):
    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Optimizer.")
    lr: float = Field(0.1, gt=0, description="Peak learning rate, per step.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd, fraction kept per step.")
    nesterov: bool = Field(False, description="Nesterov momentum in sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay, per step, before the learning rate.")
    decay_norm_and_bias: bool = Field(False, description="Whether norm scales, biases and embeddings decay as well.")


class ScheduleConfig(Group):
    name: Literal["cosine", "step", "linear", "constant"] = Field(
        "cosine", description="Learning-rate schedule after warm-up."
    )
    warmup_epochs: float = Field(0.0, ge=0, description="Linear warm-up from 0 to the peak rate, epochs.")
    end_lr: float = Field(0.0, ge=0, description="Learning rate at the end of cosine and linear, per step.")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), strict=False, description="Where step multiplies by gamma, fractions of all steps."
    )
    gamma: Fraction = Field(0.1, description="Factor of step at each milestone, ratio.")

    @field_validator("milestones")
    @classmethod
    def _in_order(cls, milestones: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in zip(milestones, milestones[1:])):
            raise PydanticCustomError("rule", "{shown} is not in increasing order", {"shown": str(list(milestones))})
        return milestones


class PruningConfig(Group):
    method: Literal[tuple(METHODS)] = Field(
        "rpg_erk", description="Pruning method; gives the defaults of keys left null."
    )
    density: Fraction = Field(0.02, description="Share of prunable weights that stay, fraction.")
    update_every: Optional[CountOrZero] = Field(
        None, description="Interval between topology updates (Δ), steps; 0: an epoch; null: the method's."
    )
    prune_until: Optional[Fraction] = Field(
        None, description="When the target density is reached (T_prune), fraction of all steps; null: the method's."
    )
    freeze_after: Optional[Fraction] = Field(
        None, description="When the topology freezes (T_end, >= T_prune), fraction of all steps; null: the method's."
    )
    start: Optional[Literal[STARTS]] = Field(
        None, description="Masks before the first step, all weights or as many as stay; null: the method's."
    )
    drop: Optional[ScoreName] = Field(None, description="What weights are kept by; null: the method's.")
    grow: Optional[ScoreName] = Field(None, description="What weights are grown by; null: the method's.")
    alpha: Optional[float] = Field(
        None, ge=0, le=1, description="Share of weights first dropped and grown (α); null: the method's."
    )
    schedule: Optional[Literal[tuple(DENSITY_SCHEDULES)]] = Field(
        None, description="Density schedule; null: the method's."
    )
    allocation: Optional[Literal[tuple(ALLOCATIONS)]] = Field(
        None, description="Density per layer; null: the method's."
    )
    warmup_updates: CountOrZero = Field(
        0, description="Updates before pruning starts, updates; 0 where masks start sparse."
    )
    min_per_layer: CountOrZero = Field(1, description="Fewest weights left in a layer.")
    exclude: Optional[tuple[Text, ...]] = Field(
        None,
        strict=False,
        description="Name patterns of layers that stay dense; null: the task's (detection: the predictors, which a "
        "global cut would take away; classification: none).",
    )


class RankConfig(Group):
    lambda_: Optional[float] = Field(
        None, alias="lambda", ge=0, description="Weight of the rank term in the loss (λ); null: the method's."
    )
    share: Optional[float] = Field(
        None,
        ge=0,
        lt=1,
        description="The rank term's share in the score of regrowth, each layer's gradients at unit norm, in place of "
        "lambda; null: the method's.",
    )
    delta: Optional[Fraction] = Field(
        None, description="Error budget (δ), share of the squared norm; null: the method's."
    )
    every: Literal["update", "step"] = Field(
        "update", description="Steps with the rank term: topology updates only, or every step."
    )
    backend: Literal["auto", "svd", "gram", "matmul"] = Field(
        "auto", description="How the rank term is computed; auto: gram on CPU, matmul elsewhere."
    )
    include_dense: bool = Field(False, description="Whether the rank term takes dense layers as well.")


class DistillConfig(Group):
    weight: float = Field(
        0.0, ge=0, le=1, description="Share of the loss that is divergence from a teacher's outputs; 0: no teacher."
    )
    temperature: float = Field(4.0, gt=0, le=1000, description="Both outputs are divided by it, ratio.")
    teacher: Optional[UserPath] = Field(
        None, description="The teacher's weights; null: model.pretrained, where training starts."
    )
    model: Optional[Text] = Field(None, description="The teacher's network; null: model.name.")


class CheckpointConfig(Group):
    every_steps: CountOrZero = Field(
        0, description="Interval between checkpoints besides those at each epoch's end, steps; 0: none."
    )
    keep: Count = Field(2, description="How many of the newest checkpoints are kept.")


class Config(Group):
    """A whole experiment. `load_config` resolves the keys that are left to the method."""

    task: Literal[tuple(TASKS)] = Field("classification", description="What the network is trained for.")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    detection: DetectionConfig = DetectionConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    pruning: PruningConfig = PruningConfig()
    rank: RankConfig = RankConfig()
    distill: DistillConfig = DistillConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of all random numbers.")
    device_target: Literal["auto", "CPU", "GPU", "Ascend"] = Field(
        "auto", description="Where to run; auto: the best device found."
    )
    mode: Literal["graph", "pynative"] = Field("graph", description="MindSpore's execution mode.")
    output_dir: UserPath = Field("runs/default", description="Folder of the run.")

    @property
    def method(self) -> Method:
        """The pruning method: its row, with what the keys change of it; ValueError where that contradicts itself."""
        given = {name: getattr(getattr(self, group), key) for name, (group, key) in METHOD_KEYS.items()}
        return dataclasses.replace(
            METHODS[self.pruning.method], **{name: value for name, value in given.items() if value is not None}
        )

    def resolved(self) -> Config:
        """A copy in which the keys left null have the values of the method's row, or the task's."""
        row, updates = METHODS[self.pruning.method], {}
        if self.pruning.exclude is None:
            updates["pruning"] = {"exclude": TASKS[self.task].exclude}
        for name, (group, key) in METHOD_KEYS.items():
            if getattr(getattr(self, group), key) is None:
                updates.setdefault(group, {})[key] = getattr(row, name)
        return self.model_copy(
            update={group: getattr(self, group).model_copy(update=values) for group, values in updates.items()}
        )


# The fields of a `Method` that are keys, each with its group and its attribute there.
METHOD_KEYS: dict[str, tuple[str, str]] = {
    **{name: ("pruning", name) for name in ("schedule", "allocation", "start", "drop", "grow", "alpha")},
    **{name: ("pruning", name) for name in ("update_every", "prune_until", "freeze_after")},
    "rank_lambda": ("rank", "lambda_"),
    "rank_share": ("rank", "share"),
    "rank_delta": ("rank", "delta"),
    "clip_norm": ("train", "clip_norm"),
}


def _collect_schemas() -> dict[tuple[str, ...], dict[str, Any]]:
    """JSON schema of every group and key by its path, in the order of declaration, references resolved."""
    top = Config.model_json_schema()["properties"]
    schemas: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, field in Config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Group):
            schemas[(name,)] = field.annotation.model_json_schema()
            schemas.update({(name, key): schema for key, schema in schemas[(name,)]["properties"].items()})
        else:
            schemas[(name,)] = top[name]
    return schemas


SCHEMAS = _collect_schemas()
