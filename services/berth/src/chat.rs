//! `berth chat`: a conversation with a model in the terminal, through the gateway as any client has it.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::time::Duration;

use berth_config::env;
use clap::Args;
use futures::StreamExt;
use reqwest::{Client, Response};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};
use crate::up::BusFile;
use crate::{setup, table};

pub(crate) const EXAMPLES: &str = "\
Without a prompt it reads one from standard input; on a terminal it goes on as a conversation: an empty line or Ctrl-D
ends it, /new begins another. While the model is loaded or the request waits, its place is shown on standard error.

Examples:
  berth chat demo
  berth chat demo \"Why is the sky blue?\"
  git diff | berth chat demo --system \"Write a commit message for this.\"
  berth chat demo --url https://berth.example:8421 --key \"$KEY\" \"Hello\"";

/// Options of `chat`.
#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// The model, or an alias of it.
    model: String,
    /// What to ask.
    prompt: Option<String>,
    /// What the model is told first.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer, at most.
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// The gateway [default: that of a running `berth up`, else [gateway] listen].
    #[arg(long, env = "BERTH_URL", value_name = "URL")]
    url: Option<String>,
    /// An API key, where the gateway asks for one.
    #[arg(long, env = "BERTH_API_KEY", value_name = "KEY", hide_env_values = true)]
    key: Option<String>,
    /// The conversation that it belongs to, as a lease names it.
    #[arg(long, value_name = "SESSION")]
    session: Option<String>,
}

/// Who speaks to the gateway.
struct Line<'a> {
    args: &'a ChatArgs,
    client: Client,
    url: String,
    messages: Vec<Value>,
}

/// `berth chat`
pub(crate) fn run(args: &ChatArgs) -> Result<Exit, Failure> {
    let url = match &args.url {
        Some(url) => url.trim_end_matches('/').trim_end_matches("/v1").to_owned(),
        None => {
            let address = match BusFile::gateway(&env::data_dir())? {
                Some(address) => address.to_string(),
                None => {
                    let listen = setup::config(None, &[])?.0.gateway.listen;
                    listen.first().map_or_else(|| "127.0.0.1:8421".into(), ToString::to_string)
                }
            };
            format!("http://{}", address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]"))
        }
    };
    let client = Client::builder().connect_timeout(Duration::from_secs(10)).build();
    let client = client.map_err(|error| Failure::Input(format!("cannot speak HTTP: {error}")))?;
    let mut line = Line { args, client, url, messages: Vec::new() };
    line.begin();
    actix_rt::System::new().block_on(async {
        let input = std::io::stdin();
        match &args.prompt {
            Some(prompt) => {
                let mut prompt = prompt.clone();
                if prompt == "-" {
                    prompt = all(input.lock())?;
                }
                line.ask(&prompt).await?;
            }
            None if input.is_terminal() => line.talk().await?,
            None => line.ask(&all(input.lock())?).await?,
        }
        Ok(Exit::Done)
    })
}

fn all(mut input: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = input.read_to_string(&mut text);
    read.map_err(|source| Failure::System { what: "cannot read standard input", source })?;
    if text.trim().is_empty() {
        return Err(Failure::Option(
            "there is nothing to ask: give a prompt, or write one to standard input".into(),
        ));
    }
    Ok(text)
}

impl Line<'_> {
    fn begin(&mut self) {
        self.messages.clear();
        if let Some(system) = &self.args.system {
            self.messages.push(json!({"role": "system", "content": system}));
        }
    }

    /// A conversation, until a person ends it.
    async fn talk(&mut self) -> Result<(), Failure> {
        loop {
            eprint!("> ");
            let _ = std::io::stderr().flush();
            let mut text = String::new();
            let read = std::io::stdin().lock().read_line(&mut text);
            let read =
                read.map_err(|source| Failure::System { what: "cannot read standard input", source })?;
            match text.trim() {
                "" if read == 0 => {
                    eprintln!();
                    return Ok(());
                }
                "" => return Ok(()),
                "/new" => {
                    self.begin();
                    eprintln!("a new conversation");
                }
                prompt => {
                    let before = self.messages.len();
                    // What went wrong once may not the next time.
                    if let Err(error) = self.ask(prompt).await {
                        eprintln!("error: {error}");
                        self.messages.truncate(before);
                    }
                }
            }
        }
    }

    async fn ask(&mut self, prompt: &str) -> Result<(), Failure> {
        self.messages.push(json!({"role": "user", "content": prompt}));
        let mut body = json!({"model": self.args.model, "messages": self.messages, "stream": true});
        if let (Some(most), Some(fields)) = (self.args.max_tokens, body.as_object_mut()) {
            fields.insert("max_tokens".into(), most.into());
        }
        let mut request = self.client.post(format!("{}/v1/chat/completions", self.url)).json(&body);
        if let Some(key) = &self.args.key {
            request = request.bearer_auth(key);
        }
        if let Some(session) = &self.args.session {
            request = request.header("x-berth-session", session);
        }
        let answer = request.send().await.map_err(|error| {
            let why = if error.is_connect() { "no gateway answers there" } else { "the gateway broke off" };
            Failure::Input(format!("{}: {why}; `berth up` starts one, and --url names another", self.url))
        })?;
        if !answer.status().is_success() {
            return Err(refused(answer).await);
        }
        let said = read(answer).await?;
        self.messages.push(json!({"role": "assistant", "content": said}));
        Ok(())
    }
}

