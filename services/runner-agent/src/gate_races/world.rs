//! What there is in such a world, and what is under way in it.

use super::*;

pub(super) const SLOTS: u32 = 2;
pub(super) const HOSTS: [&str; 2] = ["h0", "h1"];
/// A third does not fit on two hosts of one engine each.
pub(super) const MODELS: [&str; 3] = ["a", "b", "c"];

/// An attempt at an agent.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) permitted: bool,
    pub(super) output: bool,
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) gate: Gate,
    pub(super) model: ModelId,
    pub(super) reservations: Vec<Reservation>,
    pub(super) running: BTreeMap<(JobId, Attempt), Run>,
    /// A close was acknowledged, and the leader's queue for the model has not been empty since.
    pub(super) closed_for_a_waiter: bool,
}

#[derive(Debug)]
pub(super) struct Agent {
    pub(super) boot: u32,
    pub(super) fence: Epoch,
    pub(super) engines: BTreeMap<EngineId, Engine>,
    pub(super) outbox: Outbox,
    pub(super) report: Option<Batch>,
}

/// From a leader to an agent.
#[derive(Debug, Clone)]
pub(super) enum Command {
    Dispatch(JobId, Attempt, EngineId),
    Start(EngineId, ModelId, Vec<Reservation>, Option<String>),
    Stop(EngineId),
    Lane(EngineId, u64, bool),
    Cancel(JobId, Attempt),
}

impl Command {
    pub(super) fn engine(&self) -> Option<EngineId> {
        match self {
            Self::Dispatch(_, _, id) | Self::Start(id, ..) | Self::Stop(id) | Self::Lane(id, ..) => Some(*id),
            Self::Cancel(..) => None,
        }
    }
}

/// To a gateway.
#[derive(Debug)]
pub(super) enum Word {
    Declined,
    Begin(HostId, EngineId),
    Output,
    End,
    Failed,
    Lost,
    Refused,
    /// The job has ended; whoever has heard no end of it has lost that.
    Last,
}

/// What the gateway knows of a job.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: ModelId,
    pub(super) newest: Option<Attempt>,
    pub(super) run: Option<Attempt>,
    pub(super) host: Option<HostId>,
    pub(super) forwarded: bool,
    pub(super) submitted: bool,
    pub(super) ends: u32,
}

/// How far a leader has heard a host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heard {
    pub(super) boot: u32,
    pub(super) next: u64,
    pub(super) snapshot: u64,
    pub(super) upto: u64,
}

impl Heard {
    pub(super) fn takes(&mut self, snapshot: &Snapshot) {
        self.snapshot = self.snapshot.max(snapshot.number);
        self.upto = self.upto.max(snapshot.upto);
    }

    /// As a scheduler has it.
    pub(super) fn is_news(&mut self, entry: &ReportEntry, number: u64) -> bool {
        match entry {
            ReportEntry::Snapshot(snapshot) if snapshot.number < self.snapshot => false,
            ReportEntry::Snapshot(snapshot) => {
                self.takes(snapshot);
                true
            }
            ReportEntry::Engine(report) => number > self.upto || report.state.is_gone(),
            _ => true,
        }
    }
}

pub(super) struct World {
    pub(super) now: Timestamp,
    pub(super) epoch: u64,
    pub(super) core: State,
    pub(super) agents: BTreeMap<HostId, Option<Agent>>,
    pub(super) boots: u32,
    /// Hosts whose agent died, until the leader has noticed.
    pub(super) died: BTreeSet<HostId>,
    pub(super) synced: BTreeMap<HostId, Heard>,
    pub(super) commands: Vec<(HostId, Epoch, Command)>,
    pub(super) offers: Vec<(HostId, EngineId, JobId)>,
    pub(super) words: VecDeque<(JobId, Attempt, Word)>,
    /// What the gateway sent to the stream: a job, or that nobody waits for it.
    pub(super) sent: VecDeque<(JobId, bool)>,
    pub(super) stream: BTreeSet<JobId>,
    pub(super) jobs: BTreeMap<JobId, Asked>,
    pub(super) said: u64,
    pub(super) story: Vec<String>,
}

pub(super) fn error() -> ApiError {
    ApiError::new(ErrorKind::EngineFailed, "test", "test")
}

pub(super) fn usage() -> Usage {
    Usage { total: Duration::from_millis(5), ..Usage::default() }
}

pub(super) fn report_of(id: EngineId, engine: &Engine) -> EngineReport {
    EngineReport {
        engine: id,
        model: engine.model.clone(),
        state: engine.gate.state(),
        reservations: engine.reservations.clone(),
        concurrency: SLOTS,
        failure: None,
        start_took: None,
        detail: None,
        sleep: None,
        peak_memory: None,
    }
}
