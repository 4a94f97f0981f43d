//! Virtual time: whole microseconds since the trace began.

use std::time::Duration;

/// Microseconds since the trace began, or a span of them.
pub type Micros = u64;

pub(crate) const SECOND: Micros = 1_000_000;

/// As seconds.
pub(crate) fn seconds(span: Micros) -> f64 {
    span as f64 / SECOND as f64
}

/// From seconds, to the nearest microsecond; what is negative becomes zero.
pub(crate) fn micros(seconds: f64) -> Micros {
    (seconds * SECOND as f64).round() as Micros
}

/// From a duration.
pub(crate) fn span(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// To the nearest millisecond, the core's unit.
pub(crate) fn millis(span: Micros) -> u64 {
    span.saturating_add(500) / 1000
}
