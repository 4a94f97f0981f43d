//! A log of what the core was told, so that its decisions can be made once more at a desk.
//!
//! Lines of JSON: a header with the policy at the start of each term, then one line an event with its time and a
//! digest of what was decided. What a job asks and answers is in no event, so it is in no log.

use berth_wire::{Epoch, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::effect::Effect;
use crate::event::Event;
use crate::policy::Policy;
use crate::state::{State, step};

/// The version of the form that is written; others are not read.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    berth_log: u32,
    epoch: Epoch,
    at: Timestamp,
    policy: Policy,
}

#[derive(Serialize)]
struct LineOut<'a> {
    at: Timestamp,
    event: &'a Event,
    decided: String,
}

#[derive(Deserialize)]
struct LineIn {
    at: Timestamp,
    event: Event,
    decided: String,
}

/// A line that cannot be written or read.
#[derive(Debug, Error)]
pub enum LogError {
    /// It is no JSON of this form.
    #[error("this is no line of a scheduler's log: {0}")]
    Form(#[from] serde_json::Error),
    /// Another version of Berth wrote it.
    #[error("the log has form {found}; this berth reads form {VERSION}")]
    Version {
        /// The form it has.
        found: u32,
    },
    /// The first line is no header.
    #[error("the log does not begin with a header: its beginning was cut off")]
    NoHeader,
    /// Time runs backwards.
    #[error("the line is of an earlier time than the one before it")]
    Backwards,
}

/// The first line of a term.
///
/// # Errors
/// When the policy has no JSON form.
pub fn header(policy: &Policy, epoch: Epoch, at: Timestamp) -> Result<String, LogError> {
    Ok(serde_json::to_string(&Header { berth_log: VERSION, epoch, at, policy: policy.clone() })?)
}

/// The line of one step.
///
/// # Errors
/// When the event has no JSON form.
pub fn line(at: Timestamp, event: &Event, effects: &[Effect]) -> Result<String, LogError> {
    Ok(serde_json::to_string(&LineOut { at, event, decided: digest(effects)? })?)
}

/// FNV-1a over the effects' JSON, in hexadecimal.
fn digest(effects: &[Effect]) -> Result<String, LogError> {
    let text = serde_json::to_vec(effects)?;
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    Ok(format!("{hash:016x}"))
}

/// A step that was taken once more.
#[derive(Debug)]
pub struct Replayed {
    /// When.
    pub at: Timestamp,
    /// What the core was told.
    pub event: Event,
    /// What it decides now.
    pub effects: Vec<Effect>,
    /// Whether that is what it decided then.
    pub same: bool,
}

/// A log being replayed.
#[derive(Debug, Default)]
pub struct Replay {
    state: Option<(State, Timestamp)>,
}

impl Replay {
    /// The books as they are now; `None` before the first header.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref().map(|(state, _)| state)
    }

    /// Takes the next line: `None` for a header, which begins a new term with empty books.
    ///
    /// # Errors
    /// When the line is no line of a log, or does not follow the one before.
    pub fn take(&mut self, text: &str) -> Result<Option<Replayed>, LogError> {
        if text.starts_with("{\"berth_log\"") {
            let header: Header = serde_json::from_str(text)?;
            if header.berth_log != VERSION {
                return Err(LogError::Version { found: header.berth_log });
            }
            self.state = Some((State::new(header.policy, header.epoch, header.at), header.at));
            return Ok(None);
        }
        let line: LineIn = serde_json::from_str(text)?;
        let Some((state, before)) = &mut self.state else { return Err(LogError::NoHeader) };
        if line.at < *before {
            return Err(LogError::Backwards);
        }
        *before = line.at;
        let effects = step(state, line.event.clone(), line.at);
        let same = digest(&effects)? == line.decided;
        Ok(Some(Replayed { at: line.at, event: line.event, effects, same }))
    }
}
