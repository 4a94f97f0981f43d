//! Where: every place that a model could have, and what it would cost to take it.
//!
//! A place is a set of accelerators of one host with the engines that must go for it, or a sleeping engine with
//! those in the way of its waking. The cost is what the victims lose plus what those who wait go on waiting.

use std::collections::BTreeSet;

use berth_wire::{Driver, EngineId, HostId, ModelId, Reservation};

use crate::books::{Device, Engine, EnginePhase, Host, Model};
use crate::scene::{Claim, Reach, Scene};
use crate::state::State;

/// Up to so many possible victims on an accelerator, every subset is weighed.
const EXACT: usize = 10;

/// One place and its price.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) host: HostId,
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) victims: BTreeSet<EngineId>,
    /// The engine that is woken there; `None`: a new one is started.
    pub(crate) wake: Option<EngineId>,
    /// The victims must be stopped: asleep they would keep too much.
    pub(crate) stops: bool,
    /// Weighted seconds that the victims' models lose.
    pub(crate) loss: f64,
    /// Seconds until the victims have nothing left to do.
    pub(crate) drain: f64,
    /// Seconds that the start then takes.
    pub(crate) start: f64,
    tie: u64,
}

impl Site {
    /// What it costs to have those who wait, who weigh so much, wait for it.
    pub(crate) fn cost(&self, weight: f64) -> f64 {
        self.loss + weight * self.delay()
    }

    /// Seconds until it serves.
    pub(crate) fn delay(&self) -> f64 {
        self.drain + self.start
    }
}

/// Who looks for a place.
pub(crate) struct Wish<'a> {
    pub(crate) model: &'a Model,
    /// Weight of those who wait.
    pub(crate) weight: f64,
    pub(crate) reach: Reach,
    /// It has an engine already: another one is worth it only where nothing else computes.
    pub(crate) replica: bool,
    /// Seconds that its queue takes on one engine.
    pub(crate) backlog: f64,
    /// Nowhere else.
    pub(crate) only: Option<&'a HostId>,
}

/// What came of looking.
pub(crate) struct Found {
    /// The cheapest place now.
    pub(crate) best: Option<Site>,
    /// The cheapest place on another host or another accelerator.
    pub(crate) second: Option<Site>,
    /// On empty hosts it has a place.
    pub(crate) could_fit: bool,
    /// Accelerators that were looked at.
    pub(crate) weighed: usize,
}

/// Room on one accelerator.
struct Spot<'a> {
    device: &'a Device,
    bytes: u64,
    victims: Vec<EngineId>,
    stops: bool,
    loss: f64,
    drain: f64,
}

impl<'a> Scene<'a> {
    /// Weighs every place, in a large fleet those that are worth it.
    pub(crate) fn find(&self, wish: &Wish<'a>) -> Found {
        let mut found = Found { best: None, second: None, could_fit: false, weighed: 0 };
        if let Some((id, host)) = wish.only.and_then(|only| Some((only, self.state.hosts.get(only)?))) {
            self.weigh(id, host, None, wish, &mut found);
        } else if wish.only.is_some() {
            // It has gone.
        } else if self.state.yard.is_small() {
            for (id, host) in self.state.hosts.iter() {
                self.weigh(id, host, None, wish, &mut found);
            }
        } else {
            for (id, devices) in self.worth_weighing(wish) {
                if let Some(host) = self.state.hosts.get(id) {
                    self.weigh(id, host, Some(&devices), wish, &mut found);
                }
            }
        }
        found.could_fit = found.best.is_some() || self.state.fits_somewhere(wish.model);
        found
    }

