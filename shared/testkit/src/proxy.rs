//! A TCP proxy before a real server that delays, swallows or cuts what passes through it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What the proxy does with what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes it on.
    Pass,
    /// Passes it on so much later, each way, without changing the throughput.
    Delay(Duration),
    /// Passes so many bytes a second, each way of each connection.
    Slow(u32),
    /// Keeps connections open and passes nothing: a network that has gone silent. What was held back passes
    /// when the mode changes.
    Blackhole,
    /// Closes new connections at once.
    Refuse,
}

/// A proxy on a free loopback port. Everything through it ends when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Raised to cut what is connected.
    cuts: watch::Sender<u64>,
    accept: JoinHandle<()>,
}

impl FaultProxy {
    /// Starts a proxy to `upstream`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Pass);
        let (cuts, cut) = watch::channel(0);
        let accept = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *modes.borrow() == Mode::Refuse {
                    continue;
                }
                tokio::spawn(connection(client, upstream, modes.clone(), cut.clone()));
            }
        });
        Ok(Self { address, mode, cuts, accept })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to traffic from now on, also of open connections.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Cuts every open connection. New ones are taken.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accept.abort();
        self.cut();
    }
}

async fn connection(
    client: TcpStream,
    upstream: SocketAddr,
    modes: watch::Receiver<Mode>,
    mut cut: watch::Receiver<u64>,
) {
    cut.mark_unchanged();
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    // Both ways end together: half a connection is no fault that is asked for.
    tokio::select! {
        () = pass(client_in, server_out, modes.clone()) => {}
        () = pass(server_in, client_out, modes) => {}
        _ = cut.changed() => {}
    }
}

/// One way: reads as fast as data comes, writes each piece when it is due.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut modes: watch::Receiver<Mode>) {
    let (queue, mut due) = mpsc::channel::<(Instant, Bytes)>(1024);
    let reading_modes = modes.clone();
    let read = async move {
        loop {
            let mut piece = BytesMut::with_capacity(64 * 1024);
            match from.read_buf(&mut piece).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let delay = match *reading_modes.borrow() {
                Mode::Delay(delay) => delay,
                _ => Duration::ZERO,
            };
            if queue.send((Instant::now() + delay, piece.freeze())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((when, piece)) = due.recv().await {
            tokio::time::sleep_until(when).await;
            if modes.wait_for(|mode| *mode != Mode::Blackhole).await.is_err() {
                return;
            }
            let mode = *modes.borrow();
            if let Mode::Slow(rate) = mode {
                let size = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                tokio::time::sleep(Duration::from_secs(1) * size / rate.max(1)).await;
            }
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    // The reader's end closes the queue; the writer then writes what is left.
    tokio::join!(read, write);
}
