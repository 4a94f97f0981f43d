//! Who connects.

use berth_wire::{HostId, Subjects, slug};

/// A role of the fleet, as NATS knows it by its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// Schedulers. They also make streams and buckets, as nobody else may.
    Scheduler,
    /// Gateways.
    Gateway,
    /// The agent of one host.
    Agent(HostId),
    /// Health.
    Health,
    /// People: `berth status`, `berth lease`, the NATS CLI.
    Operator,
}

impl Identity {
    /// Those that a fleet has whatever its hosts are.
    pub const ROLES: [Self; 4] = [Self::Scheduler, Self::Gateway, Self::Health, Self::Operator];

    /// The agent of a host; `None` where that is no subject token.
    #[must_use]
    pub fn agent(host: &str) -> Option<Self> {
        slug::is_token(host).then(|| Self::Agent(host.into()))
    }

    /// Its name in files, as in `gateway` and `agent-gpu-1`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Scheduler => "scheduler".into(),
            Self::Gateway => "gateway".into(),
            Self::Agent(host) => format!("agent-{host}"),
            Self::Health => "health".into(),
            Self::Operator => "operator".into(),
        }
    }

    /// Under what its replies come. Of its own: whoever could hear another's would read every answer.
    #[must_use]
    pub fn inbox(&self, subjects: &Subjects) -> String {
        let root = subjects.root();
        match self {
            Self::Agent(host) => format!("_INBOX.{root}.agent.{host}"),
            other => format!("_INBOX.{root}.{}", other.name()),
        }
    }
}
