"""The whole config tree: frozen, strict data. Variants are unions on ``type``; a dotted name is the YAML path,
the ``--set`` override, the sweep key and the MLflow parameter."""

from __future__ import annotations

from pydantic import Field

from raydistill.config.data import OF_OBJECTS, PICTURE_WAYS, TEXT_WAYS, Data
from raydistill.config.evaluate import Evaluate
from raydistill.config.losses import ForwardKl, KBest, LayerLossSection, LogitMse, SoftLossSection, TaskLoss
from raydistill.config.section import MODEL_NAME_PATTERN, NAME_PATTERN, Mistake, Name, Section
from raydistill.config.student import EncoderStudent, Student
from raydistill.config.sweep import Bounds, Distribution, Sweep
from raydistill.config.tasks import MaskedLanguageModeling, Task, TextClassification
from raydistill.config.teacher import (
    FEWEST_PAIRED,
    Finetune,
    Member,
    MixtureTeacher,
    ModelTeacher,
    Teacher,
    pair_group,
)
from raydistill.config.tracking import Registry, Tracking
from raydistill.config.training import Stage, Train
from raydistill.errors import did_you_mean

__all__ = ["MODEL_NAME_PATTERN", "NAME_PATTERN", "Bounds", "Config", "Distribution", "Section", "Sweep"]


class Config(Section):
    """One distillation, from data to registered student."""

    storage: str = Field(default="raydistill-storage", min_length=1)
    """Folder or URL (s3://, gs://) for everything that is computed."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything that is drawn: splits, order of the rows, random starts."""
    data: Data
    task: Task = TextClassification()
    """What is to be predicted."""
    teacher: Teacher
    """The model that the student learns from, or several of them."""
    student: Student = EncoderStudent()
    """The small model."""
    stages: dict[Name, Stage] = Field(default={}, min_length=1, validate_default=True)
    """Training stages of the student, in order; by default one, ``distill``."""
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    registry: Registry = Registry()
    tracking: Tracking = Tracking()
    sweep: Sweep | None = None
    """The search that ``raydistill sweep`` does; ``distill`` runs the config as it stands without it."""

    @property
    def epoch_metric(self) -> str:
        """What picks the best epoch."""
        return self.evaluate.metric or self.task.main_metric

    @property
    def lead(self) -> ModelTeacher:
        """The teacher that the student starts from, and whose tokens it reads: the first of several."""
        return next(iter(self.members.values())).alone if isinstance(self.teacher, MixtureTeacher) else self.teacher

    @property
    def members(self) -> dict[str, Member]:
        """The teachers of a mixture, by name; none where there is a single teacher."""
        return self.teacher.members if isinstance(self.teacher, MixtureTeacher) else {}

    def mistakes(self) -> list[Mistake]:
        if isinstance(self.teacher, MixtureTeacher):
            return check_mixture(self)
        checks = (
            check_layer_maps,
            check_light,
            check_baseline,
            check_exchange,
            check_teachers,
            check_metrics,
            check_kinds,
            check_task_losses,
            check_sequences,
            check_pairs,
            check_whole_texts,
            check_ways,
            check_symmetric,
            check_vocabulary,
            check_pictures,
        )
        return [mistake for check in checks for mistake in check(self)]


def check_metrics(config: Config) -> list[Mistake]:
    """Metrics that the task does not have."""
    known, finetune, sweep = config.task.tuning_metrics, config.lead.finetune, config.sweep
    named: list[tuple[tuple[str, ...], str | None]] = [(("evaluate", "metric"), config.evaluate.metric)]
    named += [(("teacher", "finetune", "metric"), finetune.metric)] if isinstance(finetune, Finetune) else []
    for place in ("objectives", "constraints") if sweep is not None else ():
        measures = [name for name in getattr(sweep, place) if name.startswith("validation/")]
        named += [(("sweep", place), name.removeprefix("validation/")) for name in measures]
    what = f"is no metric of {config.task.type}"
    return [
        (place, f"{name} {what}; there are {', '.join(known)}. {did_you_mean(name, known)}")
        for place, name in named
        if name is not None and name not in known
    ]


