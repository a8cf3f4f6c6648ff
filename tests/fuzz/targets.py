"""Every parser that reads what comes from the network."""

from . import (
    cluster_targets,
    control_targets,
    front_targets,
    proxy_targets,
    relay_targets,
    request_targets,
)

TARGETS = (
    *relay_targets.TARGETS,
    *proxy_targets.TARGETS,
    *front_targets.TARGETS,
    *control_targets.TARGETS,
    *request_targets.TARGETS,
    *cluster_targets.TARGETS,
)