async fn refused(answer: Response) -> Failure {
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    let message = body.pointer("/error/message").and_then(Value::as_str);
    let message = message.map_or_else(|| format!("the gateway answers {status}"), str::to_owned);
    let hint = if status.as_u16() == 401 { "; --key or BERTH_API_KEY gives it" } else { "" };
    Failure::Input(table::plain(&format!("{message}{hint}")))
}

/// Reads an answer as it comes, and prints it.
async fn read(answer: Response) -> Result<String, Failure> {
    let mut pieces = answer.bytes_stream();
    let (mut rest, mut said, mut waiting, mut finished) =
        (Vec::new(), String::new(), Waiting::default(), false);
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else { break };
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match event(line.trim_end()) {
                Some(Part::Waits(place)) => waiting.show(&place),
                Some(Part::Says(text)) => {
                    waiting.over();
                    out!("{}", shown(&text));
                    said.push_str(&text);
                }
                Some(Part::Failed(message)) => {
                    waiting.over();
                    if !said.is_empty() {
                        outln!("");
                    }
                    return Err(Failure::Input(table::plain(&message)));
                }
                Some(Part::Over) => finished = true,
                None => {}
            }
        }
    }
    waiting.over();
    if !said.ends_with('\n') {
        outln!("");
    }
    if !finished {
        return Err(Failure::Input("the answer broke off before its end".into()));
    }
    Ok(said)
}

/// One line of an answer.
#[derive(Debug, PartialEq)]
enum Part {
    /// How far it is, while it waits.
    Waits(String),
    Says(String),
    Failed(String),
    Over,
}

fn event(line: &str) -> Option<Part> {
    if let Some(comment) = line.strip_prefix(": berth ") {
        return Some(Part::Waits(comment.to_owned()));
    }
    let data = line.strip_prefix("data:")?.trim_start();
    if data == "[DONE]" {
        return Some(Part::Over);
    }
    let data: Value = serde_json::from_str(data).ok()?;
    if let Some(error) = data.get("error").filter(|error| !error.is_null()) {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("the engine failed");
        return Some(Part::Failed(message.to_owned()));
    }
    let text = data.pointer("/choices/0/delta/content").and_then(Value::as_str)?;
    (!text.is_empty()).then(|| Part::Says(text.to_owned()))
}

/// Text of a model as a terminal may show it: lines and tabs, and nothing that moves the cursor.
fn shown(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).collect()
}

/// The place in the queue, on standard error.
#[derive(Default)]
struct Waiting {
    last: Option<String>,
}

impl Waiting {
    fn show(&mut self, place: &str) {
        if self.last.as_deref() == Some(place) {
            return;
        }
        let told = table::plain(place);
        if std::io::stderr().is_terminal() {
            eprint!("\r\u{1b}[K{told}");
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{told}");
        }
        self.last = Some(place.to_owned());
    }

    fn over(&mut self) {
        if self.last.take().is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_answer_are_told_apart() {
        assert_eq!(event(": berth queued position=3"), Some(Part::Waits("queued position=3".into())));
        assert_eq!(
            event("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}"),
            Some(Part::Says("a".into()))
        );
        assert_eq!(event("data: {\"error\":{\"message\":\"m\"}}"), Some(Part::Failed("m".into())));
        assert_eq!(event("data: [DONE]"), Some(Part::Over));
        for other in ["", ": ping", "event: x", "data: {\"choices\":[]}", "data: nonsense"] {
            assert_eq!(event(other), None, "{other}");
        }
        assert_eq!(shown("a\u{1b}[2Jb\n\tc"), "a[2Jb\n\tc");
    }
}
