//! What there is on this machine to run engines with.

use berth_config::Config;
use berth_wire::{Accelerator, Driver};
use bollard::Docker;

use crate::accelerators::Devices;
use crate::{docker, external};

/// What was found.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Found {
    /// GPUs, or the RAM pseudo-device.
    pub accelerators: Vec<Accelerator>,
    /// Drivers that work.
    pub drivers: Vec<Driver>,
    /// Drivers that are configured and do not work, and why.
    pub missing: Vec<(Driver, String)>,
}

/// Looks for accelerators and tries the configured drivers.
pub async fn detect(config: &Config) -> Found {
    let devices = Devices::find(config);
    let (found, _) = try_drivers(config, &devices).await;
    found
}

/// As [`detect`], with the connection to Docker that was made.
pub(crate) async fn try_drivers(config: &Config, devices: &Devices) -> (Found, Option<Docker>) {
    let mut found =
        Found { accelerators: devices.known().to_vec(), drivers: Vec::new(), missing: Vec::new() };
    let mut connected = None;
    for driver in &config.host.drivers {
        match driver {
            Driver::Process => found.drivers.push(Driver::Process),
            Driver::External => {}
            Driver::Docker => match docker::connect(&config.host).await {
                Ok(docker) => {
                    connected = Some(docker);
                    found.drivers.push(Driver::Docker);
                }
                Err(why) => found.missing.push((Driver::Docker, why)),
            },
        }
    }
    if external::any(config) {
        found.drivers.push(Driver::External);
    }
    (found, connected)
}
