//! `berth add URL`, with real servers at the other end.

use berth_tests::{Finished, LlamaByHand, Ollama, SOON, berth, finish};
use tempfile::TempDir;

const FILE: &str =
    "# mine\n[host]\nname = \"desk\" # this one\n\n[[models]]\nid = \"demo\" # stays\nengine = \"sim\"\n";

struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        std::fs::write(folder.path().join("my.toml"), text).expect("a file can be written");
        Self { folder }
    }

    async fn run(&self, args: &[&str]) -> Finished {
        let mut command = berth();
        command.current_dir(self.folder.path()).args(args).args(["--config", "my.toml"]);
        tokio::task::spawn_blocking(move || finish(command, SOON)).await.expect("it runs")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("my.toml")).expect("the file is there")
    }
}

#[tokio::test]
async fn a_server_is_known_by_its_answers_and_added_once_with_every_comment_kept() {
    let (ollama, llama) = (Ollama::start().await, LlamaByHand::start("tiny", "a-key").await);
    ollama.create("tiny");
    let desk = Desk::new(FILE);
    let added = desk.run(&["add", &format!("{}/v1/", ollama.url())]).await;
    assert!(added.ok, "{}", added.output);
    for part in ["Ollama (1 model)", "+ [[external]]", "+ kind = \"ollama\""] {
        assert!(added.output.contains(part), "`{part}` in:\n{}", added.output);
    }
    assert!(desk.text().starts_with(FILE), "what was there stays:\n{}", desk.text());

    let again = desk.run(&["add", &ollama.url()]).await;
    assert!(!again.ok && again.output.contains("already, as `ollama`"), "{}", again.output);

    let with_key = desk.run(&["add", &llama.url(), "--name", "hand", "--key-env", "HAND_KEY"]).await;
    assert!(with_key.ok, "{}", with_key.output);
    assert!(desk.text().contains("kind = \"llama.cpp\"\nkey_env = \"HAND_KEY\""), "{}", desk.text());

    let checked = desk.run(&["check"]).await;
    assert!(checked.ok && checked.output.contains("$HAND_KEY"), "{}", checked.output);
}

#[tokio::test]
async fn what_cannot_be_added_leaves_the_file_as_it_was() {
    let desk = Desk::new(FILE);
    let silent = desk.run(&["add", "http://127.0.0.1:1"]).await;
    assert!(!silent.ok && silent.output.contains("--kind"), "{}", silent.output);
    let secure = desk.run(&["add", "https://example.org"]).await;
    assert!(!secure.ok && secure.output.contains("https"), "{}", secure.output);
    assert_eq!(desk.text(), FILE);
    let wrong = Desk::new("[gatway]\n");
    let refused = wrong.run(&["add", "http://127.0.0.1:1", "--kind", "ollama"]).await;
    assert!(!refused.ok && refused.output.contains("did you mean `gateway`?"), "{}", refused.output);
}
