use berth_config::Config;

use super::*;

fn model(kind: &str, more: &str) -> ModelSpec {
    let text = format!("[[models]]\nid = \"base\"\nengine = \"{kind}\"\n{more}");
    Config::parse(&text, "test.toml").unwrap().models.remove(0)
}

#[test]
fn every_request_to_a_llama_server_with_adapters_says_which_apply() {
    let adapters =
        "[[models.adapters]]\nid = \"a\"\npath = \"/a\"\n[[models.adapters]]\nid = \"b\"\npath = \"/b\"\n";
    let model = model("llama.cpp", adapters);
    assert_eq!(scales(&model, Some(1)).to_string(), r#"[{"id":0,"scale":0.0},{"id":1,"scale":1.0}]"#);
    let none = scales(&model, None).to_string();
    assert_eq!(none, r#"[{"id":0,"scale":0.0},{"id":1,"scale":0.0}]"#);
    let own = Bytes::from_static(br#"{"lora":[{"id":0,"scale":9}],"x":1,"lor\u0061":[]}"#);
    assert_eq!(choose(own, &none), format!(r#"{{"lora":{none},"x":1,"lor\u0061":{none}}}"#));
    assert_eq!(choose(Bytes::from_static(b"{}"), "[]"), r#"{"lora":[]}"#);
}

#[test]
fn a_vllm_makes_room_for_the_rank_of_adapters_that_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let told = |rank: u64, args: &str| {
        std::fs::write(folder.path().join("adapter_config.json"), format!("{{\"r\": {rank}}}")).unwrap();
        let adapter = format!("[[models.adapters]]\nid = \"a\"\npath = \"{path}\"\n");
        rank_words(&model("vllm", &format!("driver = \"process\"\n{args}{adapter}")))
    };
    assert_eq!(told(16, ""), "");
    assert_eq!(told(17, ""), "--max-lora-rank 32");
    assert_eq!(told(300, ""), "--max-lora-rank 320");
    assert_eq!(told(300, "args = [\"--max-lora-rank=64\"]\n"), "");
}

fn rank_words(model: &ModelSpec) -> String {
    rank(model).join(" ")
}

#[test]
fn an_adapter_that_is_not_there_is_named() {
    let adapter = "driver = \"process\"\n[[models.adapters]]\nid = \"a\"\npath = \"/nowhere/a\"\n";
    assert_eq!(
        missing(&model("vllm", adapter)).as_deref(),
        Some("the adapter `a` of `base` is not at /nowhere/a")
    );
}
