"""Ray itself: joining or starting a cluster, and what it has to offer."""
