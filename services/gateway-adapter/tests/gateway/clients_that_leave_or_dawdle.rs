//! Who leaves frees what was held for them; who reads slowly slows only themselves.

use std::time::Duration;

use berth_testkit::wait::until;
use berth_wire::{ApiError, BeginReply, ErrorKind, Finish, Notice, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

async fn raw(gateway: &Gateway, body: &str) -> TcpStream {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

#[tokio::test]
async fn a_client_that_leaves_while_queued_is_cancelled_streaming_or_not() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for stream in [true, false] {
        let request = post(&gateway, "/v1/chat/completions", chat(stream));
        let job = played.job().await;
        request.abort();
        assert_eq!(played.cancelled().await.job, job.id);
        let refused = played.begin(&job, 1).await.unwrap();
        assert!(matches!(refused, BeginReply::Refuse { .. }), "nobody waits for it any more");
    }
}

#[tokio::test]
async fn a_client_that_only_closes_its_half_of_the_connection_has_left_too() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let mut socket = raw(&gateway, &chat(false)).await;
    let job = played.job().await;
    socket.shutdown().await.unwrap();
    assert_eq!(played.cancelled().await.job, job.id);
}

#[tokio::test]
async fn a_client_that_leaves_while_its_model_loads_is_cancelled() {
    let (_nats, mut played, gateway) = house(|config| config.gateway.grace = Duration::from_millis(50)).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    played.notify(&job, 1, Notice::Waiting { stage: Stage::Loading, position: 0, eta: None }).await;
    let response = request.await.unwrap();
    assert_eq!(response.status(), 200);
    drop(response);
    assert_eq!(played.cancelled().await.job, job.id);
}

#[tokio::test]
async fn a_client_that_leaves_mid_answer_is_cancelled_at_the_scheduler_and_at_the_host() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for stream in [true, false] {
        let request = post(&gateway, "/v1/chat/completions", chat(stream));
        let job = played.job().await;
        played.go(&job, 1).await;
        if stream {
            played.frame(&job, head(200, EVENTS, 1, b"data: {}\n\n")).await;
            drop(request.await.unwrap());
        } else {
            played.frame(&job, head(200, "application/json", 1, b"{\"half\":")).await;
            request.abort();
        }
        assert_eq!(played.cancelled().await.job, job.id);
        let at_host: berth_wire::CancelJob = berth_bus::read(&played.command("cancel").await).unwrap();
        assert_eq!(at_host.job, job.id);
    }
}

/// From the client's FIN to the cancel at the scheduler.
#[tokio::test]
async fn a_client_that_leaves_is_cancelled_within_100_ms_in_every_stage() {
    let (_nats, mut played, gateway) = house(|config| config.gateway.grace = Duration::from_millis(20)).await;
    for stream in [true, false] {
        for stage in ["queued", "loading", "begun", "mid-stream"] {
            // A machine that is busy with other things may delay one try; the fastest of some tells what we do.
            let mut fastest = Duration::MAX;
            for _ in 0..5 {
                let mut socket = raw(&gateway, &chat(stream)).await;
                let job = played.job().await;
                match stage {
                    "queued" => {}
                    "loading" => {
                        let loading = Notice::Waiting { stage: Stage::Loading, position: 0, eta: None };
                        played.notify(&job, 1, loading).await;
                    }
                    _ => played.go(&job, 1).await,
                }
                if stage == "mid-stream" {
                    let kind = if stream { EVENTS } else { "application/json" };
                    played.frame(&job, head(200, kind, 1, b"data: {}\n\n")).await;
                }
                if stream {
                    // Its status line has come, so that the body is what is dropped.
                    socket.read_exact(&mut [0; 12]).await.unwrap();
                }
                let left = std::time::Instant::now();
                socket.shutdown().await.unwrap();
                // What came for the one before after it had left is answered with its cancel once more.
                while played.cancelled().await.job != job.id {}
                fastest = fastest.min(left.elapsed());
            }
            assert!(fastest < Duration::from_millis(100), "{stage}, stream {stream}: {fastest:?}");
        }
    }
}

