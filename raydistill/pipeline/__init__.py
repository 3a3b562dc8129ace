"""One distillation from config to registry: the driver's straight line, and the phases that workers run."""