    /// Weighs the places on one host, or on some of its accelerators.
    fn weigh(
        &self,
        id: &'a HostId,
        host: &'a Host,
        devices: Option<&BTreeSet<usize>>,
        wish: &Wish<'a>,
        found: &mut Found,
    ) {
        let model = wish.model;
        if !eligible(host, model) {
            return;
        }
        // A server that somebody else runs serves a model once, however often it is asked for.
        let external = model.needs.driver == Driver::External;
        if external && !model.engines.is_disjoint(&host.engines) {
            return;
        }
        let failed_until = host.failed.get(&model.needs.id).map(|(_, until)| *until);
        // One gang at a time takes a host apart.
        let gang_first = model.needs.accelerators > 1 && self.has_gang_plan(host, &model.needs.id);
        if failed_until.is_some_and(|until| until > self.now) || gang_first {
            return;
        }
        found.weighed += devices.map_or(host.devices.len(), BTreeSet::len);
        let asleep = &self.state.tallies.of(&model.needs.id).sleeping;
        let sleepers = host
            .engines
            .intersection(asleep)
            .filter_map(|sleeper| Some((*sleeper, self.state.engines.get(sleeper)?)))
            .filter_map(|(sleeper, engine)| self.wake_site(id, host, wish, sleeper, engine));
        for site in sleepers.chain(self.start_site(id, host, devices, wish)) {
            found.offer(site, wish.weight);
        }
    }

    fn has_gang_plan(&self, host: &Host, except: &ModelId) -> bool {
        host.plans
            .iter()
            .filter(|claimant| *claimant != except)
            .filter_map(|claimant| self.state.models.get(claimant)?.plan.as_ref())
            .any(|plan| plan.reservations.len() > 1)
    }

