//! What this machine computes with: GPUs seen through NVML, else its RAM as one pseudo-device.

use berth_config::Config;
use berth_wire::{Accelerator, AcceleratorId, AcceleratorKind, Reservation};
use nvml_wrapper::Nvml;
use sysinfo::{MemoryRefreshKind, System};
use tracing::{debug, warn};

/// The accelerators, and what measures them.
pub(crate) struct Devices {
    nvml: Option<Nvml>,
    known: Vec<Accelerator>,
}

/// The RAM pseudo-device's id.
const RAM: &str = "ram";

impl Devices {
    /// Looks for GPUs. NVML is loaded at run time; a machine without it is a normal one.
    pub(crate) fn find(config: &Config) -> Self {
        let nvml = Nvml::init().inspect_err(|error| debug!(%error, "no NVML")).ok();
        let mut known = nvml.as_ref().map(gpus).unwrap_or_default();
        for gpu in &mut known {
            gpu.memory = gpu.memory.min(config.host.memory.unwrap_or(u64::MAX));
        }
        if known.is_empty() {
            known.push(ram(config.host.memory));
        }
        Self { nvml, known }
    }

    /// The accelerators without a measurement.
    pub(crate) fn known(&self) -> &[Accelerator] {
        &self.known
    }

    pub(crate) fn get(&self, id: &AcceleratorId) -> Option<&Accelerator> {
        self.known.iter().find(|accelerator| accelerator.id == *id)
    }

    /// The accelerators with what is free of them now. Blocks for as long as NVML takes.
    pub(crate) fn measure(&self) -> Vec<Accelerator> {
        self.known
            .iter()
            .map(|accelerator| Accelerator { free: self.free(accelerator), ..accelerator.clone() })
            .collect()
    }

    /// Bytes measured free on one accelerator.
    pub(crate) fn free(&self, accelerator: &Accelerator) -> Option<u64> {
        let free = match accelerator.kind {
            AcceleratorKind::Ram => available_ram(),
            AcceleratorKind::Nvidia => {
                let device = self.nvml.as_ref()?.device_by_uuid(accelerator.id.as_str()).ok()?;
                device.memory_info().ok()?.free
            }
        };
        Some(free.min(accelerator.memory))
    }

    /// GPUs among the reservations, by UUID.
    pub(crate) fn gpus(&self, reservations: &[Reservation]) -> Vec<String> {
        self.of_kind(reservations, AcceleratorKind::Nvidia)
            .map(|reservation| reservation.accelerator.to_string())
            .collect()
    }

    /// RAM set aside, where RAM is what is reserved.
    pub(crate) fn ram(&self, reservations: &[Reservation]) -> Option<u64> {
        self.of_kind(reservations, AcceleratorKind::Ram).map(|reservation| reservation.bytes).next()
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

fn gpus(nvml: &Nvml) -> Vec<Accelerator> {
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let read = || -> Result<Accelerator, nvml_wrapper::error::NvmlError> {
                let device = nvml.device_by_index(index)?;
                let memory = device.memory_info()?;
                Ok(Accelerator {
                    id: device.uuid()?.into(),
                    kind: AcceleratorKind::Nvidia,
                    name: device.name()?,
                    memory: memory.total,
                    free: Some(memory.free),
                })
            };
            read().inspect_err(|error| warn!(index, %error, "left out a GPU that NVML cannot read")).ok()
        })
        .collect()
}

fn ram(budget: Option<u64>) -> Accelerator {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let total =
        system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory).min(system.total_memory());
    let memory = budget.unwrap_or(total / 5 * 4);
    Accelerator {
        id: RAM.into(),
        kind: AcceleratorKind::Ram,
        name: "CPU and RAM".into(),
        memory,
        free: Some(available_ram().min(memory)),
    }
}

fn available_ram() -> u64 {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    system.available_memory()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(memory: u64) -> Devices {
        Devices { nvml: None, known: vec![ram(Some(memory))] }
    }

    fn reservation(id: &str, bytes: u64) -> Reservation {
        Reservation { accelerator: id.into(), bytes }
    }

    #[test]
    fn what_is_held_counts_against_the_budget() {
        let devices = devices(100 << 20);
        let held = [reservation(RAM, 60 << 20), reservation("other", 90 << 20)];
        assert_eq!(devices.check_fit(&[reservation(RAM, 40 << 20)], &held.iter()), Ok(()));
        let refused = devices.check_fit(&[reservation(RAM, 41 << 20)], &held.iter()).unwrap_err();
        assert!(refused.contains("only 40 MiB are left"), "{refused}");
    }

    #[test]
    fn an_unknown_or_repeated_accelerator_is_refused() {
        let devices = devices(100);
        assert!(devices.check_fit(&[reservation("gpu", 1)], &[].iter()).unwrap_err().contains("`gpu`"));
        let twice = [reservation(RAM, 1), reservation(RAM, 1)];
        assert!(devices.check_fit(&twice, &[].iter()).unwrap_err().contains("twice"));
        assert!(devices.check_fit(&[], &[].iter()).unwrap_err().contains("reservations"));
    }

    #[test]
    fn the_pseudo_device_measures_what_is_free() {
        let devices = devices(1 << 20);
        assert_eq!(devices.measure()[0].free, Some(1 << 20));
    }
}
