//! What was measured: starts, service times, memory. It replaces guesses and declared values, is kept by whoever
//! carries out the effects, and is handed to the next leader.

use std::time::Duration;

use berth_wire::{AcceleratorId, EngineId, Estimate, ModelId, Profile, Residency, Timestamp, Usage};

use crate::books::{Device, Host, Model};
use crate::effect::Effect;
use crate::state::{State, Step};

/// A profile in the books.
#[derive(Debug, Clone)]
pub(crate) struct Learned {
    pub(crate) profile: Profile,
    /// When it was last handed out to be kept.
    kept: Timestamp,
}

/// Service times change with every job; they are kept this often.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// Part of the measured peak that is set aside beyond it: one in twenty.
const HEADROOM: u64 = 20;

impl State {
    pub(crate) fn profile(&self, model: &Model, accelerator: &str) -> Option<&Profile> {
        let profile = &self.profiles.get(&model.needs.id)?.get(accelerator)?.profile;
        (profile.config == model.needs.config).then_some(profile)
    }

    /// What a start of the model takes there.
    pub(crate) fn start_cost(&self, model: &Model, host: &Host, device: Option<&Device>) -> Duration {
        let residency =
            if host.ran.contains(&model.needs.id) { Residency::Stopped } else { Residency::Absent };
        device
            .and_then(|device| self.profile(model, &device.name)?.start_from(residency))
            .or(model.start_took)
            .unwrap_or_else(|| self.start_guess())
    }

    /// What a start takes of which nothing is known: as long as others.
    pub(crate) fn start_guess(&self) -> Duration {
        self.mean_start.unwrap_or(self.policy.start_guess)
    }

    /// What waking an engine of the model takes there.
    pub(crate) fn wake_cost(&self, model: &Model, device: Option<&Device>) -> Duration {
        device.and_then(|device| self.profile(model, &device.name)?.wake).unwrap_or(self.policy.wake_guess)
    }

    /// How long a job of the model takes.
    pub(crate) fn service(&self, model: &Model) -> Duration {
        model.service.or(self.mean_service).unwrap_or(self.policy.service_guess)
    }

    /// Bytes that the model needs on one of its accelerators, of this kind: as measured, else as declared, else as its
    /// files say, else all.
    pub(crate) fn need_on(&self, model: &Model, device: &Device) -> u64 {
        let share = |bytes: u64| bytes.div_ceil(u64::from(model.needs.accelerators.max(1)));
        let peak = self.profile(model, &device.name).and_then(|profile| profile.peak_memory);
        let measured = peak.map(|peak| share(peak.saturating_add(peak / HEADROOM)));
        match (model.needs.memory, model.estimate) {
            (Some(declared), _) => measured.unwrap_or(share(declared)),
            // An estimate is no reason to refuse: what may be too large is tried alone.
            (None, Some(estimate)) => measured.unwrap_or(share(estimate)).min(device.memory),
            (None, None) => device.memory,
        }
    }
}