OF_KINDS = {
    "span": ("places in texts", "forward_kl and logit_mse"),
    "vector": ("vectors", "vector_mse"),
    "boxes": ("boxes", "forward_kl and boxes"),
}
"""What predictions of a kind are, and which losses can compare them."""


def check_kinds(config: Config) -> list[Mistake]:
    """Losses on predictions of another kind than the task's."""
    task = config.task
    found: list[Mistake] = []
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            place = ("stages", stage_name, "losses", name)
            if loss.kinds == ("boxes",) and task.kind != "boxes":
                found.append((place, f"{loss.type} needs boxes; {task.type} has none."))
            elif task.kind not in loss.kinds:
                what, able = OF_KINDS.get(task.kind, ("numbers", "logit_mse"))
                what = "predictions" if loss.kinds == ("vector",) else what
                found.append((place, f"{loss.type} cannot compare the {what} of {task.type}; {able} can."))
            elif loss.compares_sequences and not task.has_units:
                found.append((place, f"{loss.type} needs labels of words; {task.type} has one prediction a row."))
            elif loss.compares_rows and task.has_units:
                found.append((place, f"{loss.type} needs one class a row; {task.type} has one for each word."))
            elif isinstance(loss, SoftLossSection) and loss.standardize and task.kind != "categorical":
                why = f"{task.type} has none: two outcomes, standardised, are always 1 and -1"
                found.append(((*place, "standardize"), f"needs predictions of several classes; {why}. Leave it out."))
    return found


def check_task_losses(config: Config) -> list[Mistake]:
    """Class weights and label smoothing where there are no classes."""
    if config.task.has_classes:
        return []
    return [
        (("stages", stage_name, "losses", name, setting), f"{config.task.type} has no classes. Leave it out.")
        for stage_name, stage in config.stages.items()
        for name, loss in stage.losses.items()
        for setting in ("class_weights", "label_smoothing")
        if isinstance(loss, TaskLoss) and getattr(loss, setting)
    ]


def check_sequences(config: Config) -> list[Mistake]:
    """CRFs where there are no sequences, and losses that do not go together with them."""
    task, student, tuning = config.task, config.student.head, config.lead.finetune
    tuned = tuning.head if isinstance(tuning, Finetune) else None
    found: list[Mistake] = []
    for place, head in ((("student", "head"), student), (("teacher", "finetune", "head"), tuned)):
        if head not in (None, "softmax") and not (task.has_units and task.kind == "categorical"):
            found.append((place, f"{head} reads labels of words; {task.type} has none. Leave it out."))
        elif head == "constrained_crf" and getattr(task, "scheme", "auto") in ("io", "words"):
            found.append((place, f"no label is forbidden after another in the scheme {task.scheme}; take crf."))  # type: ignore[union-attr]
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            here = ("stages", stage_name, "losses", name)
            if isinstance(loss, KBest) and tuned == "softmax":
                found.append((here, f"{NO_SEQUENCES} Set teacher.finetune.head: crf, or take forward_kl."))
            if isinstance(loss, LogitMse) and (student != "softmax" or tuned not in (None, "softmax")):
                found.append((here, CRF_LOGITS))
            if isinstance(loss, TaskLoss) and student != "softmax" and (loss.class_weights or loss.label_smoothing):
                text = "the loss of a CRF is the likelihood of whole rows: no class_weights or label_smoothing."
                found.append((here, text))
    return found


NO_SEQUENCES = "k_best compares sequences of labels, and the teacher is no CRF: it knows words one by one."
CRF_LOGITS = "logits of a CRF say nothing without its transitions; take forward_kl, which compares its marginals."


def check_pairs(config: Config) -> list[Mistake]:
    """A contrastive training without pairs; a head on the mean of a row's states for words."""
    finetune, size = config.lead.finetune, config.train.global_batch_size
    if not isinstance(finetune, Finetune) or finetune.method not in ("contrastive", "probe"):
        return []
    if config.task.has_units or config.task.kind == "vector":
        each = "several" if config.task.has_units else "vectors, which no head makes"
        why = f"{finetune.method} needs one prediction a row; {config.task.type} has {each}. Set full."
        return [(("teacher", "finetune", "method"), why)]
    if finetune.method == "probe":
        return []
    if config.task.kind != "categorical":
        return [(("teacher", "finetune", "method"), f"contrastive needs one class a row; {config.task.type} has none.")]
    if pair_group(size) < FEWEST_PAIRED:
        return [(("train", "global_batch_size"), f"{size} is not a multiple of {FEWEST_PAIRED}, which pairs need.")]
    return []


