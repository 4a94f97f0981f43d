//! What can go wrong between the core and its fleet. Each is a bug of one of them.

use thiserror::Error;

/// The core did what a fleet cannot follow, or nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// A job is never done with.
    #[error("{job} never ends")]
    NeverEnds {
        /// Which; the oldest of them.
        job: String,
    },
    /// Steps follow each other without any time passing.
    #[error("time stands still: the core asks for step after step; the oldest job is {job}")]
    Endless {
        /// The oldest job.
        job: String,
    },
    /// A job ended other than by its answer.
    #[error("{job} was given up: {why}")]
    GivenUp {
        /// Which.
        job: String,
        /// Why, in the core's words.
        why: String,
    },
    /// A job was dispatched again, or before it arrived.
    #[error("{job} was dispatched though it does not wait")]
    Twice {
        /// Which.
        job: String,
    },
    /// A job was dispatched to where it cannot run.
    #[error("{job} was dispatched to where it cannot run: {why}")]
    NoSlot {
        /// Which.
        job: String,
        /// Why.
        why: String,
    },
    /// A job was dispatched that nobody submitted.
    #[error("{0} was dispatched, which nobody submitted")]
    Unknown(String),
    /// An engine was told to do what it cannot.
    #[error("engine {engine} was told to {what}: {why}")]
    Engine {
        /// Which.
        engine: String,
        /// What.
        what: &'static str,
        /// Why it cannot.
        why: String,
    },
    /// The core's books are wrong.
    #[error("the core's books are wrong: {0}")]
    Broken(String),
}
