//! Load: connections that are kept open and ask one request after the other, each answer checked. Light, so that it
//! takes little from what it measures: one thread, no HTTP client, no JSON.

use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What the simulator says, word after word.
const WORDS: [&str; 8] = ["This ", "answer ", "is ", "simulated ", "by ", "Berth: ", "no ", "model "];
/// An answer that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(60);

/// Where requests go.
#[derive(Debug, Clone)]
pub struct Aim {
    /// `127.0.0.1:PORT`.
    pub authority: String,
    pub model: String,
}

/// What is asked there.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub clients: usize,
    pub stream: bool,
    /// Every client goes on for so long; zero: one request each.
    pub lasts: Duration,
    /// Between the first requests of two clients.
    pub apart: Duration,
    pub answer: Answer,
}

/// How an answer is known to be the right one.
#[derive(Debug, Clone, Copy)]
pub enum Answer {
    /// Of the simulator: from one word to eight, another number in each request, and exactly these.
    Words,
    /// Of the simulator: so many words, over and over.
    Many(u32),
    /// Of a model: so many tokens, whatever they say.
    Tokens(u32),
}

/// What came of it. Times are in nanoseconds.
#[derive(Debug, Default)]
pub struct Seen {
    pub took: Duration,
    pub answers: Vec<u64>,
    /// Until the first word of a stream.
    pub first: Vec<u64>,
    /// Between words of a stream.
    pub gaps: Vec<u64>,
    /// Answers that did not take Berth's express lane, where it said which it took.
    pub queued: usize,
    /// What was wrong, for each answer that was not right.
    pub wrong: Vec<String>,
}

/// Asks as told.
pub async fn load(aim: &Aim, ask: Ask) -> Seen {
    let mut open = Vec::new();
    for _ in 0..ask.clients {
        open.push(Client::open(aim).await);
    }
    let began = Instant::now();
    let tasks = open.into_iter().enumerate().map(|(n, client)| {
        let aim = aim.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until((began + ask.apart * n as u32).into()).await;
            match client {
                Ok(client) => client.run(&aim, ask, n, began).await,
                Err(error) => Seen { wrong: vec![format!("no connection: {error}")], ..Seen::default() },
            }
        })
    });
    let mut all = Seen::default();
    for task in tasks.collect::<Vec<_>>() {
        let seen = task.await.expect("a client does not panic");
        all.answers.extend(seen.answers);
        all.first.extend(seen.first);
        all.gaps.extend(seen.gaps);
        all.queued += seen.queued;
        all.wrong.extend(seen.wrong);
    }
    all.took = began.elapsed();
    all
}

fn request(aim: &Aim, stream: bool, tokens: u32) -> Vec<u8> {
    let mut body = json!({
        "model": aim.model, "max_tokens": tokens,
        "messages": [{"role": "user", "content": "Which berth is free?"}],
    });
    if stream {
        body["stream"] = true.into();
    }
    let body = body.to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        aim.authority,
        body.len()
    )
    .into_bytes()
}

struct Client {
    socket: TcpStream,
    /// Bytes that are not read yet, and where in them reading goes on.
    raw: Vec<u8>,
    at: usize,
    body: Vec<u8>,
    /// It has been answered on, so its server may have closed it since.
    used: bool,
    /// Its server has said that it closes it.
    closes: bool,
}

/// How much of a body is still to come.
enum Left {
    Bytes(usize),
    Chunk(usize),
}

