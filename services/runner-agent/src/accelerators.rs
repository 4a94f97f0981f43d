//! What this machine computes with: its GPUs, else its RAM as one pseudo-device.

use std::collections::BTreeMap;

use berth_config::Config;
use berth_wire::{Accelerator, AcceleratorId, AcceleratorKind, EngineId, Reservation};
use sysinfo::{MemoryRefreshKind, System};

use crate::gauge::{Gauge, Machine, Reading};
use crate::ledger::{Account, account};
use crate::procs::{self, Mark};

/// The accelerators, and what measures them.
#[derive(Debug)]
pub(crate) struct Devices {
    gauge: Box<dyn Gauge>,
    known: Vec<Accelerator>,
    /// Bytes of each GPU that engines may use, whatever it has.
    limit: u64,
}

/// The RAM pseudo-device's id.
const RAM: &str = "ram";
/// Budgets change in steps of this, so that small allocations of others move nothing.
const STEP: u64 = 64 << 20;

/// What an engine was promised, and how its processes are known.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub(crate) engine: EngineId,
    pub(crate) mark: Option<Mark>,
    pub(crate) reservations: Vec<Reservation>,
    /// Bytes that a server of others says it holds for it.
    pub(crate) lent: u64,
}

/// All accelerators at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) accelerators: Vec<Accelerator>,
    /// Bytes that engines hold of GPUs, over all of them.
    pub(crate) engines: BTreeMap<EngineId, u64>,
}

impl Devices {
    /// Looks for GPUs.
    pub(crate) fn find(config: &Config) -> Self {
        Self::measured_by(Box::new(Machine::this()), config.host.memory)
    }

    pub(crate) fn measured_by(gauge: Box<dyn Gauge>, budget: Option<u64>) -> Self {
        let limit = budget.unwrap_or(u64::MAX);
        let mut known: Vec<Accelerator> = gauge
            .read()
            .into_iter()
            .map(|gpu| Accelerator {
                free: Some(gpu.free.min(limit)),
                ..Accelerator::new(gpu.id, gpu.kind, gpu.name, gpu.usable.min(limit))
            })
            .collect();
        if known.is_empty() {
            known.push(ram(budget));
        }
        Self { gauge, known, limit }
    }

    /// The accelerators without a measurement.
    pub(crate) fn known(&self) -> &[Accelerator] {
        &self.known
    }

    pub(crate) fn get(&self, id: &AcceleratorId) -> Option<&Accelerator> {
        self.known.iter().find(|accelerator| accelerator.id == *id)
    }

    /// Measures the accelerators, on which engines hold `claims`; `before` is what was measured last. Blocks for as
    /// long as drivers take.
    pub(crate) fn measure(&self, claims: &[Claim], before: &[Accelerator]) -> Measured {
        let readings = self.gauge.read();
        let marks = marks(claims);
        let mut measured = Measured::default();
        for known in &self.known {
            let mut now = known.clone();
            if known.kind == AcceleratorKind::Ram {
                now.free = Some(available_ram().min(known.memory));
                now.held = Some(procs::ram(&marks).into_values().fold(0, u64::saturating_add));
            } else if let Some(reading) = readings.iter().find(|reading| reading.id == known.id) {
                let reserved = reserved(claims, &known.id);
                let mut account = account(reading, reserved, |pid| procs::owner(pid, &marks));
                account.lend(lent(claims, &known.id));
                let last = before.iter().find(|last| last.id == known.id).and_then(|last| last.unexplained);
                self.enter(&mut now, reading, &account, reserved, last);
                for (engine, bytes) in account.engines {
                    let sum = measured.engines.entry(engine).or_default();
                    *sum = sum.saturating_add(bytes);
                }
            } else {
                now.free = None;
                // It fell off its bus, or cannot be read for a moment: only what stays counts.
                if before.iter().any(|last| last.id == known.id && last.free.is_none()) {
                    now.memory = reserved(claims, &known.id).min(known.memory);
                }
            }
            measured.accelerators.push(now);
        }
        measured
    }

    fn enter(
        &self,
        now: &mut Accelerator,
        reading: &Reading,
        account: &Account,
        reserved: u64,
        last: Option<u64>,
    ) {
        now.free = Some(reading.free.min(self.limit));
        now.held = Some(account.held());
        now.unexplained = Some(account.unexplained);
        // What an engine that has just ended held looks like nobody's for a moment: only what stays counts.
        let stays = account.unexplained.min(last.unwrap_or(0));
        let left = reading.usable.saturating_sub(stays.next_multiple_of(STEP)).min(self.limit);
        // Nothing that was promised is taken back.
        now.memory = left.max(reserved).min(now.memory);
    }

