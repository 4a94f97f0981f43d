//! What the core is told of a workload and its fleet.

use std::time::Duration;

use berth_placement::{Event, HostFacts, JobFacts, ModelNeeds};
use berth_wire::{
    Accelerator, AcceleratorId, AcceleratorKind, Class, Driver, HostId, ModelId, Profile, SessionId,
    SleepCost, Timestamp,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::{BEGIN, arrival, job_id, service};
use crate::select::{Job, Workload};
use crate::setup::Setup;

/// Memory of one accelerator, and of an engine asleep in host RAM.
pub(super) const MEMORY: u64 = 80 << 30;
/// What all the accelerators are.
const NAME: &str = "simulated";

pub(super) struct Facts<'a> {
    pub(super) workload: &'a Workload,
    pub(super) setup: &'a Setup,
}

impl Facts<'_> {
    /// The fleet as one that has run before: its start costs are known.
    pub(super) fn at_first(&self) -> Vec<Event> {
        let models = self.workload.models.iter().map(|model| self.needs(model)).collect();
        let profiles = self.workload.models.iter().map(|model| self.profile(model)).collect();
        let mut events = vec![Event::Catalog(models), Event::Profiles(profiles)];
        events.extend(hosts(self.setup).into_iter().map(|host| self.host(host)));
        events
    }

    fn needs(&self, model: &str) -> ModelNeeds {
        ModelNeeds {
            id: model.into(),
            memory: None,
            accelerators: 1,
            concurrency: self.setup.slots,
            driver: Driver::Process,
            labels: Vec::new(),
            idle_ttl: None,
            asleep_ttl: None,
            pin: false,
            keeps_context: false,
            max_replicas: None,
            config: String::new(),
        }
    }

    fn profile(&self, model: &str) -> Profile {
        Profile {
            start: Some(self.load()),
            first_start: Some(self.load()),
            wake: self.setup.sleep.map(|tier| tier.wake),
            ..Profile::new(model.into(), String::new(), NAME.into())
        }
    }

    fn host(&self, (id, accelerators): (HostId, Vec<AcceleratorId>)) -> Event {
        let sleep_memory = sleep_memory(self.setup, accelerators.len());
        let accelerators = accelerators
            .into_iter()
            .map(|id| Accelerator {
                id,
                kind: AcceleratorKind::Nvidia,
                name: NAME.into(),
                memory: MEMORY,
                free: None,
                held: None,
                unexplained: None,
            })
            .collect();
        let host = HostFacts {
            id,
            boot: "first".into(),
            accelerators,
            drivers: vec![Driver::Process],
            labels: Vec::new(),
            draining: false,
            sleep_memory,
            sleep_spare: sleep_spare(self.setup),
        };
        Event::HostSnapshot { host, engines: Vec::new(), running: Vec::new() }
    }

    pub(super) fn load(&self) -> Duration {
        self.setup.load
    }

    pub(super) fn wake(&self) -> Duration {
        self.setup.sleep.map_or(self.setup.load, |tier| tier.wake)
    }

    pub(super) fn submitted(&self, job: &Job) -> Event {
        Event::JobSubmitted(JobFacts {
            id: job_id(job.index),
            model: self.model(job),
            arrival: arrival(job),
            deadline: None,
            hurried: false,
            session: Some(self.session(job)),
            key: None,
            class: Class::Standard,
            tokens: job.prompt_tokens.saturating_add(job.output_tokens),
        })
    }

    pub(super) fn hint(&self, job: &Job) -> Event {
        Event::Hint { session: self.session(job), model: self.model(job), due: arrival(job), key: None }
    }

    /// The jobs that are announced, in the order in which they are.
    pub(super) fn hints(&self) -> Vec<(Timestamp, Job)> {
        let Some(hints) = self.setup.hints else { return Vec::new() };
        let mut random = ChaCha8Rng::seed_from_u64(hints.seed);
        let lead = u64::try_from(hints.lead.as_millis()).unwrap_or(u64::MAX);
        let drawn = self.workload.jobs.iter().filter(|_| {
            let draw = f64::from(random.next_u32()) / (f64::from(u32::MAX) + 1.0);
            draw < hints.share
        });
        drawn.map(|job| (Timestamp(arrival(job).0.saturating_sub(lead).max(BEGIN)), *job)).collect()
    }

    fn model(&self, job: &Job) -> ModelId {
        self.workload.models.get(job.model).map_or("", String::as_str).into()
    }

    fn session(&self, job: &Job) -> SessionId {
        self.workload.sessions.get(job.session).map_or("", String::as_str).into()
    }

    /// A fleet where only timers come for so long, while nothing starts or runs, does nothing any more.
    pub(super) fn stillness(&self) -> Duration {
        Duration::from_secs(24 * 3600)
    }

    /// By then after the last arrival everything is over, whatever the order: one after the other, each with a
    /// start of its own, and a week.
    pub(super) fn patience(&self) -> Duration {
        let start = self.load().saturating_add(self.wake()).saturating_mul(2);
        let week = Duration::from_secs(7 * 24 * 3600);
        self.workload
            .jobs
            .iter()
            .fold(week, |sum, job| sum.saturating_add(service(job)).saturating_add(start))
    }
}

