//! `sched.operate`: what people ask the leader of jobs, models, engines and hints, and what it answers.
//!
//! Answers are shown outside the bus as they are, by `berth ... --json` and under `/api/v1`. Times are in seconds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec::Message;
use crate::error::ApiError;
use crate::host::EngineRecord;
use crate::id::{AcceleratorId, EngineId, HostId, JobId, KeyId, ModelId, SessionId};
use crate::job::Class;

/// A question or an order. Models are catalog ids; aliases are resolved before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperateRequest {
    /// Why a job is where it is. Answered by [`OperateReply::Explained`].
    Explain {
        /// Which job.
        job: JobId,
        /// Only if it came with this API key; `None`: whosever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
    },
    /// The jobs there are. Answered by [`OperateReply::Jobs`].
    Jobs {
        /// Only those that wait.
        #[serde(default)]
        waiting: bool,
        /// At most so many.
        limit: u32,
        /// Only those that came with this API key; `None`: whosever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
    },
    /// The models there are. Answered by [`OperateReply::Models`].
    Models,
    /// Have an engine of a model started. Answered by [`OperateReply::Done`].
    Load {
        /// Of which.
        model: ModelId,
        /// Where; `None`: wherever it is best.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<HostId>,
    },
    /// Have the engines of a model stopped. Answered by [`OperateReply::Done`].
    Unload {
        /// Of which.
        model: ModelId,
        /// Where; `None`: everywhere.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<HostId>,
        /// Also where it is pinned, leases keep it, jobs wait for it or run on it.
        #[serde(default)]
        force: bool,
    },
    /// Keep one engine of a model ready always, or no longer. Answered by [`OperateReply::Done`].
    Pin {
        /// Which.
        model: ModelId,
        /// Whether.
        pin: bool,
    },
    /// The hints there are. Answered by [`OperateReply::Hints`].
    Hints {
        /// Whose; `None`: everybody's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<SessionId>,
        /// Only those that came with this API key; `None`: whosever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
    },
    /// Take hints back. Answered by [`OperateReply::Withdrawn`].
    Withdraw {
        /// Whose.
        session: SessionId,
        /// Of what; `None`: all of the session's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model: Option<ModelId>,
        /// Only those that came with this API key; `None`: whosever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeyId>,
    },
}

impl Message for OperateRequest {
    const SCHEMA: &'static str = "sched.operate/1";
}

/// The leader's answer to an [`OperateRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperateReply {
    /// Why a job is where it is.
    Explained(Box<JobWhy>),
    /// Jobs, those that run last.
    Jobs {
        /// As many as were asked for.
        jobs: Vec<JobView>,
        /// How many there are.
        total: u64,
    },
    /// Models by name.
    Models(Vec<ModelView>),
    /// It is done, or on its way.
    Done {
        /// The engines that it is about.
        engines: Vec<EngineId>,
        /// Nothing had to be done.
        already: bool,
    },
    /// Hints by model.
    Hints(Vec<HintView>),
    /// These hints were taken back.
    Withdrawn {
        /// Of these models.
        models: Vec<ModelId>,
    },
    /// Not done, and why.
    Refused(ApiError),
}

impl Message for OperateReply {
    const SCHEMA: &'static str = "sched.operate-reply/1";
}

/// A job that has not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Which.
    pub job: JobId,
    /// The model it asks for.
    pub model: ModelId,
    /// It runs; else it waits.
    pub running: bool,
    /// Jobs of its model that came before it and wait too; `None`: it runs.
    pub position: Option<u64>,
    /// How much its waiting counts.
    pub class: Class,
    /// The conversation it belongs to.
    pub session: Option<SessionId>,
    /// The API key it came with.
    pub key: Option<KeyId>,
    /// Since its gateway took it.
    pub age_s: f64,
    /// Until it is expected to start; `None`: not known, or it runs.
    pub eta_s: Option<f64>,
    /// Why it waits.
    pub why: Option<String>,
    /// Where it runs.
    pub engine: Option<EngineId>,
    /// On which host.
    pub host: Option<HostId>,
    /// How often an engine was given it.
    pub attempts: u32,
}

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobWhy {
    /// The job.
    #[serde(flatten)]
    pub job: JobView,
    /// Weighted seconds that the jobs of its model have waited together.
    pub model_waited_s: f64,
    /// The cheapest places for a further engine of its model, best first.
    pub places: Vec<PlaceView>,
}

/// A place that an engine could have, and its price.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceView {
    /// Where.
    pub host: HostId,
    /// On what.
    pub accelerators: Vec<AcceleratorId>,
    /// Models whose engines would go.
    pub evicts: Vec<ModelId>,
    /// A sleeping engine would be woken.
    pub wake: bool,
    /// Weighted seconds of waiting that those models are expected to lose.
    pub loss_s: f64,
    /// Until they have nothing left to do.
    pub drain_s: f64,
    /// How long the start takes then.
    pub start_s: f64,
    /// All in all, in weighted seconds.
    pub cost_s: f64,
}

/// A model of the catalog as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelView {
    /// Its name.
    pub model: ModelId,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The kind of its engine.
    pub engine: String,
    /// How near its best engine is: ready, loading, sleeping, stopping or stopped; without any, `failed`: the last start
    /// failed, and `cannot_fit`: no host can give what it needs.
    pub state: String,
    /// Hosts that have an engine of it.
    pub hosts: Vec<HostId>,
    /// Its engines.
    pub engines: Vec<EngineId>,
    /// One engine is kept ready always.
    pub pinned: bool,
    /// Bytes that the catalog sets aside for it; `None`: it does not say.
    pub memory: Option<u64>,
    /// Bytes that it is estimated to take, by its files.
    pub estimated: Option<u64>,
    /// Most bytes that an engine of it was measured to take.
    pub measured: Option<u64>,
    /// Tokens that it can look at.
    pub context: Option<u32>,
    /// Requests that one engine runs at a time.
    pub concurrency: u32,
    /// Jobs that wait for it.
    pub waiting: u64,
    /// Jobs that run on it.
    pub running: u64,
    /// What a job submitted now may expect to wait.
    pub wait_s: Option<f64>,
    /// Sessions with a lease on it.
    pub leases: u64,
    /// Sessions that gave a hint of it.
    pub hints: u64,
    /// An operator asked for an engine that is not there yet.
    pub asked_for: bool,
    /// Why it has no engine and gets none now.
    pub error: Option<String>,
    /// Its LoRA adapters.
    #[serde(default)]
    pub adapters: Vec<AdapterView>,
}

/// A LoRA adapter of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterView {
    /// Its name.
    pub model: ModelId,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The engines of its base that hold it now.
    pub engines: Vec<EngineId>,
}

impl ModelView {
    /// Takes over from the engines themselves which of them hold its adapters.
    pub fn note_adapters<'a>(&mut self, engines: impl Iterator<Item = &'a EngineRecord>) {
        for engine in engines.filter(|engine| engine.model == self.model) {
            let held = self.adapters.iter_mut().filter(|adapter| engine.adapters.contains(&adapter.model));
            held.for_each(|adapter| adapter.engines.push(engine.engine));
        }
    }
}

/// A hint that is still to come true.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HintView {
    /// Whose request it will be.
    pub session: SessionId,
    /// What it will ask for.
    pub model: ModelId,
    /// The API key it came with.
    pub key: Option<KeyId>,
    /// Until then; nought: it is due.
    pub due_s: f64,
}

/// Longest time that an operator's wish to have a model loaded is kept.
pub const LOAD_KEPT: Duration = Duration::from_secs(1800);