    /// The cheapest accelerators of one host for a new engine.
    fn start_site(
        &self,
        id: &HostId,
        host: &'a Host,
        devices: Option<&BTreeSet<usize>>,
        wish: &Wish<'a>,
    ) -> Option<Site> {
        let model = wish.model;
        let wanted = usize::try_from(model.needs.accelerators).ok()?;
        let mut spots: Vec<(f64, u64, f64, Spot<'a>)> = Vec::new();
        let picked = |n: &usize| devices.is_none_or(|devices| devices.contains(n));
        let crowding = self.crowding(host);
        for (n, device) in host.devices.iter().enumerate().filter(|(n, _)| picked(n)) {
            let start = self.state.start_cost(model, host, Some(device)).as_secs_f64() * crowding;
            let known = self.known_free(id, n, model);
            let need = self.state.need_on(model, device);
            let Some(spot) = self.spot(host, device, known, (need, need), wish, start) else {
                continue;
            };
            let price = spot.loss + wish.weight * (spot.drain + start);
            spots.push((price, tie(model, id, device), start, spot));
        }
        // Of equal ones the tightest, so that large rooms stay whole; then by hash.
        spots.sort_by(|a, b| {
            let rest = |spot: &Spot<'_>| spot.device.memory.saturating_sub(spot.bytes);
            a.0.total_cmp(&b.0).then(rest(&a.3).cmp(&rest(&b.3))).then(a.1.cmp(&b.1))
        });
        spots.truncate(wanted);
        if spots.len() < wanted || wanted == 0 {
            return None;
        }
        let start = spots.iter().map(|(_, _, start, _)| *start).fold(0.0, f64::max);
        let tie = spots.first().map_or(0, |(_, tie, _, _)| *tie);
        Some(self.site(id, spots.into_iter().map(|(_, _, _, spot)| spot), start, None, tie))
    }

    /// What it takes to wake an engine where it sleeps.
    fn wake_site(
        &self,
        id: &HostId,
        host: &'a Host,
        wish: &Wish<'a>,
        sleeper: EngineId,
        engine: &Engine,
    ) -> Option<Site> {
        let model = wish.model;
        let mut spots = Vec::new();
        let first = engine.reservations.first()?;
        let device = host.devices.iter().find(|device| device.id == first.accelerator);
        let start = self.wake_on(model, host, device);
        for reservation in &engine.reservations {
            let device = host.devices.iter().find(|device| device.id == reservation.accelerator)?;
            let need = reservation.bytes.saturating_sub(engine.asleep_on(&device.id));
            let bytes = reservation.bytes;
            spots.push(self.spot(host, device, None, (need, bytes), wish, start)?);
        }
        let tie = device.map_or(0, |device| tie(model, id, device));
        Some(self.site(id, spots.into_iter(), start, Some(sleeper), tie))
    }

    fn site(
        &self,
        id: &HostId,
        spots: impl Iterator<Item = Spot<'a>>,
        start: f64,
        wake: Option<EngineId>,
        tie: u64,
    ) -> Site {
        let mut site = Site {
            host: id.clone(),
            reservations: Vec::new(),
            victims: BTreeSet::new(),
            wake,
            stops: false,
            loss: 0.0,
            drain: 0.0,
            start,
            tie,
        };
        for spot in spots {
            site.reservations.push(Reservation { accelerator: spot.device.id.clone(), bytes: spot.bytes });
            // A victim that spans several accelerators is lost once.
            if spot.victims.iter().any(|victim| !site.victims.contains(victim)) {
                site.loss += spot.loss;
            }
            site.stops |= spot.stops;
            site.victims.extend(spot.victims);
            site.drain = site.drain.max(spot.drain);
        }
        site
    }

    /// Room for `need` bytes on an accelerator: free, or freed by the victims that lose least.
    fn spot(
        &self,
        host: &Host,
        device: &'a Device,
        known_free: Option<u64>,
        (need, bytes): (u64, u64),
        wish: &Wish<'_>,
        start: f64,
    ) -> Option<Spot<'a>> {
        let claim = Claim { start, backlog: wish.backlog };
        if bytes > device.memory {
            return None;
        }
        if wish.replica && self.is_in_use(host, device, &wish.model.needs.id) {
            return None;
        }
        let free = known_free.unwrap_or_else(|| self.free(host, device, Some(&wish.model.needs.id)));
        if free >= need {
            return Some(Spot { device, bytes, victims: Vec::new(), stops: false, loss: 0.0, drain: 0.0 });
        }
        if free.saturating_add(self.coming(host, device)) >= need {
            // It is being freed already; taking more would evict for nothing.
            return None;
        }
        // Asleep if that frees enough.
        [false, true].into_iter().find_map(|stops| {
            let chosen = cheapest(self.candidates(host, device, wish, claim, stops), need - free)?;
            let loss = chosen.iter().map(|c| c.loss).sum();
            let drain = chosen.iter().map(|c| c.drain).fold(0.0, f64::max);
            let victims = chosen.into_iter().map(|c| c.id).collect();
            Some(Spot { device, bytes, victims, stops, loss, drain })
        })
    }

    /// Whether an engine of the model, or one that serves, is on the accelerator.
    fn is_in_use(&self, host: &Host, device: &Device, model: &ModelId) -> bool {
        host.engines
            .iter()
            .filter_map(|id| self.state.engines.get(id))
            .filter(|engine| engine.awake_on(&device.id) > 0 && engine.phase != EnginePhase::Sleeping)
            .any(|engine| engine.model == *model || !engine.is_idle())
    }

    /// Engines that could go from an accelerator: stopped, or put to sleep where they can be.
    fn candidates(
        &self,
        host: &Host,
        device: &Device,
        wish: &Wish<'_>,
        claim: Claim,
        stops: bool,
    ) -> Vec<Candidate> {
        host.engines
            .iter()
            .filter_map(|id| Some((*id, self.state.engines.get(id)?)))
            .filter(|(_, engine)| engine.model != wish.model.needs.id && self.may_evict(engine, wish.reach))
            .map(|(id, engine)| Candidate {
                id,
                frees: if stops { engine.bytes_on(&device.id) } else { self.frees(engine, host, device) },
                loss: self.loss(engine, host, claim),
                drain: self.drain(engine),
                last_used: engine.last_used.0,
            })
            .filter(|candidate| candidate.frees > 0)
            .collect()
    }
}