/// The hosts, with their accelerators.
pub(super) fn hosts(setup: &Setup) -> Vec<(HostId, Vec<AcceleratorId>)> {
    let count = setup.accelerators.div_ceil(setup.per_host.max(1));
    let digits = count.to_string().len();
    (0..count)
        .map(|host| {
            let first = host * setup.per_host;
            let last = first.saturating_add(setup.per_host).min(setup.accelerators);
            let ids = (0..last - first).map(|gpu| format!("gpu{gpu}").into()).collect();
            (format!("host{:0digits$}", host + 1).into(), ids)
        })
        .collect()
}

/// Host RAM for sleeping engines beside so many accelerators.
/// Room for one more, so that one engine can fall asleep before another leaves its RAM.
pub(super) fn sleep_spare(setup: &Setup) -> u64 {
    setup.sleep.map_or(0, |_| MEMORY)
}

pub(super) fn sleep_memory(setup: &Setup, accelerators: usize) -> u64 {
    let engines = setup.sleep.map_or(0, |tier| u64::from(tier.engines));
    engines.saturating_mul(accelerators as u64).saturating_mul(MEMORY)
}

/// What an engine takes up asleep.
pub(super) fn sleep_cost(setup: &Setup) -> Option<SleepCost> {
    setup.sleep.map(|_| SleepCost { ram: MEMORY, residue: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Hints;

    fn workload() -> Workload {
        let job = |index: usize| Job {
            index,
            arrival: index as u64 * 1_000_000,
            model: 0,
            session: 0,
            service: 1,
            prompt_tokens: 1,
            output_tokens: 1,
            line: index as u64 + 2,
        };
        Workload { jobs: (0..1000).map(job).collect(), models: vec!["m".into()], sessions: vec!["s".into()] }
    }

    fn drawn(share: f64, seed: u64) -> Vec<usize> {
        let lead = Duration::from_secs(20);
        let setup = Setup { hints: Some(Hints { lead, share, seed }), ..Setup::default() };
        let workload = workload();
        let hints = Facts { workload: &workload, setup: &setup }.hints();
        for (at, job) in &hints {
            assert_eq!(at.0, BEGIN + (job.arrival / 1000).saturating_sub(20_000));
        }
        hints.iter().map(|(_, job)| job.index).collect()
    }

    #[test]
    fn the_seed_draws_which_jobs_are_announced_and_the_share_how_many() {
        assert_eq!(drawn(0.5, 7), drawn(0.5, 7));
        assert_ne!(drawn(0.5, 7), drawn(0.5, 8));
        assert!((450..550).contains(&drawn(0.5, 7).len()));
        assert_eq!((drawn(0.0, 7).len(), drawn(1.0, 7).len()), (0, 1000));
    }

    #[test]
    fn the_last_host_has_the_accelerators_that_are_left() {
        let setup = Setup { accelerators: 10, per_host: 4, ..Setup::default() };
        let hosts: Vec<_> =
            hosts(&setup).into_iter().map(|(id, gpus)| (id.to_string(), gpus.len())).collect();
        assert_eq!(hosts, [("host1".into(), 4), ("host2".into(), 4), ("host3".into(), 2)]);
    }
}
