//! NVIDIA's GPUs as NVML shows them (<https://docs.nvidia.com/deploy/nvml-api/>); driver 510 or newer. A GPU that is
//! divided (MIG) is each of its instances, since programs may use nothing else of it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use berth_wire::AcceleratorKind;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use tracing::{debug, info, warn};

use crate::gauge::{Holder, Reading};

/// What begins the id of a MIG instance.
const INSTANCE: &str = "MIG-";
/// As NVML has it.
const MIG_ENABLED: u32 = 1;

/// NVML, loaded at run time.
#[derive(Debug)]
pub(crate) struct Nvidia {
    nvml: Nvml,
    /// What was told of GPUs that cannot be read, by their index: told once.
    told: Mutex<BTreeMap<u32, String>>,
}

impl Nvidia {
    /// `None` on a machine without it, which is a normal one.
    pub(crate) fn load() -> Option<Self> {
        Nvml::init().inspect_err(|error| debug!(%error, "no NVML")).ok().map(Self::new)
    }

    fn new(nvml: Nvml) -> Self {
        Self { nvml, told: Mutex::default() }
    }

    pub(crate) fn read(&self) -> Vec<Reading> {
        let count = self.nvml.device_count().unwrap_or_else(|error| {
            debug!(%error, "NVML does not tell how many GPUs there are");
            0
        });
        let mut readings = Vec::new();
        for index in 0..count {
            let read = self.nvml.device_by_index(index).and_then(|device| readings_of(&device));
            self.tell(index, read.as_ref().err());
            readings.extend(read.unwrap_or_default());
        }
        readings
    }

    fn tell(&self, index: u32, error: Option<&NvmlError>) {
        let Ok(mut told) = self.told.lock() else { return };
        match error.map(ToString::to_string) {
            Some(why) if told.get(&index) != Some(&why) => {
                warn!(index, why, "left out a GPU that NVML cannot read");
                told.insert(index, why);
            }
            Some(_) => {}
            None => {
                if told.remove(&index).is_some() {
                    info!(index, "a GPU can be read again");
                }
            }
        }
    }
}

/// Whether programs can use only one of several such accelerators: CUDA sees one MIG instance at most.
pub(crate) fn is_alone(gpus: &[String]) -> bool {
    gpus.iter().any(|id| id.starts_with(INSTANCE))
}

/// A GPU, or its instances.
fn readings_of(device: &Device<'_>) -> Result<Vec<Reading>, NvmlError> {
    // Most GPUs cannot be divided, and say so by an error.
    if device.mig_mode().is_ok_and(|mode| mode.current == MIG_ENABLED) {
        let mut readings = Vec::new();
        for index in 0..device.mig_device_count()? {
            match device.mig_device_by_index(index) {
                Ok(instance) => readings.push(reading(&instance)?),
                // Not all that could be are.
                Err(NvmlError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        return Ok(readings);
    }
    reading(device).map(|reading| vec![reading])
}

fn reading(device: &Device<'_>) -> Result<Reading, NvmlError> {
    // The second version of this call: `total` is all there is, and `reserved` is counted apart from `used`.
    let memory = device.memory_info()?;
    let mut holders: Vec<Holder> = Vec::new();
    let lists = [
        device.running_compute_processes(),
        device.running_graphics_processes(),
        device.mps_running_compute_processes(),
    ];
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

#[cfg(test)]
#[path = "nvidia_tests.rs"]
mod tests;
