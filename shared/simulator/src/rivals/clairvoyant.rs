//! The clairvoyant: Berth's way of weighing waits against what an eviction costs, but with the arrivals to come and
//! the ends of running jobs known, and with models loaded before they are asked for. No scheduler can do this; it
//! says what knowing the future would be worth.

use std::cmp::Ordering;

use super::world::{Gpu, Line};
use super::{Rival, World};
use crate::select::{Job, Workload};
use crate::time::{Micros, SECOND, seconds};

/// A model whose oldest job has waited for so long goes first, and may have busy accelerators drained.
const AGED: f64 = 300.0;
/// A model gets another accelerator when its backlog takes longer than this part of a load.
const REPLICA: f64 = 0.5;
/// The rule is not asked again sooner than this.
const PAUSE: f64 = 0.25;

/// Knows all arrivals.
#[derive(Debug)]
pub(crate) struct Clairvoyant {
    /// Arrivals of each model.
    future: Vec<Vec<Micros>>,
    /// Seconds of service ended, and how many jobs that were; begun with a guess of five seconds.
    served: (f64, f64),
}

/// A model that asks for an accelerator.
struct Claim {
    priority: f64,
    model: usize,
    queued: f64,
    /// Seconds waited by all its jobs together.
    waited: f64,
    age: f64,
    weight: f64,
    held: bool,
}

impl Clairvoyant {
    pub(crate) fn new(workload: &Workload) -> Self {
        let mut future = vec![Vec::new(); workload.models.len()];
        for job in &workload.jobs {
            if let Some(arrivals) = future.get_mut(job.model) {
                arrivals.push(job.arrival);
            }
        }
        Self { future, served: (5.0, 1.0) }
    }

    /// The arrivals of a model after now.
    fn to_come(&self, model: usize, now: Micros) -> &[Micros] {
        let arrivals = self.future.get(model).map_or(&[][..], Vec::as_slice);
        arrivals.get(arrivals.partition_point(|at| *at <= now)..).unwrap_or_default()
    }

    fn claim(&self, world: &World, model: usize) -> Option<Claim> {
        let line = world.lines.get(model)?;
        let (now, load) = (seconds(world.now), seconds(world.load));
        let (queued, holders) = (line.queue.len() as f64, line.holders.len() as f64);
        let held = !line.holders.is_empty();
        if held {
            let backlog = queued * (self.served.0 / self.served.1) / (world.slots as f64 * holders);
            let coming =
                |index: usize| world.gpus.get(index).is_some_and(|gpu| gpu.loading || gpu.target.is_some());
            if backlog <= REPLICA * load || line.holders.iter().any(|index| coming(*index)) {
                return None;
            }
        }
        let weight = if held { 1.0 / (holders + 1.0) } else { 1.0 };
        let age = now - seconds(line.oldest()?);
        let aged = age >= AGED && !held;
        let priority = if aged { 1e12 + age } else { queued.sqrt() * (age + 1.0) * weight };
        let waited = queued * now - line.arrivals as f64 / SECOND as f64;
        Some(Claim { priority, model, queued, waited, age, weight, held })
    }

    /// Seconds of waiting inflicted on what an accelerator holds, and seconds until the claimant would be there.
    fn price(&self, world: &World, gpu: &Gpu, claim: &Claim) -> (f64, f64) {
        let (now, load) = (seconds(world.now), seconds(world.load));
        let drain = gpu.running.values().max().map_or(0.0, |end| seconds(*end) - now);
        let delay = drain + load;
        let Some(line) = gpu.model.and_then(|model| world.lines.get(model)) else { return (0.0, delay) };
        let service = self.served.0 / self.served.1;
        let absence = delay + (claim.queued * service / world.slots as f64).min(3.0 * load) + load;
        let to_come = gpu.model.map_or(&[][..], |model| self.to_come(model, world.now));
        let back = now + absence;
        let missed = to_come
            .iter()
            .map(|at| seconds(*at))
            .take_while(|at| *at < back)
            .fold(0.0, |sum, at| sum + back - at);
        (missed + line.queue.len() as f64 * absence, delay)
    }

