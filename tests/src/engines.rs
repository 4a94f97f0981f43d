//! The engines of one fleet, seen from outside: processes by a mark in their environment, containers by their volume.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running engine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// A process.
    Process {
        /// Its id.
        pid: i32,
        /// The model it serves.
        model: String,
    },
    /// A container.
    Container {
        /// Its full id.
        id: String,
    },
}

impl Engine {
    /// `kill -9` or `docker kill`.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill9(&self) {
        match self {
            Self::Process { pid, .. } => kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("the engine runs"),
            Self::Container { id } => {
                docker(&["kill", id]).expect("the container runs");
            }
        }
    }

    /// `http://127.0.0.1:PORT` of a process, by its command line.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn url(&self) -> String {
        let Self::Process { pid, .. } = self else { panic!("only processes are asked for their port") };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("the engine runs");
        let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
        let port = words.iter().skip_while(|word| *word != "--port").nth(1);
        format!("http://127.0.0.1:{}", port.unwrap_or_else(|| panic!("no --port in {words:?}")))
    }
}

/// All engines of one run.
#[derive(Debug, Clone)]
pub struct Engines {
    mark: String,
    folder: PathBuf,
    uses_docker: bool,
}

impl Engines {
    pub(crate) fn new(run: &str, folder: &Path, config: &str) -> Self {
        Self {
            mark: format!("BERTH_TEST_RUN={run}"),
            folder: folder.into(),
            uses_docker: config.contains("\"docker\""),
        }
    }

    /// Those that run now.
    #[must_use]
    pub fn running(&self) -> BTreeSet<Engine> {
        let mut engines = self.processes();
        if self.uses_docker {
            engines.extend(self.containers(&[]).into_iter().map(|id| Engine::Container { id }));
        }
        engines
    }

    /// The only one that runs, of a simulator's kind: `/sim/stats` can be asked of it.
    ///
    /// # Panics
    /// When there is not exactly one.
    #[must_use]
    pub fn only(&self) -> Engine {
        let running = self.running();
        assert_eq!(running.len(), 1, "exactly one engine runs: {running:?}");
        running.into_iter().next().expect("there is one")
    }

    /// Watches which engines run, until stopped.
    #[must_use]
    pub fn watch(&self) -> Watch {
        let engines = self.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !stopped.load(Ordering::Relaxed) {
                let running = engines.running();
                if running.len() > seen.most.len() {
                    seen.most.clone_from(&running);
                }
                seen.all.extend(running);
                seen.looks += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Watch { stop, thread }
    }

    fn processes(&self) -> BTreeSet<Engine> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeSet::new() };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
            .filter_map(|pid| {
                // A process that has ended and not been waited for has no environment any more.
                let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
                let mut variables = environ.split(|b| *b == 0).map(String::from_utf8_lossy);
                variables.clone().any(|v| v == self.mark.as_str()).then_some(())?;
                // In a container it is found as one.
                let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                (!cgroup.contains("/docker")).then_some(())?;
                let model = variables.find_map(|v| v.strip_prefix("BERTH_TEST_MODEL=").map(str::to_owned))?;
                Some(Engine::Process { pid, model })
            })
            .collect()
    }

    /// Containers that mount a file of this run's folder.
    fn containers(&self, more: &[&str]) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let mut args: Vec<String> =
            ["ps", "-q", "--no-trunc"].iter().chain(more).map(ToString::to_string).collect();
        let weights = files.filter_map(|file| file.ok().map(|file| file.path()));
        let before = args.len();
        for file in weights.filter(|file| file.extension().is_some_and(|ext| ext == "gguf")) {
            args.push("--filter".into());
            args.push(format!("volume={}", file.display()));
        }
        if args.len() == before {
            return Vec::new();
        }
        docker(&args.iter().map(String::as_str).collect::<Vec<_>>())
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }

    /// Labels of a container.
    ///
    /// # Panics
    /// When Docker does not know it.
    #[must_use]
    pub fn labels(&self, id: &str) -> serde_json::Value {
        let text = docker(&["inspect", "-f", "{{json .Config.Labels}}", id]).expect("the container is known");
        serde_json::from_str(&text).expect("Docker prints JSON")
    }

    /// Ends whatever is left of this run.
    pub(crate) fn clear(&self) {
        for engine in self.processes() {
            if let Engine::Process { pid, .. } = engine {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if self.uses_docker {
            for id in self.containers(&["-a"]) {
                let _ = docker(&["rm", "-f", &id]);
            }
            // An agent that was killed, or that was to keep its engines, leaves its network.
            let host = self.mark.split_once('=').map_or("", |(_, run)| run);
            let _ = docker(&["network", "rm", &format!("berth-{host}-engines")]);
        }
    }
}

/// What a watch has seen.
#[derive(Debug, Default)]
struct Seen {
    all: BTreeSet<Engine>,
    most: BTreeSet<Engine>,
    looks: u32,
}

/// A watch over engines.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    /// Ends it: every engine seen, and the most that ran at the same time.
    ///
    /// # Panics
    /// When it never looked.
    #[must_use]
    pub fn stop(self) -> (BTreeSet<Engine>, BTreeSet<Engine>) {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the watch does not panic");
        assert!(seen.looks > 0, "the watch never looked");
        (seen.all, seen.most)
    }
}

fn docker(args: &[&str]) -> Result<String, String> {
    let output = Command::new("docker").args(args).output().map_err(|e| format!("no docker: {e}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::{Part, path};

    #[test]
    fn processes_and_containers_of_this_run_alone_are_seen_and_cleared() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let weights = folder.path().join("m.gguf");
        std::fs::copy(path(Part::Gguf), &weights).expect("the tiny model can be copied");
        let run = crate::run::unique();
        let engines = Engines::new(&run, folder.path(), "driver = \"docker\"");
        assert!(engines.running().is_empty());

        let start = |run: &str| {
            let mut command = Command::new("sleep");
            command.arg("600").env("BERTH_TEST_RUN", run).env("BERTH_TEST_MODEL", "m");
            command.spawn().expect("sleep can be run")
        };
        let (mut ours, mut other) = (start(&run), start("another"));
        let mount = format!("{}:/models/m.gguf:ro", weights.display());
        let mark = format!("BERTH_TEST_RUN={run}");
        let image = Part::LlamaImage.text();
        let started =
            docker(&["run", "-d", "-v", &mount, "-e", &mark, "-l", "a=b", &image, "-m", "/models/m.gguf"]);
        let id = started.expect("a container runs");

        let running = engines.running();
        let pid = i32::try_from(ours.id()).expect("a process id");
        let expected = [Engine::Process { pid, model: "m".into() }, Engine::Container { id: id.clone() }];
        assert_eq!(running, BTreeSet::from(expected));
        assert_eq!(engines.labels(&id)["a"], "b");
        engines.clear();
        ours.wait().expect("it was killed");
        assert!(engines.running().is_empty());
        assert!(other.try_wait().expect("it can be asked").is_none(), "others are left alone");
        other.kill().expect("it runs");
        other.wait().expect("it was killed");
    }
}