def check_whole_texts(config: Config) -> list[Mistake]:
    """Copies written otherwise have no labels for parts of them: these are elsewhere, or gone."""
    if not config.task.has_units or config.data.augment is None:
        return []
    why = f"rewrites whole texts; {config.task.type} has labels for parts of them. Leave it out."
    return [(("data", "augment"), why)]


def check_ways(config: Config) -> list[Mistake]:
    """Ways to write texts otherwise that say nothing of pictures, and the other way round; a record of pictures that
    are seen otherwise at each epoch."""
    augment, task, teacher = config.data.augment, config.task, config.lead
    if augment is None or task.has_units:
        return []
    place, able = ("data", "augment"), PICTURE_WAYS if task.reads_pictures else TEXT_WAYS
    found: list[Mistake] = []
    if strange := [way for way in augment.ways if way not in able]:
        verb, what = "are" if len(strange) > 1 else "is", "pictures" if task.reads_pictures else "texts"
        why = f"{', '.join(strange)} {verb} not for {what}, which {task.type} reads. For these: {', '.join(able)}."
        found.append(((*place, "ways"), why))
    if not task.reads_pictures:
        only = f"is for pictures, and {task.type} reads texts."
        found += [((*place, "copies"), f"each_epoch {only} Write a number.")] if augment.is_each_epoch else []
        found += [((*place, "crop_area"), f"{only} Leave it out.")] if augment.crop_area is not None else []
    elif augment.is_each_epoch:
        why = "teachers that are recorded, or in actors of their own, know pictures as they are stored, and each epoch "
        why += "shows others (data.augment.copies: each_epoch). {}, or write a number of copies."
        if teacher.mode != "online":
            found.append((("teacher", "mode"), why.format("Write online")))
        if teacher.pool is not None:
            found.append((("teacher", "pool"), why.format("Leave it out")))
    return found


def check_symmetric(config: Config) -> list[Mistake]:
    """Pairs whose two orders are not alike, or are read one text at a time."""
    why = {
        "span": "a question and its context are not of one kind",
        "vector": f"says nothing of {config.task.type}, which reads each text by itself",
    }
    if not config.data.symmetric or config.task.kind not in why:
        return []
    return [(("data", "symmetric"), f"{why[config.task.kind]}. Leave it out.")]


def check_vocabulary(config: Config) -> list[Mistake]:
    """What says nothing where raw text is all there is, and tokens of a vocabulary are guessed."""
    task, data, teacher = config.task, config.data, config.lead
    if not isinstance(task, MaskedLanguageModeling):
        return []
    texts = f"{task.type} needs nothing but texts. Leave it out."
    found: list[Mistake] = []
    found += [(("data", "max_labeled"), texts)] if data.max_labeled is not None else []
    found += [(("data", "unlabeled"), "no text has a label here; put all into data.path.")] if data.unlabeled else []
    for role in ("text_pair", "label"):
        found += [(("data", "columns", role), texts)] if getattr(data.columns, role) is not None else []
    found += [(("data", "symmetric"), texts)] if data.symmetric else []
    if config.evaluate.robustness:
        why = "in a text that is written otherwise other tokens are hidden, so nothing could be compared. Leave it out."
        found.append((("evaluate", "robustness"), why))
    if config.student.type == "conv":
        found.append((("student", "type"), "conv has no head that guesses tokens. Write encoder."))
    if teacher.pool is not None or teacher.mode == "pool":
        why = "teacher actors know rows as they are stored, and other tokens are hidden at each epoch. Write online."
        found.append((("teacher", "pool" if teacher.pool is not None else "mode"), why))
    is_recorded = teacher.mode == "cached"
    if task.copies > 1 and not is_recorded:
        why = f"{task.copies} copies are for a record (teacher.mode: cached), and without one each epoch hides others."
        found.append((("task", "copies"), why))
    if task.top_k is not None and not is_recorded:
        found.append((("task", "top_k"), "is for a record (teacher.mode: cached); else all tokens are compared."))
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            place = ("stages", stage_name, "losses", name)
            if loss.not_over_vocabulary:
                found.append((place, f"{loss.type} {loss.not_over_vocabulary}; forward_kl can learn from tokens."))
            elif is_recorded and isinstance(loss, SoftLossSection) and not isinstance(loss, ForwardKl):
                why = f"a record has the {task.top_k} likeliest tokens, and {loss.type} needs all. Take forward_kl."
                found.append((place, why))
    return found


