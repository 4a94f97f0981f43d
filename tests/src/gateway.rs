//! A client of the gateway, down to the events of a stream.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::run::at_most;

/// Longer than any answer in the tests may take, cold starts on a busy machine included.
const LIMIT: Duration = Duration::from_secs(90);
/// The same where an engine is one that takes long to start.
const LONG: Duration = Duration::from_secs(600);

/// A chat body with more fields.
///
/// # Panics
/// When `fields` is no object.
#[must_use]
pub fn chat(model: &str, fields: &Value) -> Value {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Which berth is free?"}]});
    let more = fields.as_object().expect("fields are an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A gateway's address and a client.
#[derive(Debug, Clone)]
pub struct Gateway {
    url: String,
    client: reqwest::Client,
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, null if it is no JSON.
    pub json: Value,
    /// The body as text.
    pub text: String,
}

impl Answer {
    /// The text of a chat's answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn content(&self) -> &str {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_else(|| panic!("no text: {}", self.text))
    }

    /// Checks that it is an OpenAI error object with all four keys, and returns its message.
    ///
    /// # Panics
    /// When it is not.
    pub fn error(&self) -> &str {
        let error =
            self.json["error"].as_object().unwrap_or_else(|| panic!("no error object: {}", self.text));
        for key in ["message", "type", "param", "code"] {
            assert!(error.contains_key(key), "the error lacks `{key}`: {}", self.text);
        }
        error["message"].as_str().expect("a message is text")
    }
}

impl Gateway {
    /// At a base URL without a slash at the end.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self { url: url.into(), client: reqwest::Client::new() }
    }

    /// Its base URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// GET.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn get(&self, path: &str) -> Answer {
        self.whole(path, self.client.get(format!("{}{path}", self.url))).await
    }

    /// POST of JSON.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_raw(path, body.to_string().into()).await
    }

    /// POST of any bytes.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn post_raw(&self, path: &str, body: Bytes) -> Answer {
        self.whole(path, self.request(path, body)).await
    }

    /// A plain chat.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn chat(&self, model: &str, fields: &Value) -> Answer {
        self.post("/v1/chat/completions", &chat(model, fields)).await
    }

    /// A plain chat with a model whose engine takes minutes to start where cores are shared.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn chat_at_length(&self, model: &str, fields: &Value) -> Answer {
        let path = "/v1/chat/completions";
        self.within(LONG, path, self.request(path, chat(model, fields).to_string().into())).await
    }

    /// A streamed chat, as soon as its head is there.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn stream(&self, model: &str, fields: &Value) -> Stream {
        let mut body = chat(model, fields);
        body["stream"] = true.into();
        self.stream_body("/v1/chat/completions", &body).await
    }

    /// A stream from any body.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn stream_body(&self, path: &str, body: &Value) -> Stream {
        let request = self.request(path, body.to_string().into());
        let response = at_most(LIMIT, path, request.send()).await.expect("the gateway answers");
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        Stream {
            status,
            headers,
            body: Box::pin(response.bytes_stream()),
            buffer: BytesMut::new(),
            ended: false,
        }
    }

    fn request(&self, path: &str, body: Bytes) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.url);
        self.client.post(url).header("content-type", "application/json").body(body)
    }

    async fn whole(&self, path: &str, request: reqwest::RequestBuilder) -> Answer {
        self.within(LIMIT, path, request).await
    }

    async fn within(&self, limit: Duration, path: &str, request: reqwest::RequestBuilder) -> Answer {
        at_most(limit, path, async {
            let response = request.send().await.unwrap_or_else(|e| panic!("no answer to {path}: {e:?}"));
            let status = response.status().as_u16();
            let headers = response.headers().clone();
            let text = response.text().await.unwrap_or_else(|e| panic!("half an answer to {path}: {e:?}"));
            Answer { status, headers, json: serde_json::from_str(&text).unwrap_or_default(), text }
        })
        .await
    }
}

/// One thing that a stream brought.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// `data: {...}`
    Data(Value),
    /// `data: [DONE]`
    Done,
    /// `: ...`
    Comment(String),
    /// The body ended in good order.
    End,
    /// The connection broke.
    Broken(String),
}

type Body = Pin<Box<dyn futures::Stream<Item = reqwest::Result<Bytes>> + Send>>;

/// A streamed answer. Dropping it is a client that leaves.
pub struct Stream {
    /// HTTP status.
    pub status: u16,
    /// Response headers.
    pub headers: reqwest::header::HeaderMap,
    body: Body,
    buffer: BytesMut,
    ended: bool,
}

impl Stream {
    /// The next event.
    ///
    /// # Panics
    /// When none comes in time, or what comes is no event stream.
    pub async fn next(&mut self) -> Event {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
                let event = self.buffer.split_to(end + 2);
                return parse(std::str::from_utf8(&event).expect("a stream is UTF-8").trim_end());
            }
            if self.ended {
                if self.status != 200 && !self.buffer.is_empty() {
                    // An error before the stream began is a JSON body.
                    let body = self.buffer.split();
                    return parse(&format!("data: {}", String::from_utf8_lossy(&body)));
                }
                assert!(self.buffer.is_empty(), "the stream ends within an event: {:?}", self.buffer);
                return Event::End;
            }
            match at_most(LIMIT, "the next event", self.body.next()).await {
                Some(Ok(piece)) => self.buffer.extend_from_slice(&piece),
                Some(Err(error)) => return Event::Broken(format!("{error:?}")),
                None => self.ended = true,
            }
        }
    }

    /// The next event that is no comment.
    ///
    /// # Panics
    /// As `next`.
    pub async fn data(&mut self) -> Event {
        loop {
            match self.next().await {
                Event::Comment(_) => {}
                other => return other,
            }
        }
    }

    /// Text of the next chunk that has some.
    ///
    /// # Panics
    /// When the stream ends before.
    pub async fn token(&mut self) -> String {
        if self.status != 200 {
            let events = self.rest().await;
            panic!("status {}: {events:?}", self.status);
        }
        loop {
            match self.data().await {
                Event::Data(chunk) if chunk.get("error").is_none() => {
                    if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str()
                        && !text.is_empty()
                    {
                        return text.into();
                    }
                }
                other => panic!("the stream brings no more text: {other:?}"),
            }
        }
    }

    /// Everything up to and with its end.
    ///
    /// # Panics
    /// As `next`.
    pub async fn rest(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            let last = matches!(event, Event::End | Event::Broken(_));
            events.push(event);
            if last {
                return events;
            }
        }
    }
}

fn parse(event: &str) -> Event {
    if let Some(comment) = event.strip_prefix(':') {
        return Event::Comment(comment.trim().into());
    }
    let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("no event: {event:?}"));
    if data == "[DONE]" {
        return Event::Done;
    }
    Event::Data(serde_json::from_str(data).unwrap_or_else(|e| panic!("no event: {event:?}: {e}")))
}
