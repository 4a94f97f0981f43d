//! A Docker engine of a test's own, which may be stopped and filled up. It touches nothing of the machine's: its own
//! folders, socket and bridge, and no firewall rules.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use berth_testkit::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containers::part;
use crate::fixture::WAIT;

/// Tells the engines of one test process apart.
static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Dockerd {
    folder: tempfile::TempDir,
    bridge: String,
    live_restore: bool,
    mounted: bool,
    server: Option<Child>,
}

fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().unwrap();
    assert!(output.status.success(), "{command} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Dockerd {
    /// Starts one that has the image of llama-server; with `room`, on a disk of so many MiB.
    pub(crate) async fn start(live_restore: bool, room: Option<u32>) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bridge = format!("bt{}-{number}", std::process::id() % 100_000);
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        if let Some(room) = room {
            let options = format!("size={room}m");
            run("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", &data.display().to_string()]);
        }
        run("ip", &["link", "add", "name", &bridge, "type", "bridge"]);
        let subnet = format!("10.{}.{}.1/24", 100 + number % 100, std::process::id() % 250);
        run("ip", &["addr", "add", &subnet, "dev", &bridge]);
        run("ip", &["link", "set", &bridge, "up"]);
        let mut dockerd = Self { folder, bridge, live_restore, mounted: room.is_some(), server: None };
        dockerd.resume().await;
        let load =
            format!("docker save {} | docker -H {} load -q", part("BERTH_TEST_LLAMA_IMAGE"), dockerd.host());
        run("sh", &["-c", &load]);
        dockerd
    }

    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// What `docker` says of this engine.
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        let output = Command::new("docker").arg("-H").arg(self.host()).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) async fn resume(&mut self) {
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = Command::new("dockerd");
        command.args(["--data-root", &self.path("data"), "--exec-root", &self.path("exec")]);
        command.args(["--pidfile", &self.path("pid"), "-H", &self.host(), "--bridge", &self.bridge]);
        command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]);
        command.args(["--shutdown-timeout", "5"]);
        if self.live_restore {
            command.arg("--live-restore");
        }
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.server = Some(server);
        let log = self.path("log");
        until("the private dockerd answers", WAIT * 2, async || {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{}", std::fs::read_to_string(Path::new(&log)).unwrap());
            !self.docker(&["version", "-f", "{{.Server.Version}}"]).is_empty()
        })
        .await;
    }

    /// Ends it in order, which ends its containers unless it has live-restore.
    pub(crate) async fn pause(&mut self) {
        let mut server = self.server.take().unwrap();
        kill(Pid::from_raw(server.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        until("the private dockerd ends", WAIT * 2, async || server.try_wait().unwrap().is_some()).await;
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let all = self.docker(&["ps", "-aq"]);
        for id in all.lines() {
            self.docker(&["rm", "-f", id]);
        }
        if let Some(mut server) = self.server.take() {
            let _ = kill(Pid::from_raw(i32::try_from(server.id()).unwrap_or(0)), Signal::SIGTERM);
            let _ = server.wait();
        }
        let _ = Command::new("ip").args(["link", "del", &self.bridge]).status();
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.path("data")).status();
        }
    }
}
