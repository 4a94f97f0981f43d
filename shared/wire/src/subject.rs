//! The subject grammar and the names of streams and buckets, all under one root.

use crate::id::{GatewayId, HostId, JobId, ModelId};
use crate::slug;

/// What a control subject asks of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Run a job on an engine.
    Dispatch,
    /// Nobody waits for a job any more.
    Cancel,
    /// Send more of a job's output.
    Credit,
    /// Start an engine.
    Start,
    /// Stop an engine.
    Stop,
    /// Put an engine to sleep.
    Sleep,
    /// Wake an engine that sleeps.
    Wake,
    /// Say all that is true.
    Status,
    /// Run a job at once or say no: the express lane.
    Offer,
    /// Open or close an engine's express lane.
    Lane,
    /// Say which jobs of the express lane still run.
    Roll,
    /// Send an engine's log to an operator.
    Logs,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 12] = [
        Self::Dispatch,
        Self::Cancel,
        Self::Credit,
        Self::Start,
        Self::Stop,
        Self::Sleep,
        Self::Wake,
        Self::Status,
        Self::Offer,
        Self::Lane,
        Self::Roll,
        Self::Logs,
    ];

    /// The subject token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dispatch => "dispatch",
            Self::Cancel => "cancel",
            Self::Credit => "credit",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Sleep => "sleep",
            Self::Wake => "wake",
            Self::Status => "status",
            Self::Offer => "offer",
            Self::Lane => "lane",
            Self::Roll => "roll",
            Self::Logs => "logs",
        }
    }

    /// The verb of a control subject's last token.
    #[must_use]
    pub fn of(subject: &str) -> Option<Self> {
        let token = subject.rsplit('.').next()?;
        Self::ALL.into_iter().find(|verb| verb.as_str() == token)
    }
}

/// Builds every subject; the root is configurable, so that several fleets share a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    root: String,
}

impl Default for Subjects {
    fn default() -> Self {
        Self { root: "berth.v1".into() }
    }
}

