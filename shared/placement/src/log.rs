//! A log of what the core was told, so that its decisions can be made once more at a desk.
//!
//! Lines of JSON: a header with the policy at the start of each term, then one line an event with its number in the
//! term, its time and a digest of what was decided. What a job asks and answers is in no event, so it is in no log.

use berth_wire::{Epoch, Timestamp};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::effect::Effect;
use crate::event::Event;
use crate::policy::Policy;
use crate::state::{State, step};

/// What every log begins with.
pub const BEGINNING: &str = "{\"berth_log\"";
/// The version of the form that is written.
const VERSION: u32 = 2;
/// The one before it, whose lines have no numbers; it is read too.
const UNNUMBERED: u32 = 1;

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
    n: u64,
    at: Timestamp,
    event: &'a Event,
    decided: String,
}

#[derive(Deserialize)]
struct LineIn {
    #[serde(default)]
    n: u64,
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
    #[error("the log has form {found}; this berth reads forms {UNNUMBERED} and {VERSION}")]
    Version {
        /// The form it has.
        found: u32,
    },
    /// The first line is no header.
    #[error("the log does not begin with a header: its beginning was cut off")]
    NoHeader,
    /// Lines are missing, or stand in another order.
    #[error("this is event {found} of its term where event {expected} should be: {}", astray(*expected, *found))]
    Gap {
        /// The number it should have, from 1.
        expected: u64,
        /// The number it has.
        found: u64,
    },
    /// Time runs backwards.
    #[error("the line is of an earlier time than the one before it")]
    Backwards,
}

fn astray(expected: u64, found: u64) -> String {
    match found.checked_sub(expected) {
        Some(1) => "a line before it is missing".into(),
        Some(lines) => format!("{lines} lines before it are missing"),
        None => "the line is there twice, or lines were put in another order".into(),
    }
}

/// The first line of a term.
///
/// # Errors
/// When the policy has no JSON form.
pub fn header(policy: &Policy, epoch: Epoch, at: Timestamp) -> Result<String, LogError> {
    Ok(serde_json::to_string(&Header { berth_log: VERSION, epoch, at, policy: policy.clone() })?)
}

/// The line of the `n`-th step of a term, from 1.
///
/// # Errors
/// When the event has no JSON form.
pub fn line(n: u64, at: Timestamp, event: &Event, effects: &[Effect]) -> Result<String, LogError> {
    Ok(serde_json::to_string(&LineOut { n, at, event, decided: digest(effects)? })?)
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
    term: Option<Term>,
}

#[derive(Debug)]
struct Term {
    state: State,
    /// When its last line was.
    at: Timestamp,
    /// The number of its last line; `None`: its lines have none.
    n: Option<u64>,
}

impl Replay {
    /// The books as they are now; `None` before the first header.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        self.term.as_ref().map(|term| &term.state)
    }

    /// Takes the next line: `None` for a header, which begins a new term with empty books.
    ///
    /// # Errors
    /// When the line is no line of a log, or does not follow the one before.
    pub fn take(&mut self, text: &str) -> Result<Option<Replayed>, LogError> {
        if text.starts_with(BEGINNING) {
            let header: Header = serde_json::from_str(text)?;
            let n = match header.berth_log {
                VERSION => Some(0),
                UNNUMBERED => None,
                found => return Err(LogError::Version { found }),
            };
            self.term =
                Some(Term { state: State::new(header.policy, header.epoch, header.at), at: header.at, n });
            return Ok(None);
        }
        let line: LineIn = serde_json::from_str(text)?;
        let Some(term) = &mut self.term else { return Err(LogError::NoHeader) };
        if let Some(n) = &mut term.n {
            let expected = n.saturating_add(1);
            if line.n != expected {
                return Err(LogError::Gap { expected, found: line.n });
            }
            *n = expected;
        }
        if line.at < term.at {
            return Err(LogError::Backwards);
        }
        term.at = line.at;
        let effects = step(&mut term.state, line.event.clone(), line.at);
        let same = digest(&effects)? == line.decided;
        Ok(Some(Replayed { at: line.at, event: line.event, effects, same }))
    }
}
