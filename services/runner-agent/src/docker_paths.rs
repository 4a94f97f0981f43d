//! Where a folder of this agent's is for Docker, which mounts it into containers.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerInspectResponse, MountPoint};

/// How paths here become paths of Docker's machine.
#[derive(Debug)]
pub(crate) struct Paths {
    way: Way,
    told: Cell<bool>,
}

#[derive(Debug)]
enum Way {
    /// They are the same.
    Same,
    /// The agent is in a container: through what is mounted into it, by where it is mounted.
    Mounted(Vec<(PathBuf, PathBuf)>),
    /// Docker is elsewhere.
    Unknown,
}

impl Paths {
    /// `me` is the agent's own container; `same`: Docker's files are seen here.
    pub(crate) fn of(me: Option<&ContainerInspectResponse>, same: bool) -> Self {
        let way = match me {
            Some(me) => Way::Mounted(me.mounts.iter().flatten().filter_map(mounted).collect()),
            None if same => Way::Same,
            None => Way::Unknown,
        };
        Self { way, told: Cell::new(false) }
    }

    /// A folder as Docker is to mount it, or why it cannot.
    pub(crate) fn outside(&self, folder: &Path) -> Result<String, String> {
        let path = match &self.way {
            Way::Same => std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()),
            Way::Mounted(mounts) => {
                let within =
                    mounts.iter().filter_map(|(here, there)| Some((folder.strip_prefix(here).ok()?, there)));
                // The deepest one hides the others.
                let Some((rest, there)) = within.min_by_key(|(rest, _)| rest.components().count()) else {
                    return Err(format!(
                        "{} is in the agent's own container alone; mount a volume or a folder there",
                        folder.display()
                    ));
                };
                there.join(rest)
            }
            Way::Unknown => {
                return Err(format!(
                    "Docker is not on this machine, so that it cannot mount {}",
                    folder.display()
                ));
            }
        };
        match path.to_str().filter(|path| !path.contains(':')) {
            Some(path) => Ok(path.to_owned()),
            None => Err(format!("Docker cannot mount a path like {}; set [host] state_dir", path.display())),
        }
    }

    /// Whether this is the first time that somebody is to be told that it cannot.
    pub(crate) fn is_news(&self) -> bool {
        !self.told.replace(true)
    }
}

/// Where something is mounted, and what. A volume of another driver is where that driver alone knows.
fn mounted(mount: &MountPoint) -> Option<(PathBuf, PathBuf)> {
    let writable = mount.rw == Some(true);
    let local = mount.driver.as_deref().is_none_or(|driver| driver.is_empty() || driver == "local");
    let source = mount.source.as_ref().filter(|source| writable && local && source.starts_with('/'))?;
    Some((mount.destination.as_ref()?.into(), source.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(destination: &str, source: &str, driver: &str, rw: bool) -> MountPoint {
        MountPoint {
            destination: Some(destination.into()),
            source: Some(source.into()),
            driver: Some(driver.into()),
            rw: Some(rw),
            ..MountPoint::default()
        }
    }

    #[test]
    fn a_folder_of_the_agents_container_is_found_through_what_is_mounted_there() {
        let mounts = vec![
            mount("/var/lib/berth", "/var/lib/docker/volumes/agent/_data", "local", true),
            mount("/var/lib/berth/agent", "/srv/agent", "", true),
            mount("/elsewhere", "nfs:/x", "nfs", true),
            mount("/etc/berth", "/etc/berth", "", false),
        ];
        let me = ContainerInspectResponse { mounts: Some(mounts), ..ContainerInspectResponse::default() };
        let paths = Paths::of(Some(&me), true);
        let outside = |path: &str| paths.outside(Path::new(path));
        assert_eq!(outside("/var/lib/berth/agent/contexts").unwrap(), "/srv/agent/contexts");
        assert_eq!(outside("/var/lib/berth/x").unwrap(), "/var/lib/docker/volumes/agent/_data/x");
        for alone in ["/tmp/x", "/elsewhere/x", "/etc/berth/x"] {
            assert!(outside(alone).unwrap_err().contains("own container alone"), "{alone}");
        }
    }

    #[test]
    fn on_dockers_machine_paths_are_what_they_are_and_of_another_nothing_is_known() {
        let here = Paths::of(None, true);
        assert_eq!(here.outside(Path::new("/a/b")).unwrap(), "/a/b");
        assert!(here.outside(Path::new("/a:b")).unwrap_err().contains("state_dir"));
        assert!(here.is_news() && !here.is_news());
        assert!(Paths::of(None, false).outside(Path::new("/a")).unwrap_err().contains("not on this machine"));
    }
}
