//! How often a model is asked for: two exponentially weighted counts, one quick and one slow to forget.

use std::time::Duration;

use berth_wire::Timestamp;

use crate::policy::Policy;

/// Arrivals of one model.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    counts: [f64; 2],
    at: Timestamp,
}

impl Rate {
    /// One more, at `now`.
    pub(crate) fn arrived(&mut self, now: Timestamp, policy: &Policy) {
        let passed = now.since(self.at).as_secs_f64();
        for (count, tau) in self.counts.iter_mut().zip(policy.rate_taus) {
            *count = *count * decay(passed, tau) + 1.0;
        }
        self.at = self.at.max(now);
    }

    /// Arrivals a second, as expected from `now` on.
    pub(crate) fn per_second(&self, now: Timestamp, policy: &Policy) -> f64 {
        let passed = now.since(self.at).as_secs_f64();
        let mix = [policy.rate_mix, 1.0 - policy.rate_mix];
        self.counts
            .iter()
            .zip(policy.rate_taus)
            .zip(mix)
            .map(|((count, tau), share)| share * count * decay(passed, tau) / tau.as_secs_f64().max(1e-3))
            .sum()
    }
}

/// `libm`, since the system's own may differ between machines in the last bit, and a log must replay.
fn decay(passed: f64, tau: Duration) -> f64 {
    libm::exp(-passed / tau.as_secs_f64().max(1e-3))
}
