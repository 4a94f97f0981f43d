//! Why: reasons for people, in the decision log, in errors, and for one job when somebody asks.

use std::collections::BTreeMap;

use berth_wire::{AcceleratorId, ApiError, EngineId, ErrorKind, HostId, JobId, ModelId, Timestamp};
use bytesize::ByteSize;
use serde::Serialize;

use crate::books::{JobPhase, Model};
use crate::demand::{Cause, Demand};
use crate::scene::{Reach, Scene};
use crate::site::{Found, Site, Wish, eligible};
use crate::state::{State, Step};

/// So many hosts are looked at, and so many models named, of those in a model's way.
const LOOKED_AT: usize = 64;
const NAMED: usize = 6;

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The job.
    pub job: JobId,
    /// The model it asks for.
    pub model: ModelId,
    /// Where it is.
    pub phase: JobPhase,
    /// How long since the gateway took it, in seconds.
    pub waited_s: f64,
    /// Jobs of its model that came before it and wait too.
    pub position: usize,
    /// In a sentence.
    pub why: String,
    /// When it is expected to start, in seconds, from what was measured.
    pub eta_s: Option<f64>,
    /// Weighted seconds that the jobs of its model have waited together.
    pub model_waited_s: f64,
    /// The cheapest places for a further engine of its model, best first.
    pub places: Vec<Place>,
}

/// A place that an engine could have, and its price.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// Where.
    pub host: HostId,
    /// On what.
    pub accelerators: Vec<AcceleratorId>,
    /// Engines that would go, with their models.
    pub victims: Vec<(EngineId, ModelId)>,
    /// A sleeping engine would be woken.
    pub wake: bool,
    /// Weighted seconds of waiting that the victims' models are expected to lose.
    pub loss_s: f64,
    /// Seconds until the victims have nothing left to do.
    pub drain_s: f64,
    /// Seconds that the start takes then.
    pub start_s: f64,
    /// All in all, in weighted seconds.
    pub cost_s: f64,
}

impl State {
    /// Why a job is where it is; `None`: it is not known, or has ended.
    #[must_use]
    pub fn explain(&self, id: JobId, now: Timestamp) -> Option<Explanation> {
        let job = self.jobs.get(&id)?;
        let model = self.models.get(&job.model)?;
        let scene = Scene::new(self, now);
        let position = model.queue.position(id);
        let (why, places, eta) = match job.phase {
            JobPhase::Running { engine, .. } => (format!("it runs on {engine}"), Vec::new(), Some(0.0)),
            JobPhase::Queued => {
                let (found, weight) = (scene.look_for_room(model), model.queue.weight());
                let places =
                    found.best.iter().chain(&found.second).map(|site| scene.shown(site, weight)).collect();
                let eta = self.expected_wait(model, position, now).map(|wait| wait.as_secs_f64());
                (scene.why_waiting(model, &found), places, eta)
            }
        };
        Some(Explanation {
            job: id,
            model: job.model.clone(),
            phase: job.phase,
            waited_s: now.since(job.arrival).as_secs_f64(),
            position,
            why,
            eta_s: eta,
            model_waited_s: model.queue.waited(now),
            places,
        })
    }
}

impl<'a> Scene<'a> {
    /// Where a further engine of the model could be, for those who wait.
    fn look_for_room(&self, model: &'a Model) -> Found {
        let aged = model.queue.limit().is_some_and(|at| at <= self.now);
        let reach = if aged { Reach::Any } else { Reach::Idle };
        let (weight, backlog) = (model.queue.weight(), self.backlog(model, 1));
        self.find(&Wish { model, weight, reach, replica: self.replicas(model) > 0, backlog, only: None })
    }

    /// Why the jobs of a model wait.
    pub(crate) fn reason(&self, model: &'a Model) -> String {
        let found = self.look_for_room(model);
        self.why_waiting(model, &found)
    }