    /// Bytes measured free on one accelerator, and who else is on it; `None` where it cannot be read.
    pub(crate) fn free(&self, id: &AcceleratorId, claims: &[Claim]) -> Option<(u64, String)> {
        let known = self.get(id)?;
        if known.kind == AcceleratorKind::Ram {
            return Some((available_ram().min(known.memory), String::new()));
        }
        let readings = self.gauge.read();
        let reading = readings.iter().find(|reading| reading.id == *id)?;
        let marks = marks(claims);
        let who = account(reading, reserved(claims, id), |pid| procs::owner(pid, &marks)).who(procs::name);
        Some((reading.free.min(self.limit), who))
    }

    /// GPUs of a kind among the reservations, by their ids.
    pub(crate) fn gpus(&self, reservations: &[Reservation], kind: AcceleratorKind) -> Vec<String> {
        self.of_kind(reservations, kind).map(|reservation| reservation.accelerator.to_string()).collect()
    }

    /// Whether any of it is on a GPU.
    pub(crate) fn on_gpu(&self, reservations: &[Reservation]) -> bool {
        reservations.iter().any(|r| self.get(&r.accelerator).is_some_and(|a| a.kind != AcceleratorKind::Ram))
    }

    /// RAM that an engine may take, where RAM is what is reserved: what it was promised if its model `declared` that, else
    /// what engines have together. An estimate is no reason to kill.
    pub(crate) fn ram(&self, reservations: &[Reservation], declared: bool) -> Option<u64> {
        let reservation = self.of_kind(reservations, AcceleratorKind::Ram).next()?;
        if declared {
            Some(reservation.bytes)
        } else {
            self.get(&reservation.accelerator).map(|ram| ram.memory)
        }
    }

    fn of_kind<'a>(
        &'a self,
        reservations: &'a [Reservation],
        kind: AcceleratorKind,
    ) -> impl Iterator<Item = &'a Reservation> {
        reservations.iter().filter(move |r| self.get(&r.accelerator).is_some_and(|a| a.kind == kind))
    }

    /// Whether `wanted` fits beside what is `held`; says what is missing if it does not.
    pub(crate) fn check_fit<'a>(
        &self,
        wanted: &[Reservation],
        held: &(impl Iterator<Item = &'a Reservation> + Clone),
    ) -> Result<(), String> {
        if wanted.is_empty() {
            return Err("field `reservations` is empty: an engine needs memory on an accelerator".into());
        }
        for (n, reservation) in wanted.iter().enumerate() {
            let id = &reservation.accelerator;
            let Some(accelerator) = self.get(id) else {
                return Err(format!("this host has no accelerator `{id}`"));
            };
            if wanted.iter().take(n).any(|earlier| earlier.accelerator == *id) {
                return Err(format!("accelerator `{id}` is reserved twice"));
            }
            let taken: u64 = held.clone().filter(|h| h.accelerator == *id).map(|h| h.bytes).sum();
            let left = accelerator.memory.saturating_sub(taken);
            if reservation.bytes > left {
                return Err(format!(
                    "{} MiB are wanted on accelerator `{id}`, of whose {} MiB only {} MiB are left",
                    reservation.bytes >> 20,
                    accelerator.memory >> 20,
                    left >> 20
                ));
            }
        }
        Ok(())
    }
}

fn marks(claims: &[Claim]) -> Vec<(EngineId, Mark)> {
    claims.iter().filter_map(|claim| Some((claim.engine, claim.mark.clone()?))).collect()
}

/// Bytes that servers of others hold for us there, as far as they tell.
fn lent(claims: &[Claim], id: &AcceleratorId) -> u64 {
    let there = claims.iter().filter(|claim| claim.reservations.iter().any(|r| r.accelerator == *id));
    there
        .map(|claim| claim.lent.checked_div(claim.reservations.len() as u64).unwrap_or(0))
        .fold(0, u64::saturating_add)
}

fn reserved(claims: &[Claim], id: &AcceleratorId) -> u64 {
    let all = claims.iter().flat_map(|claim| &claim.reservations);
    all.filter(|reservation| reservation.accelerator == *id).fold(0, |sum, r| sum.saturating_add(r.bytes))
}

fn ram(budget: Option<u64>) -> Accelerator {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let total =
        system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory).min(system.total_memory());
    let memory = budget.unwrap_or(total / 5 * 4);
    Accelerator {
        free: Some(available_ram().min(memory)),
        ..Accelerator::new(RAM.into(), AcceleratorKind::Ram, "CPU and RAM", memory)
    }
}

fn available_ram() -> u64 {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    system.available_memory()
}

#[cfg(test)]
#[path = "accelerators_tests.rs"]
mod tests;
