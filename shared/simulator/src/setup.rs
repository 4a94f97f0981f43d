//! What a trace is run on.

use std::time::Duration;

/// A fleet, and what its clients tell it.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Accelerators in all; each holds one model at a time.
    pub accelerators: u32,
    /// Jobs that one engine serves at once.
    pub slots: u32,
    /// From the start of an engine until it serves.
    pub load: Duration,
    /// Accelerators of one host; the last host may have fewer.
    pub per_host: u32,
    /// Engines may sleep in host RAM. The rivals know nothing of it.
    pub sleep: Option<SleepTier>,
    /// Some jobs are announced. The rivals know nothing of it.
    pub hints: Option<Hints>,
    /// The numbers that the core decides by; limits of queues and of reporting do not apply here.
    pub core: berth_placement::Policy,
    /// Check the core's books after every step: slow, for tests.
    pub audit: bool,
}

/// Host RAM for engines that sleep.
#[derive(Debug, Clone, Copy)]
pub struct SleepTier {
    /// Engines that may sleep, for each accelerator.
    pub engines: u32,
    /// From the wake command until an engine serves.
    pub wake: Duration,
}

/// Jobs that are announced before they arrive.
#[derive(Debug, Clone, Copy)]
pub struct Hints {
    /// How long before.
    pub lead: Duration,
    /// Which part of them, from 0 to 1.
    pub share: f64,
    /// Which of them: the same seed announces the same jobs.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            accelerators: 1,
            slots: 8,
            load: Duration::from_secs(30),
            per_host: 1,
            sleep: None,
            hints: None,
            core: berth_placement::Policy::default(),
            audit: false,
        }
    }
}