def check_pictures(config: Config) -> list[Mistake]:
    """What says something of texts alone, or of pictures alone."""
    data, student, tuning = config.data, config.student, config.lead.finetune
    if not config.task.reads_pictures:
        fit = "object_detection" if data.format in OF_OBJECTS else "image_classification"
        why = f"{config.task.type} reads texts; task.type: {fit} reads pictures. Leave it out."
        is_format = data.format in ("image_folder", *OF_OBJECTS)
        wrong = {"columns": data.columns.image is not None, "format": is_format}
        return [(("data", name), why) for name, is_wrong in wrong.items() if is_wrong]
    wrong_places: dict[tuple[str, ...], bool] = {
        ("data", "columns", "text"): data.columns.text is not None,
        ("data", "columns", "text_pair"): data.columns.text_pair is not None,
        ("data", "format"): data.format in ("text_folder", "conll"),
        ("data", "symmetric"): data.symmetric,
        ("evaluate", "robustness"): config.evaluate.robustness,
        ("teacher", "finetune", "method"): isinstance(tuning, Finetune) and tuning.method not in ("auto", "full"),
        ("student", "type"): student.type == "conv",
    }
    why = f"is made for texts, and {config.task.type} reads pictures. Leave it out."
    found: list[Mistake] = [(place, why) for place, is_wrong in wrong_places.items() if is_wrong]
    for name in ("share_layers", "hidden_size", "num_heads", "intermediate_size"):
        if getattr(student, name, None) is not None and (name == "share_layers" or student.start != "random"):
            way = "" if name == "share_layers" else " Set student.start: random, or a smaller checkpoint."
            found.append((("student", name), f"is cut from models of texts alone so far.{way or ' Leave it out.'}"))
    for stage_name, stage in config.stages.items():
        for loss_name, loss in stage.losses.items():
            if "gradients" in loss.compares:
                why = f"{loss.type} compares gradients of token embeddings; pictures have none. Take hidden_mse."
                found.append((("stages", stage_name, "losses", loss_name), why))
    return found


MEAN_OF = ("logits", "logits, labels", "hidden states, labels", "vectors")
"""What a loss may compare where several teachers speak: predictions, or the student's own states."""


def check_mixture(config: Config) -> list[Mistake]:
    """What would be wrong with each teacher alone, and what several have no mean of."""
    found: list[Mistake] = []
    for number, (name, member) in enumerate(config.members.items()):
        for (section, *below), text in config.model_copy(update={"teacher": member.alone}).mistakes():
            if section == "teacher":
                found.append((("teacher", "members", name, *below), text))
            elif number == 0:
                found.append(((section, *below), text))
        head = member.finetune.head if isinstance(member.finetune, Finetune) else "softmax"
        if head != "softmax":
            found.append((("teacher", "members", name, "finetune", "head"), f"{SEVERAL_CRFS} Leave it out."))
    if config.task.over_vocabulary:
        found.append((("teacher", "type"), f"mixture has no mean of the tokens of {config.task.type}; name one model."))
    if config.task.reads_pictures:
        found.append((("teacher", "type"), f"mixture reads texts, and {config.task.type} pictures; name one model."))
    if config.task.kind == "span":
        found.append((("teacher", "type"), f"mixture has no mean of the spans of {config.task.type}; name one model."))
    for stage_name, stage in config.stages.items():
        for name, loss in stage.losses.items():
            if loss.compares not in MEAN_OF:
                text = f"{loss.type} compares {loss.compares}, of which several teachers have no mean: their layers "
                text += "and tokens differ. Take a loss on predictions, such as forward_kl, or name a single teacher."
                found.append((("stages", stage_name, "losses", name), text))
    return found


