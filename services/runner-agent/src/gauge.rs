//! What measures GPUs. The real one asks NVML and the kernel; readings that were written down can be replayed.

use std::path::PathBuf;

use berth_wire::{AcceleratorId, AcceleratorKind};
use serde::{Deserialize, Serialize};

use crate::amd;
use crate::nvidia::Nvidia;

/// A GPU, or an instance of one, at one moment.
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
    nvidia: Option<Nvidia>,
    sysfs: PathBuf,
}

impl Machine {
    pub(crate) fn this() -> Self {
        Self { nvidia: Nvidia::load(), sysfs: "/sys/class/drm".into() }
    }
}

impl Gauge for Machine {
    fn read(&self) -> Vec<Reading> {
        let mut readings = self.nvidia.as_ref().map(Nvidia::read).unwrap_or_default();
        readings.extend(amd::read(&self.sysfs));
        readings
    }
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
