//! What measures GPUs. The real one asks NVML and the kernel; readings that were written down can be replayed.

use std::path::PathBuf;

use berth_wire::{AcceleratorId, AcceleratorKind};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::amd;

/// A GPU at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) id: AcceleratorId,
    pub(crate) kind: AcceleratorKind,
    pub(crate) name: String,
    /// Bytes that programs may have, without what the driver keeps for itself.
    pub(crate) usable: u64,
    /// Bytes free of these.
    pub(crate) free: u64,
    /// Programs that hold some of it.
    pub(crate) holders: Vec<Holder>,
}

/// A program on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// In the agent's own namespace of processes.
    pub(crate) pid: u32,
    /// Bytes, where the driver tells.
    pub(crate) bytes: Option<u64>,
}

/// Measures the GPUs of a machine. May block.
pub(crate) trait Gauge: Send + Sync + std::fmt::Debug {
    /// Every GPU that can be read.
    fn read(&self) -> Vec<Reading>;
}

/// The GPUs of this machine.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Loaded at run time; a machine without it is a normal one.
    nvml: Option<Nvml>,
    sysfs: PathBuf,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let nvml = Nvml::init().inspect_err(|error| debug!(%error, "no NVML")).ok();
        Self { nvml, sysfs: "/sys/class/drm".into() }
    }
}

impl Gauge for Machine {
    fn read(&self) -> Vec<Reading> {
        let mut readings = self.nvml.as_ref().map(nvidia).unwrap_or_default();
        readings.extend(amd::read(&self.sysfs));
        readings
    }
}

fn nvidia(nvml: &Nvml) -> Vec<Reading> {
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let read = nvml.device_by_index(index).and_then(|device| reading(&device));
            read.inspect_err(|error| warn!(index, %error, "left out a GPU that NVML cannot read")).ok()
        })
        .collect()
}

fn reading(device: &Device<'_>) -> Result<Reading, NvmlError> {
    let memory = device.memory_info()?;
    let mut holders: Vec<Holder> = Vec::new();
    let lists = [device.running_compute_processes(), device.running_graphics_processes()];
    for process in lists.into_iter().flatten().flatten() {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // A program that computes and draws is in both lists with the same sum.
        if !holders.iter().any(|holder| holder.pid == process.pid) {
            holders.push(Holder { pid: process.pid, bytes });
        }
    }
    Ok(Reading {
        id: device.uuid()?.into(),
        kind: AcceleratorKind::Nvidia,
        name: device.name()?,
        usable: memory.total.saturating_sub(memory.reserved),
        free: memory.free,
        holders,
    })
}

/// Readings that were written down, one after the other; the last one stays.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Recorded {
    readings: std::sync::Mutex<std::collections::VecDeque<Vec<Reading>>>,
}

#[cfg(test)]
impl Recorded {
    pub(crate) fn new(readings: impl IntoIterator<Item = Vec<Reading>>) -> Self {
        Self { readings: std::sync::Mutex::new(readings.into_iter().collect()) }
    }
}

#[cfg(test)]
impl Gauge for Recorded {
    fn read(&self) -> Vec<Reading> {
        let mut readings = self.readings.lock().unwrap();
        if readings.len() > 1 { readings.pop_front() } else { readings.front().cloned() }.unwrap_or_default()
    }
}
