//! Signs of life: liveness means progress, not existence.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;

/// What one actor last showed of itself.
#[derive(Debug)]
struct Pulse {
    last: Instant,
    alive: bool,
    restarts: u32,
    state: serde_json::Value,
}

/// Held by an actor and dropped with it, which tells its supervisor; also when the actor panicked.
#[derive(Debug)]
pub struct Life {
    pulse: Arc<Mutex<Pulse>>,
    _ended: oneshot::Sender<()>,
}

impl Life {
    /// Shows progress and the state as of now.
    pub fn beat(&self, state: serde_json::Value) {
        let mut pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        pulse.last = Instant::now();
        pulse.state = state;
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner).alive = false;
    }
}

/// One actor as its service reports it.
#[derive(Debug, Clone, Serialize)]
pub struct VitalSigns {
    /// The actor's name.
    pub name: String,
    /// It exists and has shown progress within [`Vitals::STALL`].
    pub healthy: bool,
    /// How long ago it last showed progress.
    pub idle_ms: u64,
    /// How often it was made anew.
    pub restarts: u32,
    /// Its own words.
    pub state: serde_json::Value,
}

/// All actors of a service. Clones share.
#[derive(Debug, Clone)]
pub struct Vitals {
    actors: Arc<Mutex<BTreeMap<String, Arc<Mutex<Pulse>>>>>,
    stall: Duration,
}

impl Default for Vitals {
    fn default() -> Self {
        Self::with_stall(Self::STALL)
    }
}

impl Vitals {
    /// An actor that has shown no progress for so long is stuck: it should beat every second.
    pub const STALL: Duration = Duration::from_secs(10);

    /// Those whose actors are stuck after another time than usual.
    #[must_use]
    pub fn with_stall(stall: Duration) -> Self {
        Self { actors: Arc::default(), stall }
    }

    /// A new life for the actor `name`, and the signal of its end.
    pub(crate) fn born(&self, name: &str) -> (Life, oneshot::Receiver<()>) {
        let (ended, end) = oneshot::channel();
        let mut actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        let pulse = actors.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Mutex::new(Pulse {
                last: Instant::now(),
                alive: false,
                restarts: 0,
                state: serde_json::Value::Null,
            }))
        });
        {
            let mut pulse = pulse.lock().unwrap_or_else(PoisonError::into_inner);
            pulse.last = Instant::now();
            pulse.alive = true;
        }
        (Life { pulse: Arc::clone(pulse), _ended: ended }, end)
    }

    pub(crate) fn restarted(&self, name: &str) {
        if let Some(pulse) = self.actors.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            pulse.lock().unwrap_or_else(PoisonError::into_inner).restarts += 1;
        }
    }

    pub(crate) fn forget(&self, name: &str) {
        self.actors.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The signs of every actor, by name.
    #[must_use]
    pub fn signs(&self) -> Vec<VitalSigns> {
        let actors = self.actors.lock().unwrap_or_else(PoisonError::into_inner);
        actors
            .iter()
            .map(|(name, pulse)| {
                let pulse = pulse.lock().unwrap_or_else(PoisonError::into_inner);
                let idle = pulse.last.elapsed();
                VitalSigns {
                    name: name.clone(),
                    healthy: pulse.alive && idle < self.stall,
                    idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
                    restarts: pulse.restarts,
                    state: pulse.state.clone(),
                }
            })
            .collect()
    }
}