SEVERAL_CRFS = "a mixture averages what teachers say of each word, and a CRF says it of whole rows."


def check_layer_maps(config: Config) -> list[Mistake]:
    """Layer pairs written by hand that a student of this depth does not have."""
    mistakes: list[Mistake] = []
    depth = config.student.num_layers
    for stage_name, stage in config.stages.items():
        for loss_name, loss in stage.losses.items():
            if not isinstance(loss, LayerLossSection) or isinstance(loss.layers, str):
                continue
            place = ("stages", stage_name, "losses", loss_name, "layers")
            if not loss.layers:
                mistakes.append((place, "names no pair; write [[student, teacher], ...] or a layer map such as auto."))
            for pair in loss.layers:
                if min(pair) < loss.first_layer:
                    first = "layers count from 1 here" if loss.first_layer else "layers count from 0, the embeddings"
                    mistakes.append((place, f"the pair {list(pair)} names layer {min(pair)}; {first}."))
                elif isinstance(depth, int) and pair[0] > depth:
                    text = f"the pair {list(pair)} names student layer {pair[0]}, but student.num_layers is {depth}."
                    mistakes.append((place, text))
    return mistakes


def check_light(config: Config) -> list[Mistake]:
    """What needs attention, of a student that has none."""
    if config.student.type != "conv":
        return []
    if config.task.type == "question_answering":
        far = 1 + config.student.num_layers * (config.student.kernel_size - 1)
        why = f"conv looks at {far} tokens at a time, so no token of a text knows the question. Write encoder."
        return [(("student", "type"), why)]
    if config.task.type == "embeddings":
        why = "conv brings code of its own, which sentence-transformers does not run unasked. Write encoder."
        return [(("student", "type"), why)]
    why = "compares attention, and a student of type conv has none. Use hidden_mse, or student.type: encoder."
    return [
        (("stages", stage_name, "losses", name), f"{loss.type} {why}")
        for stage_name, stage in config.stages.items()
        for name, loss in stage.losses.items()
        if "queries" in loss.compares
    ]


def check_baseline(config: Config) -> list[Mistake]:
    """A baseline that could not differ from the student, or has no start."""
    baseline = config.evaluate.baseline
    if not baseline:
        return []
    mistakes: list[Mistake] = []
    losses = [loss for stage in config.stages.values() for loss in stage.losses.values()]
    if all(loss.role == "task" for loss in losses):
        text = "needs a stage with a teacher loss: this student learns from labels only and is its own baseline."
        mistakes.append((("evaluate", "baseline"), text))
    if baseline is not True and baseline.start == "pretrained" and config.lead.finetune is None:
        text = "pretrained is the encoder before teacher.finetune, which is not set; write same."
        mistakes.append((("evaluate", "baseline", "start"), text))
    return mistakes


def check_exchange(config: Config) -> list[Mistake]:
    """What pbt, which changes settings on the way, needs of the rest of the config."""
    if config.sweep is None or config.sweep.scheduler != "pbt":
        return []
    mistakes: list[Mistake] = []
    place = ("sweep", "scheduler")
    if len(config.stages) > 1:
        mistakes.append((place, "pbt needs a single stage; search a later stage with the earlier ones fixed."))
    if config.train.num_workers > 1:
        mistakes.append((place, "pbt needs train.num_workers: 1, as trials take over each other's checkpoints."))
    return mistakes


def check_teachers(config: Config) -> list[Mistake]:
    """Teachers in actors of their own need Ray."""
    teacher = config.teacher
    name = "pool" if teacher.pool is not None else "mode"
    if config.train.num_workers > 0 or not teacher.has_actors:
        return []
    text = "teacher actors need Ray, and train.num_workers: 0 works without; set it to 1 or more, or remove this."
    return [(("teacher", name), text)]


STORAGE = "raydistill-storage"