impl Subjects {
    /// Subjects under `root`; `None` unless it is dot-separated tokens of `[A-Za-z0-9_-]`.
    #[must_use]
    pub fn new(root: &str) -> Option<Self> {
        root.split('.').all(slug::is_token).then(|| Self { root: root.into() })
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Where a job of `model` is submitted.
    #[must_use]
    pub fn submit(&self, model: &ModelId) -> String {
        format!("{}.job.submit.{}", self.root, slug::encode(model.as_str()))
    }

    /// Every submitted job.
    #[must_use]
    pub fn submit_all(&self) -> String {
        format!("{}.job.submit.>", self.root)
    }

    /// Where a job is cancelled.
    #[must_use]
    pub fn cancel(&self, job: JobId) -> String {
        format!("{}.job.cancel.{job}", self.root)
    }

    /// Every cancellation.
    #[must_use]
    pub fn cancel_all(&self) -> String {
        format!("{}.job.cancel.*", self.root)
    }

    /// Where a gateway hears of a job.
    #[must_use]
    pub fn out(&self, gateway: &GatewayId, job: JobId) -> String {
        format!("{}.out.{gateway}.{job}", self.root)
    }

    /// All that a gateway hears.
    #[must_use]
    pub fn out_all(&self, gateway: &GatewayId) -> String {
        format!("{}.out.{gateway}.*", self.root)
    }

    /// Where it is asked whether a gateway is there.
    #[must_use]
    pub fn out_probe(&self, gateway: &GatewayId) -> String {
        format!("{}.out.{gateway}.probe", self.root)
    }

    /// The job of an output subject.
    #[must_use]
    pub fn job_of(subject: &str) -> Option<JobId> {
        subject.rsplit('.').next()?.parse().ok()
    }

    /// A command for a host.
    #[must_use]
    pub fn ctl(&self, host: &HostId, verb: Verb) -> String {
        format!("{}.ctl.{host}.{}", self.root, verb.as_str())
    }

    /// Every command for a host.
    #[must_use]
    pub fn ctl_all(&self, host: &HostId) -> String {
        format!("{}.ctl.{host}.*", self.root)
    }

    /// Where the agent of a host reports to the leader.
    #[must_use]
    pub fn report(&self, host: &HostId) -> String {
        format!("{}.sched.report.{host}", self.root)
    }

    /// Every report.
    #[must_use]
    pub fn report_all(&self) -> String {
        format!("{}.sched.report.*", self.root)
    }

    /// Where an operator hears a log of a host; `id` is its own.
    #[must_use]
    pub fn tail(&self, host: &HostId, id: &str) -> String {
        format!("{}.tail.{host}.{id}", self.root)
    }

    /// Where the leader answers what it knows.
    #[must_use]
    pub fn scheduler_status(&self) -> String {
        format!("{}.sched.status", self.root)
    }

    /// Where the leader is asked for leases and told of hints.
    #[must_use]
    pub fn lease(&self) -> String {
        format!("{}.sched.lease", self.root)
    }

    /// Where a gateway asks the leader which jobs it does not know.
    #[must_use]
    pub fn scheduler_roll(&self) -> String {
        format!("{}.sched.roll", self.root)
    }

    /// Where the leader is asked of jobs and models, and to load and unload.
    #[must_use]
    pub fn operate(&self) -> String {
        format!("{}.sched.operate", self.root)
    }

    /// Where the leader is asked to drain hosts.
    #[must_use]
    pub fn drain(&self) -> String {
        format!("{}.sched.drain", self.root)
    }

    /// Where one instance of a service answers how it is.
    #[must_use]
    pub fn status(&self, role: &str, instance: &str) -> String {
        format!("{}.status.{role}.{instance}", self.root)
    }

    /// Where a fact is published.
    #[must_use]
    pub fn event(&self, kind: &str, id: &str) -> String {
        format!("{}.evt.{kind}.{id}", self.root)
    }

    /// Every fact.
    #[must_use]
    pub fn event_all(&self) -> String {
        format!("{}.evt.>", self.root)
    }

    /// The stream of outstanding jobs.
    #[must_use]
    pub fn jobs_stream(&self) -> String {
        format!("{}_JOBS", self.asset_prefix().to_uppercase())
    }

    /// The stream of facts.
    #[must_use]
    pub fn events_stream(&self) -> String {
        format!("{}_EVENTS", self.asset_prefix().to_uppercase())
    }

    /// A bucket, as in `berth_hosts` for `hosts`.
    #[must_use]
    pub fn bucket(&self, name: &str) -> String {
        format!("{}_{name}", self.asset_prefix())
    }

    /// The first token of the default root; the whole of another root.
    fn asset_prefix(&self) -> String {
        if *self == Self::default() { "berth".into() } else { self.root.replace('.', "_") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_id_is_one_token_of_its_submit_subject() {
        let subjects = Subjects::default();
        assert_eq!(subjects.submit(&"org/m:1.5".into()), "berth.v1.job.submit.org_2fm_3a1_2e5");
    }

    #[test]
    fn another_root_has_assets_of_its_own() {
        let subjects = Subjects::new("team-a.v1").unwrap();
        assert_eq!(subjects.jobs_stream(), "TEAM-A_V1_JOBS");
        assert_eq!(Subjects::default().bucket("hosts"), "berth_hosts");
        assert!(Subjects::new("bad root").is_none());
        assert!(Subjects::new("").is_none());
    }

    #[test]
    fn every_verb_is_read_back_from_its_subject() {
        for verb in Verb::ALL {
            assert_eq!(Verb::of(&Subjects::default().ctl(&"h".into(), verb)), Some(verb));
        }
        assert_eq!(Verb::of("berth.v1.ctl.h.later"), None);
    }

    #[test]
    fn an_output_subject_names_its_job() {
        let job = JobId(42);
        let subject = Subjects::default().out(&"gw".into(), job);
        assert_eq!(Subjects::job_of(&subject), Some(job));
    }
}