impl State {
    /// Whether the model fits on the host with nothing else there.
    pub(crate) fn fits_empty(&self, host: &Host, model: &Model) -> bool {
        let enough =
            host.devices.iter().filter(|device| self.need_on(model, device) <= device.memory).count();
        enough as u64 >= u64::from(model.needs.accelerators)
    }
}

impl Found {
    fn offer(&mut self, site: Site, weight: f64) {
        let better =
            |a: &Site, b: &Site| a.cost(weight).total_cmp(&b.cost(weight)).then(a.tie.cmp(&b.tie)).is_lt();
        if self.best.as_ref().is_none_or(|best| better(&site, best)) {
            self.second = self.best.replace(site);
        } else if self.second.as_ref().is_none_or(|second| better(&site, second)) {
            self.second = Some(site);
        }
    }
}

/// An engine that could go.
#[derive(Debug, Clone)]
struct Candidate {
    id: EngineId,
    frees: u64,
    loss: f64,
    drain: f64,
    last_used: u64,
}

/// The set that frees enough at the least loss; of equal ones the smallest, then the least recently used.
fn cheapest(mut candidates: Vec<Candidate>, need: u64) -> Option<Vec<Candidate>> {
    if candidates.iter().map(|c| c.frees).fold(0, u64::saturating_add) < need {
        return None;
    }
    candidates.sort_by_key(|c| (c.last_used, c.id));
    if candidates.len() > EXACT {
        return Some(greedy(candidates, need));
    }
    let mut best: Option<(f64, u32, u32)> = None;
    for set in 1u32..(1 << candidates.len()) {
        let chosen = || candidates.iter().enumerate().filter(|(n, _)| set & (1 << n) != 0).map(|(_, c)| c);
        if chosen().map(|c| c.frees).fold(0, u64::saturating_add) < need {
            continue;
        }
        let key = (chosen().map(|c| c.loss).sum::<f64>(), set.count_ones(), set);
        // Least recently used come first, so that of equal sets the one with the lower bits is the older.
        if best.is_none_or(|best| {
            key.0.total_cmp(&best.0).then(key.1.cmp(&best.1)).then(key.2.cmp(&best.2)).is_lt()
        }) {
            best = Some(key);
        }
    }
    let (_, _, set) = best?;
    let chosen = candidates.into_iter().enumerate().filter(|(n, _)| set & (1 << n) != 0);
    Some(chosen.map(|(_, candidate)| candidate).collect())
}

/// By loss a byte, then without those that turn out unnecessary.
fn greedy(mut candidates: Vec<Candidate>, need: u64) -> Vec<Candidate> {
    candidates.sort_by(|a, b| (a.loss / a.frees as f64).total_cmp(&(b.loss / b.frees as f64)));
    let mut gained = 0u64;
    let mut chosen = Vec::new();
    for candidate in candidates {
        if gained >= need {
            break;
        }
        gained = gained.saturating_add(candidate.frees);
        chosen.push(candidate);
    }
    chosen.sort_by(|a: &Candidate, b| b.loss.total_cmp(&a.loss));
    chosen.retain(|candidate| {
        let spare = gained - candidate.frees >= need;
        if spare {
            gained -= candidate.frees;
        }
        !spare
    });
    chosen
}

/// Whether the host may run the model at all.
pub(crate) fn eligible(host: &Host, model: &Model) -> bool {
    !host.draining && suits(host, model)
}

/// Whether it has what the model needs, draining or not.
pub(crate) fn suits(host: &Host, model: &Model) -> bool {
    host.drivers.contains(&model.needs.driver)
        && model.needs.labels.iter().all(|label| host.labels.contains(label))
}

/// Breaks ties the same way each time, and differently for each model (FNV-1a).
fn tie(model: &Model, host: &HostId, device: &Device) -> u64 {
    let texts = [model.needs.id.as_str(), host.as_str(), device.id.as_str()];
    texts.iter().flat_map(|text| text.bytes().chain([0])).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
