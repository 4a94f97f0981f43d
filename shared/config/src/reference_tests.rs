//! The reference, the schema, the example and the reader say the same.

use super::*;
use crate::Config;

fn fields() -> Vec<(String, bool, String, Value)> {
    let schema = schema();
    let mut tables = Vec::new();
    collect(&schema, &schema, &mut tables, "", false);
    let mut all = Vec::new();
    for table in &tables {
        for (name, field) in &table.fields {
            all.push((table.path.clone(), table.many, (*name).to_owned(), (*field).clone()));
        }
    }
    all
}

/// A file with one table that has all it needs, and `line` in it.
fn file(table: &str, many: bool, line: &str) -> String {
    let model = "[[models]]\nid = \"m\"\nengine = \"vllm\"";
    let needed = match table {
        "models" => "id = \"m\"\nengine = \"vllm\"",
        "models.adapters" => "id = \"a\"\npath = \"/a\"",
        "gateway.keys" => {
            "name = \"k\"\nhash = \"blake3:0000000000000000000000000000000000000000000000000000000000000000\""
        }
        "host.registries" => "address = \"r\"\nuser = \"u\"\npassword_env = \"P\"",
        "health.webhooks" | "external" => "url = \"http://127.0.0.1:1\"",
        _ => "",
    };
    let name = line.split_once(" = ").map(|(name, _)| name);
    let needed: Vec<&str> =
        needed.lines().filter(|other| other.split_once(" = ").map(|(name, _)| name) != name).collect();
    let header = if many { format!("[[{table}]]") } else { format!("[{table}]") };
    let before = if table == "models.adapters" { model } else { "" };
    format!("{before}\n{header}\n{}\n{line}\n", needed.join("\n"))
}

#[test]
fn the_page_in_docs_is_made_from_the_types() {
    let committed = include_str!("../../../docs/configuration.md");
    assert!(
        committed == page(),
        "docs/configuration.md is old: cargo run -p berth-config --example reference > docs/configuration.md"
    );
}

#[test]
fn every_field_says_what_it_is_for() {
    let all = fields();
    assert!(all.len() > 100, "{}", all.len());
    for (table, _, name, field) in all {
        assert!(words(&field).len() > 10, "[{table}] {name} lacks a doc comment");
    }
}

#[test]
fn the_example_has_every_field_and_no_other() {
    let mut example = example_keys();
    example.sort();
    example.dedup();
    let mut known: Vec<_> = fields().into_iter().map(|(table, _, name, _)| (table, name)).collect();
    known.sort();
    let lacks: Vec<_> = known.iter().filter(|field| !example.contains(field)).collect();
    let unknown: Vec<_> = example.iter().filter(|field| !known.contains(field)).collect();
    assert!(lacks.is_empty() && unknown.is_empty(), "berth.toml lacks {lacks:?}, and has {unknown:?}");
}

#[test]
fn a_default_that_is_written_out_changes_nothing() {
    let mut tried = 0;
    for (table, many, name, field) in fields() {
        let Some(default) = field.get("default") else { continue };
        let without = Config::parse(&file(&table, many, ""), "f.toml").unwrap();
        let line = format!("{name} = {default}");
        let with = if default.is_object() {
            continue;
        } else {
            Config::parse(&file(&table, many, &line), "f.toml")
        };
        assert_eq!(with.map_err(|error| error.to_string()), Ok(without), "[{table}] {line}");
        tried += 1;
    }
    assert!(tried > 40, "{tried}");
}

#[test]
fn what_is_beyond_a_bound_is_refused() {
    let mut tried = 0;
    for (table, many, name, field) in fields() {
        let number = |bound: &str| field.get(bound).and_then(Value::as_i64).filter(|bound| *bound > 0);
        let text = |bound: &str| field.get(bound).and_then(Value::as_str);
        let span = |text: &str| crate::parse_duration(text).ok();
        let beyond = [
            number("minimum").map(|least| (least - 1).to_string()),
            number("maximum").map(|most| (most + 1).to_string()),
            text("x-least").and_then(span).map(|least| format!("\"{}ms\"", least.as_millis() - 1)),
            text("x-most").and_then(span).map(|most| format!("\"{}ms\"", most.as_millis() + 1)),
            text("x-least")
                .filter(|text| span(text).is_none())
                .map(|least| format!("\"{}B\"", bytes(least) - 1)),
            text("x-most")
                .filter(|text| span(text).is_none())
                .map(|most| format!("\"{}B\"", bytes(most) + 1)),
        ];
        for value in beyond.into_iter().flatten() {
            let text = file(&table, many, &format!("{name} = {value}"));
            let refused = Config::parse(&text, "f.toml");
            assert!(refused.is_err(), "[{table}] {name} = {value} is beyond what is said, and is taken");
            tried += 1;
        }
    }
    assert!(tried > 30, "{tried}");
}

fn bytes(size: &str) -> u64 {
    size.parse::<bytesize::ByteSize>().unwrap().as_u64()
}

#[test]
fn every_variable_of_the_page_is_read_and_the_other_way_round() {
    let source = include_str!("env.rs");
    let quoted = |text: &str, mark: char| {
        let words = text.split(mark).filter(|word| word.starts_with("BERTH_") && !word.contains([' ', '\n']));
        words.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let read = quoted(source, '"');
    // The command line reads these two.
    let page: std::collections::BTreeSet<_> = quoted(&page(), '`')
        .into_iter()
        .filter(|name| name != "BERTH_URL" && name != "BERTH_API_KEY")
        .collect();
    assert_eq!(page, read);
}
