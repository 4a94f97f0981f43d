//! What runs engines, behind one pair of traits: a driver launches, an instance is watched and stopped.

use std::time::Duration;

use berth_wire::{EngineId, ModelSpec, Reservation, StartEngine};
use futures::future::LocalBoxFuture;
use reqwest::header::HeaderValue;

use crate::asleep::extras;
use crate::fill::{Values, fill_all};
use crate::logs::Log;
use crate::mask::Mask;
use crate::procs::Mark;

/// A boxed future: starting and stopping engines is far from the hot path.
pub(crate) type Doing<'a, T> = LocalBoxFuture<'a, T>;

/// An engine to be launched.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// The command it comes from.
    pub(crate) start: StartEngine,
    /// NVIDIA GPUs it may see, by UUID.
    pub(crate) gpus: Vec<String>,
    /// AMD GPUs it may see, by their ids.
    pub(crate) amd: Vec<String>,
    /// Arguments behind its own: what is known only here.
    pub(crate) more: Vec<String>,
    /// Volumes of its container beside its own.
    pub(crate) volumes: Vec<String>,
    /// RAM it may use, where RAM is what it runs in.
    pub(crate) ram: Option<u64>,
    /// It is to be able to sleep.
    pub(crate) sleeps: bool,
}

impl Order {
    pub(crate) fn engine(&self) -> EngineId {
        self.start.engine
    }

    pub(crate) fn model(&self) -> &ModelSpec {
        &self.start.model
    }

    /// Bytes it may use over all its accelerators.
    pub(crate) fn memory(&self) -> u64 {
        self.start.reservations.iter().map(|Reservation { bytes, .. }| *bytes).sum()
    }

    /// What follows its command.
    pub(crate) fn args(&self, values: &Values) -> Vec<String> {
        let mut args = fill_all(&self.model().engine.args, values);
        args.extend_from_slice(&self.more);
        if self.sleeps {
            args.extend(
                extras(&self.start, !(self.gpus.is_empty() && self.amd.is_empty())).0.map(str::to_owned),
            );
        }
        args
    }

    /// Its variables.
    pub(crate) fn environment(&self, values: &Values) -> Vec<(String, String)> {
        let mut variables = environment(&self.model().engine.env, values);
        if self.sleeps {
            variables.extend(extras(&self.start, !(self.gpus.is_empty() && self.amd.is_empty())).1);
        }
        variables
    }

    /// Hides the values of its environment.
    pub(crate) fn mask(&self, values: &Values) -> Mask {
        let environment = environment(&self.model().engine.env, values);
        Mask::of(environment.iter().map(|(_, value)| value.as_str()))
    }

    /// What its placeholders stand for when it listens on `host` and `port`.
    pub(crate) fn values(&self, host: &'static str, port: u16) -> Values {
        let model = self.model();
        Values {
            port,
            host,
            id: model.id.as_str().into(),
            memory: self.memory(),
            concurrency: model.concurrency,
            context: model.context.unwrap_or(0),
            berth: std::env::current_exe().map_or_else(|_| "berth".into(), |path| path.display().to_string()),
        }
    }
}

/// An engine that could not be launched; nothing of it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What happened and what to do.
    pub(crate) message: String,
    /// Trying again will fail the same way.
    pub(crate) permanent: bool,
}

impl Failure {
    pub(crate) fn permanent(message: impl Into<String>) -> Self {
        Self { message: message.into(), permanent: true }
    }

    pub(crate) fn passing(message: impl Into<String>) -> Self {
        Self { message: message.into(), permanent: false }
    }
}

/// Tells of progress.
pub(crate) type Progress<'a> = &'a dyn Fn(String);

/// Runs engines.
pub(crate) trait Driver {
    /// Launches one. It need not serve yet when this returns.
    fn launch<'a>(
        &'a self,
        order: &'a Order,
        progress: Progress<'a>,
    ) -> Doing<'a, Result<Box<dyn Instance>, Failure>>;

    /// Removes whatever there is of an engine: after a launch that failed or was dropped half-way.
    fn sweep(&self, engine: EngineId) -> Doing<'_, ()>;
}

/// An engine that was launched.
pub(crate) trait Instance {
    /// `host:port` of its HTTP server, or its whole address up to the path.
    fn endpoint(&self) -> &str;

    /// How its processes are known, so that what they hold can be measured.
    fn mark(&mut self) -> Doing<'_, Option<Mark>> {
        Box::pin(async { None })
    }

    /// What exactly it was made of: a digest. `None` for what is no image.
    fn image(&self) -> Option<&str> {
        None
    }

    /// Where its log is.
    fn log(&self) -> Option<Log> {
        None
    }

    /// Waits for its end. May be dropped and asked again.
    fn exited(&mut self) -> Doing<'_, ()>;

    /// How its end came, once it has ended; may take a moment to find out.
    fn how(&mut self) -> Doing<'_, String>;

    /// Ends it: asks, and kills after `grace`. Returns when its memory is free. Also cleans up after one that
    /// ended by itself.
    fn stop(&mut self, grace: Duration) -> Doing<'_, ()>;

    /// What requests to it are let in by.
    fn key(&self) -> Option<HeaderValue> {
        None
    }

    /// Bytes that it was measured to hold of its accelerators.
    fn holds(&self) -> Option<u64> {
        None
    }

    /// It belongs to a server of somebody else: it serves as soon as it is there, and has no log to tell of.
    fn is_lent(&self) -> bool {
        false
    }

    /// Its last log lines, without their secrets.
    fn tail(&mut self) -> Doing<'_, Vec<String>>;

    /// Bytes of host RAM that it holds, where that can be measured.
    fn memory(&mut self) -> Doing<'_, Option<u64>> {
        Box::pin(async { None })
    }
}

/// Log lines told to those who wait.
pub(crate) const TOLD_LINES: usize = 20;

/// Processes and threads of an engine: beyond any engine, and below what takes the machine along.
pub(crate) const PIDS: u32 = 32_768;

/// The end of an engine for want of memory, of which it was given so much.
pub(crate) fn starved(bytes: u64) -> String {
    format!("was killed for using more than its {} MiB of memory (give the model more `memory`)", bytes >> 20)
}

/// `NAME=value` entries with their placeholders filled, and bare `NAME`s with this agent's own value.
fn environment(env: &[String], values: &Values) -> Vec<(String, String)> {
    env.iter()
        .filter_map(|entry| match entry.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), crate::fill::fill(value, values))),
            None => berth_config::env::var(entry).map(|value| (entry.clone(), value)),
        })
        .collect()
}