impl Client {
    async fn open(aim: &Aim) -> std::io::Result<Self> {
        let socket = TcpStream::connect(&aim.authority).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            raw: Vec::with_capacity(16 * 1024),
            at: 0,
            body: Vec::with_capacity(4096),
            used: false,
            closes: false,
        })
    }

    async fn run(mut self, aim: &Aim, ask: Ask, n: usize, began: Instant) -> Seen {
        let sizes: Vec<u32> = match ask.answer {
            Answer::Words => (1..=WORDS.len() as u32).collect(),
            Answer::Many(count) | Answer::Tokens(count) => vec![count],
        };
        let requests: Vec<_> = sizes.iter().map(|size| request(aim, ask.stream, *size)).collect();
        let mut seen = Seen::default();
        for turn in n.. {
            let which = turn % sizes.len();
            let asked = self.ask(&requests[which], ask, sizes[which], &mut seen);
            let result = match tokio::time::timeout(LIMIT, asked).await {
                Ok(result) => result,
                Err(_) => Err(format!("no whole answer within {LIMIT:?}")),
            };
            if let Err(wrong) = &result
                && !(self.used && self.raw.is_empty())
            {
                seen.wrong.push(wrong.clone());
            }
            self.used = true;
            if result.is_err() || self.closes {
                match Self::open(aim).await {
                    Ok(again) => self = again,
                    Err(_) => break,
                }
            }
            if began.elapsed() >= ask.lasts {
                break;
            }
        }
        seen
    }

    async fn ask(&mut self, request: &[u8], ask: Ask, size: u32, seen: &mut Seen) -> Result<(), String> {
        let began = Instant::now();
        self.raw.clear();
        self.at = 0;
        self.body.clear();
        self.socket.write_all(request).await.map_err(|e| format!("cannot send: {e}"))?;
        let mut left = self.head(seen).await?;
        let mut words = Words::default();
        loop {
            let over = self.take(&mut left)?;
            if ask.stream {
                words.look(&self.body, began, seen);
            }
            if over {
                break;
            }
            self.fill().await?;
        }
        seen.answers.push(nanos(began.elapsed()));
        check(&self.body, ask, size)
    }

    async fn fill(&mut self) -> Result<(), String> {
        if self.at == self.raw.len() {
            self.raw.clear();
            self.at = 0;
        }
        match self.socket.read_buf(&mut self.raw).await {
            Ok(0) => Err(format!("the connection ended after {} bytes of an answer", self.body.len())),
            Ok(_) => Ok(()),
            Err(error) => Err(format!("the connection broke: {error}")),
        }
    }

    /// The status line and headers.
    async fn head(&mut self, seen: &mut Seen) -> Result<Left, String> {
        loop {
            self.fill().await?;
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            let parsed = response.parse(&self.raw).map_err(|e| format!("no HTTP: {e}"))?;
            let httparse::Status::Complete(end) = parsed else { continue };
            if response.code != Some(200) {
                let said = String::from_utf8_lossy(&self.raw[end..]).into_owned();
                return Err(format!("status {}: {said}", response.code.unwrap_or_default()));
            }
            let mut left = Err("neither a length nor chunks".to_owned());
            for header in response.headers {
                if header.name.eq_ignore_ascii_case("content-length") {
                    let length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
                    left = length.map(Left::Bytes).ok_or_else(|| "a length that is no number".into());
                } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                    left = Ok(Left::Chunk(0));
                } else if header.name.eq_ignore_ascii_case("connection") {
                    self.closes = header.value.eq_ignore_ascii_case(b"close");
                } else if header.name.eq_ignore_ascii_case("x-berth-lane") && header.value != b"express" {
                    seen.queued += 1;
                }
            }
            self.at = end;
            return left;
        }
    }

    /// Moves what is there to the body; whether that was all of it.
    fn take(&mut self, left: &mut Left) -> Result<bool, String> {
        loop {
            let rest = &self.raw[self.at..];
            match left {
                Left::Bytes(count) => {
                    let here = rest.len().min(*count);
                    self.body.extend_from_slice(&rest[..here]);
                    self.at += here;
                    *count -= here;
                    return Ok(*count == 0);
                }
                Left::Chunk(0) => {
                    let Ok(httparse::Status::Complete((skip, size))) = httparse::parse_chunk_size(rest)
                    else {
                        return if rest.len() > 64 { Err("a bad chunk".into()) } else { Ok(false) };
                    };
                    let size = usize::try_from(size).map_err(|_| "a chunk that is too large")?;
                    if size == 0 {
                        return Ok(rest[skip..].starts_with(b"\r\n"));
                    }
                    self.at += skip;
                    // With the line's end behind it.
                    *left = Left::Chunk(size + 2);
                }
                Left::Chunk(count) => {
                    let here = rest.len().min(*count);
                    let data = here.min(count.saturating_sub(2));
                    self.body.extend_from_slice(&rest[..data]);
                    self.at += here;
                    *count -= here;
                    if *count > 0 {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

/// When the words of a stream came.
#[derive(Default)]
struct Words {
    looked: usize,
    last: Option<Instant>,
}

impl Words {
    fn look(&mut self, body: &[u8], began: Instant, seen: &mut Seen) {
        let mut came = false;
        while let Some(end) = memmem::find(&body[self.looked..], b"\n\n") {
            came |= !text(&body[self.looked..self.looked + end]).is_empty();
            self.looked += end + 2;
        }
        if !came {
            return;
        }
        let at = Instant::now();
        match self.last.replace(at) {
            None => seen.first.push(nanos(at - began)),
            Some(last) => seen.gaps.push(nanos(at - last)),
        }
    }
}

/// All values of `"content"` one after the other, escapes as they are.
fn text(body: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut rest = body;
    while let Some(at) = memmem::find(rest, b"\"content\":") {
        rest = rest[at + 10..].trim_ascii_start();
        let Some(value) = rest.strip_prefix(b"\"") else { continue };
        let mut escaped = false;
        let ends = |byte: &u8| {
            let ends = *byte == b'"' && !escaped;
            escaped = *byte == b'\\' && !escaped;
            ends
        };
        let end = value.iter().position(ends).unwrap_or(value.len());
        all.extend_from_slice(&value[..end]);
        rest = &value[end..];
    }
    all
}

fn check(body: &[u8], ask: Ask, size: u32) -> Result<(), String> {
    if ask.stream && !body.trim_ascii_end().ends_with(b"data: [DONE]") {
        return Err(format!("a stream without its end: {}", String::from_utf8_lossy(body)));
    }
    let said = text(body);
    let right = match ask.answer {
        Answer::Words => said == WORDS[..size as usize].concat().as_bytes(),
        Answer::Many(count) => {
            // Thirteen words, the last of which is a line's end.
            let spaces = said.iter().filter(|byte| **byte == b' ').count();
            let lines = memmem::find_iter(&said, b"\\n").count();
            spaces + lines == count as usize
        }
        // Streams tell usage only to who asks for it, and a model may end at once.
        Answer::Tokens(_) if ask.stream => [&b"\"finish_reason\":\""[..], b"\"finish_reason\": \""]
            .iter()
            .any(|told| memmem::find(body, told).is_some()),
        Answer::Tokens(count) => {
            [format!("\"completion_tokens\":{count}"), format!("\"completion_tokens\": {count}")]
                .iter()
                .any(|told| memmem::find(body, told.as_bytes()).is_some())
        }
    };
    if right { Ok(()) } else { Err(format!("a wrong answer: {}", String::from_utf8_lossy(body))) }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