    /// What is in a model's way: whose engines hold the room that it could have, and what keeps each there.
    fn in_its_way(&self, model: &Model) -> Vec<String> {
        let hosts = self.state.hosts.values().filter(|host| eligible(host, model)).take(LOOKED_AT);
        let engines = hosts.flat_map(|host| &host.engines).filter_map(|id| self.state.engines.get(id));
        let mut told = BTreeMap::new();
        for engine in engines.filter(|engine| engine.model != model.needs.id) {
            let Some(other) = self.state.models.get(&engine.model) else { continue };
            let running = engine.taken();
            let what = if other.needs.pin {
                "is pinned".to_owned()
            } else if engine.phase.is_loading() {
                "is starting".to_owned()
            } else if running > 0 {
                format!("serves {running} job{}", if running == 1 { "" } else { "s" })
            } else if other.leases.is_empty() {
                continue;
            } else {
                String::new()
            };
            let leases = self.leases_on(other);
            let and = if what.is_empty() || leases.is_empty() { "" } else { " and " };
            told.entry(&engine.model).or_insert(format!("{} {what}{and}{leases}", engine.model));
        }
        let more = told.len().saturating_sub(NAMED);
        let mut told: Vec<String> = told.into_values().take(NAMED).collect();
        if more > 0 {
            told.push(format!("{more} more"));
        }
        told
    }

    /// Who holds leases on a model, if they count.
    fn leases_on(&self, model: &Model) -> String {
        let held = self.protected.contains(&model.needs.id).then(|| self.leases_end(model)).flatten();
        let Some(ends) = held else { return String::new() };
        match model.leases.len() {
            1 => format!("is kept by a lease, which ends in {ends:.0} s"),
            count => format!("is kept by {count} leases, the last of which ends in {ends:.0} s"),
        }
    }

    fn shown(&self, site: &Site, weight: f64) -> Place {
        let model_of = |id: &EngineId| self.state.engines.get(id).map(|engine| engine.model.clone());
        Place {
            host: site.host.clone(),
            accelerators: site.reservations.iter().map(|r| r.accelerator.clone()).collect(),
            victims: site.victims.iter().filter_map(|id| Some((*id, model_of(id)?))).collect(),
            wake: site.wake.is_some(),
            loss_s: site.loss,
            drain_s: site.drain,
            start_s: site.start,
            cost_s: site.cost(weight),
        }
    }

    fn why_waiting(&self, model: &Model, found: &Found) -> String {
        if let Some(why) = self.why_served_later(model) {
            return why;
        }
        if let Some((until, error)) = &model.blocked
            && *until > self.now
        {
            return format!(
                "its model is given up for {} s: {}",
                until.since(self.now).as_secs(),
                error.message
            );
        }
        let failing = self
            .state
            .hosts
            .values()
            .any(|host| host.failed.get(&model.needs.id).is_some_and(|(_, until)| *until > self.now));
        match &found.best {
            None if self.state.hosts.is_empty() => "no host has joined yet".into(),
            None if failing => "its engine did not start; it is tried again shortly".into(),
            None if found.could_fit => {
                let limit = model.queue.limit().map_or(0, |at| at.since(self.now).as_secs());
                let mut way = self.in_its_way(model).join(", ");
                if way.is_empty() {
                    way = "memory is being freed".into();
                }
                if self.outlook(model).never {
                    format!("there is no room for it: {way}; nothing else can make way")
                } else {
                    format!("there is no room for it yet: {way}; in {limit} s it may have a busy one drained")
                }
            }
            None => "its model fits on no host".into(),
            Some(site) => {
                let victims: Vec<String> = site
                    .victims
                    .iter()
                    .filter_map(|id| Some(self.state.engines.get(id)?.model.to_string()))
                    .collect();
                format!(
                    "its model has no engine yet; the cheapest place is on {}{}",
                    site.host,
                    if victims.is_empty() {
                        String::new()
                    } else {
                        let leases: Vec<String> = site
                            .victims
                            .iter()
                            .filter_map(|id| self.state.models.get(&self.state.engines.get(id)?.model))
                            .map(|victim| (victim, self.leases_on(victim)))
                            .filter(|(_, leases)| !leases.is_empty())
                            .map(|(victim, leases)| format!("; {} {leases}", victim.needs.id))
                            .collect();
                        format!(
                            " instead of {}, which is expected to lose {:.1} s of waiting, against {:.1} s waited here{}",
                            victims.join(" and "),
                            site.loss,
                            model.queue.waited(self.now),
                            leases.concat()
                        )
                    }
                )
            }
        }
    }

    /// Why it waits though an engine of it is there or on its way.
    fn why_served_later(&self, model: &Model) -> Option<String> {
        let tally = self.state.tallies.of(&model.needs.id);
        if tally.ready > 0 {
            return Some(match model.needs.concurrency {
                1 => "the only slot of its model is taken".into(),
                slots => format!("all {slots} slots of its model are taken"),
            });
        }
        if tally.loads() {
            return Some("its model is being loaded".into());
        }
        if tally.up > 0 {
            return Some("its engine is being drained for a model that has waited longer".into());
        }
        model.plan.is_some().then(|| "memory is being freed for its model".into())
    }
}

