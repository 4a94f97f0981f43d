//! Hosts that are really apart: network namespaces on a bridge of their own, with a way to its address and to nothing else.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

/// No two tests look for a free subnet at the same time.
static TURN: Mutex<()> = Mutex::new(());

/// Namespaces of one test; gone when dropped, whatever became of the test.
#[derive(Debug)]
pub struct Islands {
    /// Of its names: interfaces may have 15 letters.
    tag: String,
    subnet: u8,
    count: u8,
}

impl Islands {
    /// A bridge and so many namespaces.
    ///
    /// # Panics
    /// When the system does not make them; it takes root and iproute2.
    #[must_use]
    pub fn new(count: u8) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let count_here = COUNT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("bt{}{count_here}", std::process::id() % 1_000_000);
        let free = |subnet: &u8| {
            let route = ip(&format!("route show 198.18.{subnet}.0/24"));
            route.is_ok_and(|text| text.trim().is_empty())
        };
        // 198.18.0.0/15 is for tests of networks (RFC 2544).
        let start = u8::try_from(std::process::id() % 200).expect("it is below 200");
        let subnet = (start..250).find(free).expect("a subnet is free");
        // From here on it is taken apart again, also when what follows fails.
        let islands = Self { tag, subnet, count };
        let bridge = islands.bridge();
        must(&format!("link add {bridge} type bridge"));
        must(&format!("addr add {}/24 dev {bridge}", islands.shore()));
        must(&format!("link set {bridge} up"));
        for n in 0..count {
            let (space, cable) = (islands.space(n), islands.cable(n));
            must(&format!("netns add {space}"));
            must(&format!("link add {cable} type veth peer name eth0 netns {space}"));
            must(&format!("link set {cable} master {bridge}"));
            must(&format!("link set {cable} up"));
            // Next to each other on the bridge, they do not hear each other.
            let _ = bridge_of(&format!("link set dev {cable} isolated on"));
            must(&format!("-n {space} addr add 198.18.{subnet}.{}/24 dev eth0", n + 2));
            must(&format!("-n {space} link set lo up"));
            must(&format!("-n {space} link set eth0 up"));
        }
        islands
    }

    /// The address that all of them reach.
    #[must_use]
    pub fn shore(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 1)
    }

    /// Has a command run in one of them.
    #[must_use]
    pub fn within(&self, n: u8, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.space(n)]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            inside.current_dir(folder);
        }
        inside
    }

    /// Pulls its cable out: nothing passes, and nobody is told.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn cut(&self, n: u8) {
        must(&format!("link set {} down", self.cable(n)));
    }

    /// Puts it in again.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn mend(&self, n: u8) {
        if let Err(error) = self.try_mend(n) {
            panic!("cannot put the cable in again: {error}");
        }
    }

    /// The same where nobody asks what came of it.
    pub(crate) fn try_mend(&self, n: u8) -> Result<(), String> {
        ip(&format!("link set {} up", self.cable(n))).map(drop)
    }

    /// Whether the process is in that namespace.
    #[must_use]
    pub fn holds(&self, n: u8, pid: i32) -> bool {
        let pids = ip(&format!("netns pids {}", self.space(n))).unwrap_or_default();
        pids.split_whitespace().any(|known| known == pid.to_string())
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    fn cable(&self, n: u8) -> String {
        format!("{}c{n}", self.tag)
    }

    fn space(&self, n: u8) -> String {
        format!("{}n{n}", self.tag)
    }
}

impl Drop for Islands {
    fn drop(&mut self) {
        for n in 0..self.count {
            let _ = ip(&format!("link del {}", self.cable(n)));
            let _ = ip(&format!("netns del {}", self.space(n)));
        }
        let _ = ip(&format!("link del {}", self.bridge()));
    }
}

fn must(words: &str) {
    if let Err(error) = ip(words) {
        panic!("`ip {words}`: {error} (network namespaces take root and iproute2)");
    }
}

fn ip(words: &str) -> Result<String, String> {
    run("ip", words)
}

fn bridge_of(words: &str) -> Result<String, String> {
    run("bridge", words)
}

fn run(program: &str, words: &str) -> Result<String, String> {
    let output = Command::new(program).args(words.split(' ')).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
