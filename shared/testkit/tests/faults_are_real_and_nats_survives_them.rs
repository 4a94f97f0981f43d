//! The fault proxy before a real nats-server, and the server's own restarts.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panic")]

use std::time::{Duration, Instant};

use berth_testkit::nats::TestNats;
use berth_testkit::proxy::{FaultProxy, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

/// A greeted connection that answers pings.
async fn greeted(proxy: &FaultProxy) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    let mut greeting = vec![0; 4096];
    let read = timeout(SOON, stream.read(&mut greeting)).await.unwrap().unwrap();
    assert!(greeting[..read].starts_with(b"INFO "), "{}", String::from_utf8_lossy(&greeting[..read]));
    stream.write_all(b"CONNECT {\"verbose\":false}\r\nPING\r\n").await.unwrap();
    pong(&mut stream).await;
    stream
}

async fn pong(stream: &mut TcpStream) {
    let mut answer = [0; 6];
    timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"PONG\r\n");
}

#[tokio::test]
async fn a_delay_holds_a_ping_and_a_black_hole_swallows_it_until_it_is_lifted() {
    let nats = TestNats::start().unwrap();
    let proxy = FaultProxy::start(nats.address()).await.unwrap();
    let mut stream = greeted(&proxy).await;

    proxy.set(Mode::Delay(Duration::from_millis(100)));
    let begun = Instant::now();
    stream.write_all(b"PING\r\n").await.unwrap();
    pong(&mut stream).await;
    assert!(begun.elapsed() >= Duration::from_millis(200), "each way is delayed: {:?}", begun.elapsed());

    proxy.set(Mode::Blackhole);
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut byte = [0; 1];
    assert!(timeout(Duration::from_millis(200), stream.read(&mut byte)).await.is_err());
    proxy.set(Mode::Pass);
    pong(&mut stream).await;
}

#[tokio::test]
async fn a_cut_ends_what_is_open_and_a_refusal_what_comes() {
    let nats = TestNats::start().unwrap();
    let proxy = FaultProxy::start(nats.address()).await.unwrap();
    let mut stream = greeted(&proxy).await;
    proxy.cut();
    let mut byte = [0; 1];
    let ended = timeout(SOON, stream.read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    greeted(&proxy).await;

    proxy.set(Mode::Refuse);
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    let ended = timeout(SOON, refused.read(&mut byte)).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn nats_comes_back_on_its_port_after_a_kill() {
    let mut nats = TestNats::start().unwrap();
    let (address, pid) = (nats.address(), nats.pid().unwrap());
    nats.kill9();
    assert!(TcpStream::connect(address).await.is_err());
    nats.restart().unwrap();
    assert_eq!(nats.address(), address);
    assert_ne!(nats.pid().unwrap(), pid);
    let proxy = FaultProxy::start(address).await.unwrap();
    greeted(&proxy).await;
}

#[test]
fn a_configuration_that_nats_refuses_is_told_with_its_log() {
    let error = TestNats::start_with("no_such_option: 1").unwrap_err().to_string();
    assert!(error.contains("no_such_option"), "{error}");
}
