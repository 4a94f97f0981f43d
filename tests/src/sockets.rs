//! The TCP connections of a process, asked by copies of its own sockets.

use std::net::SocketAddr;

use rustix::net::{getpeername, getsockname, sockopt::tcp_nodelay};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// An established connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Small pieces leave at once (`TCP_NODELAY`), instead of waiting for others to be acknowledged.
    pub no_delay: bool,
}

/// The connections that a process has now.
///
/// # Panics
/// When it does not run, or may not be asked.
#[must_use]
pub fn connections(pid: u32) -> Vec<Connection> {
    let process = Pid::from_raw(i32::try_from(pid).expect("a process id")).expect("a process id");
    let process = pidfd_open(process, PidfdFlags::empty()).expect("the process runs");
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let numbers = files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter_map(|number| {
            // What was closed meanwhile is passed over, and what is no TCP connection.
            let copy = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
            let local = SocketAddr::try_from(getsockname(&copy).ok()?).ok()?;
            let peer = SocketAddr::try_from(getpeername(&copy).ok()??).ok()?;
            Some(Connection { local, peer, no_delay: tcp_nodelay(&copy).ok()? })
        })
        .collect()
}
