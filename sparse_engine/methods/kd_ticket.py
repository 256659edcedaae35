"""KD tickets (Ma et al. 2021, arXiv 2101.03255): a lottery ticket that learns from its teacher.

The teacher is a trained dense network. Its strongest blocks say which weights the ticket keeps;
their values are those of the initialisation, or of an early step (KD rewinding), so the ticket
has the teacher's seed; and it is trained with the teacher's soft labels.
"""

from sparse_engine.config.config import Config
from sparse_engine.errors import InputError
from sparse_engine.methods.actions import SaveTicket, StartMember
from sparse_engine.methods.freetickets import schedule_for
from sparse_engine.methods.learning_rate import LearningRate, Segment
from sparse_engine.methods.losses import Distillation
from sparse_engine.methods.method import Method, usual_scope
from sparse_engine.methods.phase import Phase, split_steps
from sparse_engine.methods.pruning_actions import PruneLikeTeacher


def phases(config: Config, steps: int, warmup: float = 0.0) -> list[Phase]:
    """Return the training of the ticket, after the dense start that KD rewinding repeats."""
    point = config.rewind_point or 0.0
    rate = LearningRate(schedule_for(config.dataset).member, warmup)
    prune = PruneLikeTeacher(config.sparsity or 0.0, config.permute_channels)
    loss = Distillation(config.temperature or 1.0, config.distillation or 1.0)
    if not point:
        begin = (StartMember(0.0), prune)
        return [Phase("ticket", steps, rate, begin=begin, end=(SaveTicket(),), loss=loss)]
    start, rest = split_steps(steps, [point, 1 - point])
    return [
        Phase("start", start, Segment(rate, 0, steps), begin=(StartMember(0.0),), end=(prune,)),
        Phase("ticket", rest, Segment(rate, start, steps), end=(SaveTicket(),), loss=loss),
    ]


def _check_teacher(config: Config) -> None:
    if not (config.teacher or config.dry_run):
        raise InputError("method 'kd-ticket' needs --teacher RUN, the folder of a dense run")


METHOD = Method(
    phases,
    starts_dense=True,
    # Temperature and weight are Hinton et al.'s (2015): the paper's could not be read.
    options={
        "teacher": None,
        "temperature": 4.0,
        "distillation": 0.9,
        "rewind_point": 0.0,
        "prune_scope": usual_scope,
    },
    check=_check_teacher,
)