impl Step<'_> {
    pub(crate) fn estimates(&mut self, estimates: Vec<Estimate>) {
        for Estimate { model, bytes } in estimates {
            let Some(entry) = self.state.models.get_mut(&model) else { continue };
            if entry.estimate == Some(bytes) {
                continue;
            }
            entry.estimate = Some(bytes);
            self.state.protected_stale = true;
            self.state.shares.remove(&model);
            self.touch(&model);
        }
    }

    pub(crate) fn profiles(&mut self, profiles: Vec<Profile>) {
        for profile in profiles {
            let model = profile.model.clone();
            if let Some(entry) = self.state.models.get_mut(&model)
                && entry.needs.config == profile.config
            {
                recall(entry, &profile);
            }
            let entry = self.state.models.get(&model);
            if entry.is_some_and(|entry| entry.needs.config != profile.config) {
                continue;
            }
            let of_model = self.state.profiles.entry(model.clone()).or_default();
            of_model.insert(profile.accelerator.clone(), Learned { profile, kept: self.now });
            self.state.protected_stale = true;
            self.state.shares.remove(&model);
            self.touch(&model);
        }
    }

    /// What earlier leaders measured of a model that has just been entered.
    pub(crate) fn recall(&self, model: &mut Model) {
        for Learned { profile, .. } in
            self.state.profiles.get(&model.needs.id).iter().flat_map(|of| of.values())
        {
            if profile.config == model.needs.config {
                recall(model, profile);
            }
        }
    }

    /// An engine is ready: its start was measured.
    pub(crate) fn learn_start(&mut self, id: EngineId, took: Duration, peak: Option<u64>) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        let model = engine.model.clone();
        let Some(from) = engine.from else {
            // An earlier leader has learnt from it.
            if let Some(entry) = self.state.models.get_mut(&model) {
                entry.start_took = entry.start_took.or(Some(took));
            }
            return;
        };
        if from != Residency::Sleeping
            && let Some(entry) = self.state.models.get_mut(&model)
        {
            entry.start_took = Some(blend(entry.start_took, took));
            self.state.mean_start = Some(blend(self.state.mean_start, took));
        }
        self.learn(id, true, |profile| {
            let slot = match from {
                Residency::Sleeping => &mut profile.wake,
                Residency::Stopped => &mut profile.start,
                Residency::Absent => &mut profile.first_start,
            };
            *slot = Some(blend(*slot, took));
            profile.peak_memory = profile.peak_memory.max(peak);
        });
    }

    /// A job was answered.
    pub(crate) fn learn_service(&mut self, id: EngineId, model: &ModelId, took: Duration, usage: Usage) {
        if let Some(entry) = self.state.models.get_mut(model) {
            entry.service = Some(blend(entry.service, took));
            entry.times.count(took);
            // It starts and it serves: whatever went wrong before is over.
            entry.start_failures = 0;
            entry.given_up = 0;
            entry.last_failure = None;
        }
        let mean = self.state.mean_service.map_or(took, |mean| (mean * 63 + took) / 64);
        self.state.mean_service = Some(mean);
        let service = self.state.models.get(model).and_then(|entry| entry.service);
        self.learn(id, false, |profile| {
            profile.service = service;
            let millis = u64::try_from(usage.total.as_millis()).unwrap_or(0);
            if let Some(rate) =
                usage.completion_tokens.and_then(|n| n.saturating_mul(1_000_000).checked_div(millis))
            {
                let before = profile.millitokens_per_second.unwrap_or(rate);
                profile.millitokens_per_second = Some(before.saturating_mul(7).saturating_add(rate) / 8);
            }
        });
    }

    /// An engine was measured to hold more than before.
    pub(crate) fn learn_peak(&mut self, id: EngineId, peak: u64) {
        let known = self
            .profile_key(id)
            .and_then(|(model, on)| self.state.profiles.get(&model)?.get(&on)?.profile.peak_memory);
        if known.is_none_or(|known| known < peak) {
            self.learn(id, true, |profile| profile.peak_memory = Some(peak));
        }
    }

    fn profile_key(&self, id: EngineId) -> Option<(ModelId, String)> {
        let engine = self.state.engines.get(&id)?;
        let accelerator: &AcceleratorId = &engine.reservations.first()?.accelerator;
        let host = self.state.hosts.get(&engine.host)?;
        let device = host.devices.iter().find(|device| device.id == *accelerator)?;
        Some((engine.model.clone(), device.name.clone()))
    }

    fn learn(&mut self, id: EngineId, keep: bool, change: impl FnOnce(&mut Profile)) {
        let Some(key) = self.profile_key(id) else { return };
        let Some(model) = self.state.models.get(&key.0) else { return };
        let config = model.needs.config.clone();
        let fresh = || Learned {
            profile: Profile::new(key.0.clone(), config.clone(), key.1.clone()),
            kept: Timestamp(0),
        };
        if keep {
            // It may need more memory than was known.
            self.state.protected_stale = true;
            self.state.shares.remove(&key.0);
        }
        let of_model = self.state.profiles.entry(key.0.clone()).or_default();
        let learned = of_model.entry(key.1.clone()).or_insert_with(fresh);
        if learned.profile.config != config {
            *learned = fresh();
        }
        change(&mut learned.profile);
        if keep || self.now.since(learned.kept) >= KEEP_EVERY {
            learned.kept = self.now;
            let profile = learned.profile.clone();
            self.emit(Effect::Learned(profile));
        }
    }
}

fn recall(model: &mut Model, profile: &Profile) {
    model.start_took = model.start_took.or(profile.start_from(Residency::Stopped));
    model.service = model.service.or(profile.service);
}

/// One eighth new.
fn blend(before: Option<Duration>, now: Duration) -> Duration {
    before.map_or(now, |mean| (mean * 7 + now) / 8)
}