#[tokio::test]
async fn a_scheduler_that_missed_a_cancel_hears_it_again() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    request.abort();
    assert_eq!(played.cancelled().await.job, job.id);
    played.notify(&job, 1, Notice::Waiting { stage: Stage::Queued, position: 0, eta: None }).await;
    assert_eq!(played.cancelled().await.job, job.id);
}

#[tokio::test]
async fn an_answered_client_is_not_cancelled() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    for stream in [true, false] {
        let request = post(&gateway, "/v1/chat/completions", chat(stream));
        let job = played.job().await;
        let kind = if stream { EVENTS } else { "application/json" };
        played.answer(&job, 200, kind, b"data: [DONE]\n\n").await;
        request.await.unwrap().bytes().await.unwrap();
    }
    // The next cancel is that of a client that did leave: none came before it.
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let left = played.job().await;
    request.abort();
    assert_eq!(played.cancelled().await.job, left.id);
}

/// What the gateway says until it closes the connection.
async fn told(mut socket: TcpStream) -> String {
    let mut told = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut told)).await.expect("it stays open").unwrap();
    told
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_and_its_connection_closed() {
    let (_nats, _played, gateway) =
        house(|config| config.gateway.body_timeout = Duration::from_millis(200)).await;
    for begun in [
        "content-length: 100\r\n\r\n",
        "content-length: 100\r\n\r\n{\"model\":",
        "transfer-encoding: chunked\r\n\r\n2\r\n{\"\r\n",
    ] {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{begun}");
        socket.write_all(request.as_bytes()).await.unwrap();
        let told = told(socket).await;
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
        assert!(told.contains("\r\nconnection: close\r\n"), "{told}");
        assert!(told.contains("\"code\":\"body_timeout\"") && told.contains("for 200ms"), "{told}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_by_its_header_is_refused_before_any_of_it_comes() {
    let (_nats, _played, gateway) = house(|config| config.gateway.body_limit = 1000).await;
    for begun in
        ["content-length: 4000", "content-length: 4000000", "content-encoding: gzip\r\ncontent-length: 9"]
    {
        let mut socket = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{begun}\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut told = String::new();
        let answer = async {
            // The last brace of the error object.
            while !told.ends_with("}}") {
                let mut piece = [0; 1024];
                let read = socket.read(&mut piece).await.unwrap();
                assert!(read > 0, "{told}");
                told += std::str::from_utf8(&piece[..read]).unwrap();
            }
        };
        // A client that has begun to send is listened to for 10 s.
        tokio::time::timeout(Duration::from_secs(5), answer).await.expect("it is answered at once");
        assert!(told.starts_with("HTTP/1.1 41"), "{told}");
    }
}

#[tokio::test]
async fn a_client_that_sends_all_of_a_refused_body_before_it_reads_gets_its_answer() {
    let (_nats, _played, gateway) = house(|config| config.gateway.body_limit = 20 << 20).await;
    let body = vec![b' '; 24 << 20];
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    tokio::time::timeout(PATIENCE, socket.write_all(&body)).await.expect("it is read").unwrap();
    let told = told(socket).await;
    assert!(told.starts_with("HTTP/1.1 413 "), "{told}");
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_waited_for_and_the_wait_is_not_counted_as_ours() {
    let limit = Duration::from_secs(1);
    let (_nats, mut played, gateway) = house(|config| config.gateway.body_timeout = limit).await;
    let body = chat(false);
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    let began = std::time::Instant::now();
    // In all for longer than the limit.
    for piece in body.as_bytes().chunks(body.len().div_ceil(15)) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        socket.write_all(piece).await.unwrap();
    }
    assert!(began.elapsed() > limit);
    let job = played.job().await;
    played.answer(&job, 200, "application/json", b"{}").await;
    let told = told(socket).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    for name in ["x-berth-queue-ms", "openai-processing-ms"] {
        let (_, rest) = told.split_once(&format!("{name}: ")).expect(&told);
        let ms: u64 = rest.split("\r\n").next().unwrap().parse().unwrap();
        assert!(ms < 1000, "{name} counts the upload: {ms} ms");
    }
}

#[tokio::test]
async fn a_slow_client_holds_back_its_own_engine_and_nobody_elses() {
    let window = 64 * 1024;
    let (_nats, mut played, gateway) = house(|config| {
        config.gateway.window = window;
        config.gateway.workers = Some(1);
    })
    .await;
    let mut slow = raw(&gateway, &chat(true)).await;
    let job = played.job().await;
    played.go(&job, 1).await;
    let event: &'static [u8] = b"data: {\"text\":\"0123456789\"}\n\n".repeat(256).leak();
    let size = event.len() as u64;
    let mut frame = head(200, EVENTS, 1, event);
    let (mut sent, mut granted, mut seq) = (0, window, 1);
    let most = 64 << 20;
    loop {
        while sent + size <= granted {
            played.frame(&job, frame).await;
            (sent, seq) = (sent + size, seq + 1);
            frame = data(seq, event);
        }
        match played.no_credit_within(Duration::from_millis(700)).await {
            Some(more) => granted = more,
            None => break,
        }
        assert!(sent < most, "a client that reads nothing was sent {sent} bytes");
    }
    // What the client has not taken fills the sockets' buffers and one window, and no more is granted.
    let other = post(&gateway, "/v1/chat/completions", chat(false));
    let quick = played.job().await;
    played.answer(&quick, 200, "application/json", b"{}").await;
    assert_eq!(other.await.unwrap().status(), 200);

    // It reads on: credit flows again and the answer ends whole.
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while !got.ends_with(b"0\r\n\r\n") {
            let n = slow.read(&mut buffer).await.unwrap();
            assert!(n > 0, "cut off");
            got.extend_from_slice(&buffer[..n]);
        }
        got
    });
    granted = played.credit().await.granted;
    assert!(granted > sent);
    played.frame(&job, data(seq, "data: [DONE]\n\n")).await;
    played.frame(&job, end(seq + 1, Finish::Stop)).await;
    let got = reader.await.unwrap();
    let text = String::from_utf8(got).unwrap();
    assert_eq!(text.matches("0123456789").count() as u64, sent / size * 256);
    assert!(text.contains("[DONE]"));
}