    /// Loads one model, if that pays now. Otherwise asks to be called again.
    fn place(&self, world: &mut World) -> bool {
        let mut claims: Vec<Claim> =
            world.waiting.iter().filter_map(|model| self.claim(world, *model)).collect();
        if claims.is_empty() {
            return self.prepare(world);
        }
        if world.gpus.iter().all(|gpu| gpu.loading || gpu.target.is_some()) {
            return false;
        }
        claims.sort_by(|a, b| {
            b.priority.partial_cmp(&a.priority).unwrap_or(Ordering::Equal).then(b.model.cmp(&a.model))
        });
        let now = seconds(world.now);
        let mut wake = f64::INFINITY;
        for claim in claims {
            let aged = claim.age >= AGED && !claim.held;
            let mut best: Option<(f64, usize, f64, f64)> = None;
            for gpu in &world.gpus {
                if gpu.loading || gpu.target.is_some() || gpu.model == Some(claim.model) {
                    continue;
                }
                // Only an aged model has a busy engine drained, and not before that has had its turn.
                let queued = world.queued_for(gpu) > 0;
                if (queued || !gpu.running.is_empty()) && (!aged || (queued && gpu.quota > 0)) {
                    continue;
                }
                let (loss, delay) = self.price(world, gpu, &claim);
                let cost = loss + claim.queued * delay;
                if best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, gpu.index, loss, delay));
                }
            }
            let ages = if claim.held { f64::INFINITY } else { now + PAUSE.max(AGED - claim.age) };
            let Some((_, gpu, loss, delay)) = best else {
                wake = wake.min(ages);
                continue;
            };
            let gain = (claim.waited + claim.queued * delay) * claim.weight;
            if aged || gain >= loss {
                world.drain_to(gpu, claim.model);
                return true;
            }
            wake = wake.min(now + PAUSE.max((loss - gain) / (claim.queued * claim.weight))).min(ages);
        }
        if wake.is_finite() {
            world.wake_at((wake * SECOND as f64).ceil() as Micros);
        }
        false
    }

    /// Nobody waits: loads the model that will be asked for next, in place of the one that will be last.
    fn prepare(&self, world: &mut World) -> bool {
        if world.gpus.iter().any(|gpu| gpu.loading) {
            return false;
        }
        let next = |model: usize| self.to_come(model, world.now).first().copied().unwrap_or(Micros::MAX);
        let unheld = |(_, line): &(usize, &Line)| line.holders.is_empty();
        let soonest =
            world.lines.iter().enumerate().filter(unheld).map(|(model, _)| (next(model), model)).min();
        let mut latest: Option<(Micros, usize)> = None;
        for gpu in world.gpus.iter().filter(|gpu| world.is_idle(gpu)) {
            let needed = gpu.model.map_or(Micros::MAX, next);
            if latest.is_none_or(|(later, _)| needed > later) {
                latest = Some((needed, gpu.index));
            }
        }
        let (Some((soon, model)), Some((late, gpu))) = (soonest, latest) else { return false };
        if soon >= late {
            return false;
        }
        let begin = soon.saturating_sub(world.load);
        if begin > world.now {
            world.wake_at(begin);
            return false;
        }
        world.begin_load(gpu, model);
        true
    }
}

impl Rival for Clairvoyant {
    fn ended(&mut self, world: &mut World, gpu: usize, job: Job) {
        self.served.0 += seconds(job.service);
        self.served.1 += 1.0;
        world.fill(gpu);
    }

    fn decide(&mut self, world: &mut World) {
        for _ in 0..=2 * world.gpus.len() {
            if !self.place(world) {
                return;
            }
        }
    }
}
