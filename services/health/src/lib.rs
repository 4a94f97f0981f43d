//! Liveness, roll-ups, alerts and fleet metrics.
