//! What was measured of a model on a kind of accelerator; replaces what was declared or guessed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::id::ModelId;
use crate::slug;

/// Where a model's weights are when an engine for it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// An engine of it sleeps: weights in host RAM, the server running.
    Sleeping,
    /// It ran on this host before: weights on disk and perhaps in the page cache.
    Stopped,
    /// It never ran on this host, as far as is known: weights or image may have to be fetched.
    Absent,
}

/// `berth_profiles/<model>.<config>.<accelerator>`: means over past starts and jobs (EWMA, one eighth new).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The model.
    pub model: ModelId,
    /// Hash of what it was run with: a changed configuration is measured anew.
    pub config: String,
    /// Name of the accelerator it ran on.
    pub accelerator: String,
    /// From the wake command until ready.
    #[serde(rename = "wake_ms", default, with = "crate::time::option_millis")]
    pub wake: Option<Duration>,
    /// From the start command until ready, on a host where it ran before.
    #[serde(rename = "start_ms", default, with = "crate::time::option_millis")]
    pub start: Option<Duration>,
    /// From the start command until ready, on a host where it never ran.
    #[serde(rename = "first_start_ms", default, with = "crate::time::option_millis")]
    pub first_start: Option<Duration>,
    /// How long a job takes from its start to its end.
    #[serde(rename = "service_ms", default, with = "crate::time::option_millis")]
    pub service: Option<Duration>,
    /// Output tokens a second of one job, in thousandths.
    #[serde(default)]
    pub millitokens_per_second: Option<u64>,
    /// Most bytes that it was measured to hold, over all its accelerators together.
    #[serde(default)]
    pub peak_memory: Option<u64>,
}

impl Profile {
    /// One of which nothing is known.
    #[must_use]
    pub fn new(model: ModelId, config: String, accelerator: String) -> Self {
        Self {
            model,
            config,
            accelerator,
            wake: None,
            start: None,
            first_start: None,
            service: None,
            millitokens_per_second: None,
            peak_memory: None,
        }
    }

    /// Its key in the bucket.
    #[must_use]
    pub fn key(&self) -> String {
        let (model, accelerator) = (slug::encode(self.model.as_str()), slug::encode(&self.accelerator));
        format!("{model}.{}.{accelerator}", self.config)
    }

    /// What a start from there took.
    #[must_use]
    pub fn start_from(&self, residency: Residency) -> Option<Duration> {
        match residency {
            Residency::Sleeping => self.wake,
            Residency::Stopped => self.start.or(self.first_start),
            Residency::Absent => self.first_start.or(self.start),
        }
    }
}

impl Message for Profile {
    const SCHEMA: &'static str = "kv.profile/1";
}