#[tokio::test]
async fn a_host_that_floods_beyond_its_credit_is_cut_off_alone() {
    let (_nats, mut played, gateway) = house(|config| config.gateway.window = 16 * 1024).await;
    let _slow = raw(&gateway, &chat(true)).await;
    let job = played.job().await;
    played.go(&job, 1).await;
    played.frame(&job, head(200, EVENTS, 1, b"data: {}\n\n")).await;
    // Sockets take some megabytes; more than all of them, without a word of credit.
    for seq in 2..2000 {
        played.frame(&job, data(seq, vec![b'x'; 16 * 1024])).await;
    }
    assert_eq!(played.cancelled().await.job, job.id);
}

#[tokio::test]
async fn jobs_are_forgotten_when_they_end() {
    let (_nats, mut played, gateway) = house(|_| {}).await;
    let request = post(&gateway, "/v1/chat/completions", chat(true));
    let job = played.job().await;
    let error = ApiError::new(ErrorKind::CannotFit, "cannot_fit", "it never fits");
    played.notify(&job, 1, Notice::Failed(error)).await;
    assert_eq!(request.await.unwrap().status(), 503);
    until("no demux holds a job", PATIENCE, async || {
        let health: serde_json::Value =
            reqwest::get(gateway.url("/healthz")).await.unwrap().json().await.unwrap();
        let actors = health["actors"].as_array().unwrap();
        !actors.is_empty() && actors.iter().all(|actor| actor["state"]["jobs"] == 0)
    })
    .await;
}