impl Step<'_> {
    /// Why a job of the model waits.
    pub(crate) fn why_waiting(&self, id: &ModelId) -> String {
        let Some(model) = self.state.models.get(id) else { return "the model is gone".into() };
        let scene = Scene::new(self.state, self.now);
        scene.why_served_later(model).unwrap_or_else(|| {
            if self.state.hosts.is_empty() {
                "no host has joined yet".into()
            } else if self.state.yard.is_small() {
                scene.why_waiting(model, &scene.look_for_room(model))
            } else {
                "its model has no engine yet".into()
            }
        })
    }

    /// Why an engine of the model is started or woken, and what the choice was.
    pub(crate) fn why_start(&self, id: &ModelId, demand: &Demand, found: &Found) -> String {
        let queued = self.state.models.get(id).map_or(0, |model| model.queue.len());
        let cause = match (demand.cause, queued) {
            (Cause::Pin, _) => "it is pinned".to_owned(),
            (Cause::Load, _) => "an operator asked for it".to_owned(),
            (Cause::Leases, _) => "a session holds a lease on it".to_owned(),
            (Cause::Hints, _) => "a session said that it will be needed".to_owned(),
            (Cause::Jobs, 1) => "1 job waits for it".to_owned(),
            (Cause::Jobs, n) => format!("{n} jobs wait for it"),
        };
        let mut why = cause;
        let Some(site) = &found.best else { return why };
        if demand.cause == Cause::Jobs && demand.waited >= 0.1 {
            why.push_str(&format!(", {:.1} s together", demand.waited));
        }
        if demand.first.is_some() {
            why.push_str(", the oldest past its limit");
        }
        let victims: Vec<String> = site
            .victims
            .iter()
            .filter_map(|id| Some(self.state.engines.get(id)?.model.to_string()))
            .collect();
        if !victims.is_empty() {
            let are = if victims.len() == 1 { "is" } else { "are" };
            why.push_str(&format!("; {} {are} expected to lose {:.1} s", victims.join(" and "), site.loss));
        }
        if let Some(second) = &found.second {
            why.push_str(&format!(
                "; {} costs {:.1} s, {} would {:.1} s",
                site.host,
                site.cost(demand.weight),
                second.host,
                second.cost(demand.weight)
            ));
        }
        why
    }
}

impl State {
    /// Says what a model needs and what there is.
    pub(crate) fn cannot_fit(&self, id: &ModelId) -> ApiError {
        if let Some(error) = self.all_drained(id) {
            return error;
        }
        let mut offers: Vec<String> = Vec::new();
        let mut needs = "more than there is".to_owned();
        if let Some(model) = self.models.get(id) {
            needs = need_text(model);
            for (name, host) in self.hosts.iter() {
                let memory = host.devices.iter().map(|d| d.memory).max().unwrap_or(0);
                let offer = if eligible(host, model) {
                    format!("{name} has {} accelerator(s) of up to {}", host.devices.len(), show(memory))
                } else if !host.drivers.contains(&model.needs.driver) {
                    format!("{name} cannot run the {} driver", model.needs.driver.as_str())
                } else if host.draining {
                    format!("{name} is draining")
                } else {
                    format!("{name} lacks a label of [{}]", model.needs.labels.join(", "))
                };
                offers.push(offer);
                if offers.len() == 8 {
                    offers.push("...".into());
                    break;
                }
            }
        }
        ApiError::new(
            ErrorKind::CannotFit,
            "model_cannot_fit",
            format!("`{id}` needs {needs}, and no host can give it: {}", offers.join("; ")),
        )
        .param("model")
    }
}

fn need_text(model: &Model) -> String {
    let accelerators = model.needs.accelerators;
    let memory = match model.needs.memory {
        Some(bytes) if accelerators > 1 => {
            let each = bytes.div_ceil(u64::from(accelerators));
            format!(
                "{} of memory on {accelerators} accelerators of one host ({} each)",
                show(bytes),
                show(each)
            )
        }
        Some(bytes) => format!("{} of memory", show(bytes)),
        None => format!("all the memory of {accelerators} accelerator(s) of one host"),
    };
    match model.needs.labels.as_slice() {
        [] => memory,
        labels => format!(
            "{memory}, the {} driver and the label(s) [{}]",
            model.needs.driver.as_str(),
            labels.join(", ")
        ),
    }
}

pub(crate) fn show(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}
