//! The time that the core is told.

use std::time::{Instant, SystemTime};

use berth_wire::Timestamp;

/// Wall-clock time that never goes backwards, as the core needs it: the clock of the term's start, and what has
/// passed since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Timestamp,
    began: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: SystemTime::now().into(), began: Instant::now() }
    }

    pub(super) fn now(self) -> Timestamp {
        self.start.plus(self.began.elapsed())
    }
}
