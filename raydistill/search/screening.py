"""What is known of a combination before it trains: whether it can be, its size, and its latency."""

from __future__ import annotations

from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.models.load import read_config
from raydistill.models.shape import count_parameters, student_config
from raydistill.search.front import within
from raydistill.search.ledger import Params
from raydistill.search.proposals import Verdict
from raydistill.search.sharing import Shape, Shared, shape_name
from raydistill.search.space import sweep_of, with_params


class Judge:
    """Rejects what is impossible or breaks a constraint on size or latency, before it costs anything."""

    def __init__(self, config: Config, shared: Shared) -> None:
        self.config, self.constraints = config, sweep_of(config).constraints
        self.teacher = read_config(shared.teacher.folder, config.teacher.trust_remote_code)
        self.shapes = {shape.name: shape for shape in shared.shapes}

    def __call__(self, params: Params) -> Verdict:
        try:
            student = student_config(self.teacher, with_params(self.config, params).student)
        except ConfigError as error:
            return Verdict(reason=str(error))
        name = shape_name(student)
        shape = self.shapes.get(name) or Shape(name, count_parameters(student))
        for measure, bounds in self.constraints.items():
            value = shape.facts.get(measure)
            if value is not None and not within(value, bounds):
                limit = f"above {bounds.max:,g}" if bounds.max is not None and value > bounds.max else "too small"
                return Verdict(shape.facts, f"{measure} {value:,.6g} is {limit} ({name})")
        return Verdict(shape.facts)
