//! `docs/configuration.md`: the file's shape for people, made from its JSON Schema. Tables and fields stand in the order of
//! the example.

use std::fmt::Write as _;

use serde_json::Value;

use crate::resolve::EXAMPLE;
use crate::schema::schema;

const HEAD: &str = "# Configuration

Made from the types in `shared/config` by `cargo run -p berth-config --example reference > docs/configuration.md`.
[berth.toml](../berth.toml) has the same as an example to copy. `berth check FILE` points at what is wrong in a file, and
`berth apply FILE` changes a running fleet ([commands.md](commands.md#changing-a-running-fleet)).

`berth check --schema` prints this as JSON Schema, for [taplo](https://taplo.tamasfe.dev) and the editors that use it:

```
$ berth check --schema > berth.schema.json
$ head -1 berth.toml
#:schema ./berth.schema.json
$ taplo lint berth.toml
error: \"vlm\" is not one of [\"llama.cpp\",\"vllm\",\"sim\",\"custom\"]
  ┌─ berth.toml:6:10
  │
6 │ engine = \"vlm\"
  │          ^^^^^ \"vlm\" is not one of [\"llama.cpp\",\"vllm\",\"sim\",\"custom\"]
```

A **duration** is written with its unit, `\"90s\"`, `\"15m\"`, `\"1h 30m\"`, and lasts a year at most; a **size** too, `\"16GiB\"` (powers of
1024) or `\"500MB\"` (powers of 1000). Paths start at the file's folder, and `~` is the home of who reads the file. Fields that are
not known, and a file with any mistake, are refused. What is in **bold** must be given; a list without a default is empty. Where a
variable of the environment is named, it goes before the file.

Other variables:

| variable | what it is for |
|---|---|
| `BERTH_CONFIG` | the configuration file, where `--config` does not say; else `berth.toml` in the current folder |
| `BERTH_DATA_DIR` | where is kept what must survive; else `$XDG_DATA_HOME/berth`, else `~/.local/share/berth` |
| `XDG_CACHE_HOME` | what can be fetched again is kept in `berth` below it; else `~/.cache/berth` |
| `RUST_LOG`, `BERTH_LOG_FORMAT` | what is logged, `info` by default; `json` for one object a line |
| `NO_COLOR` | plain text in tables |
| `BERTH_URL`, `BERTH_API_KEY` | the gateway of `berth chat`, and the key for it |

Compose has more, which set these ([install.md](install.md#variables)).
";

/// The text of `docs/configuration.md`.
#[must_use]
pub fn page() -> String {
    let schema = schema();
    let mut tables = Vec::new();
    collect(&schema, &schema, &mut tables, "", false);
    let order = example_keys();
    let place = |table: &str, key: &str| {
        order.iter().position(|(t, k)| t == table && (key.is_empty() || k == key)).unwrap_or(usize::MAX)
    };
    tables.sort_by_key(|table: &Table<'_>| place(&table.path, ""));
    let mut text = HEAD.to_owned();
    for table in &mut tables {
        let (open, close) = if table.many { ("[[", "]]") } else { ("[", "]") };
        let _ = write!(text, "\n## {open}{}{close}\n\n{}\n\n", table.path, words(table.schema));
        text.push_str("| field | type | default | what it is for |\n|---|---|---|---|\n");
        table.fields.sort_by_key(|(name, _)| place(&table.path, name));
        for (name, field) in &table.fields {
            let strong = if table.required(name) { "**" } else { "" };
            let variable = field.get("x-env").and_then(Value::as_str);
            let variable = variable.map(|name| format!(" Variable: `{name}`.")).unwrap_or_default();
            let _ = writeln!(
                text,
                "| {strong}`{name}`{strong} | {}{} | {} | {}{variable} |",
                kind(field),
                bounds(field),
                default(field),
                words(field)
            );
        }
    }
    text
}

/// Every key of the example with its table, in the order of the file; those in comments too.
pub(crate) fn example_keys() -> Vec<(String, String)> {
    let mut table = String::new();
    let mut keys = Vec::new();
    for line in EXAMPLE.lines() {
        let mut line = line;
        while let Some(rest) = line.strip_prefix("# ") {
            line = rest;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            table = name.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            keys.push((table.clone(), key.to_owned()));
        }
    }
    keys
}

/// One table of the file.
pub(crate) struct Table<'a> {
    pub(crate) path: String,
    /// Whether it is a list of tables.
    pub(crate) many: bool,
    schema: &'a Value,
    pub(crate) fields: Vec<(&'a str, &'a Value)>,
}

impl Table<'_> {
    pub(crate) fn required(&self, name: &str) -> bool {
        let required = self.schema.get("required").and_then(Value::as_array);
        required.is_some_and(|names| names.iter().any(|other| other == name))
    }
}

/// Finds the tables below `table`, each with the fields that are none.
pub(crate) fn collect<'a>(
    root: &'a Value,
    table: &'a Value,
    tables: &mut Vec<Table<'a>>,
    path: &str,
    many: bool,
) {
    let mut fields = Vec::new();
    let properties = table.get("properties").and_then(Value::as_object);
    for (name, field) in properties.into_iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if let Some(inner) = target(root, field) {
            collect(root, inner, tables, &below, false);
        } else if let Some(inner) = field.get("items").and_then(|items| target(root, items)) {
            collect(root, inner, tables, &below, true);
        } else {
            fields.push((name.as_str(), field));
        }
    }
    if !path.is_empty() {
        tables.push(Table { path: path.to_owned(), many, schema: table, fields });
    }
}

/// The table that a schema refers to.
fn target<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let wrapped = schema.get("allOf").and_then(|all| all.get(0)).unwrap_or(schema);
    let name = wrapped.get("$ref")?.as_str()?.strip_prefix("#/definitions/")?;
    root.get("definitions")?.get(name)
}

/// What a table or a field is for, on one line.
fn words(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

fn kind(field: &Value) -> String {
    if let Some(kind) = field.get("x-kind").and_then(Value::as_str) {
        return kind.to_owned();
    }
    if let Some(values) = field.get("enum").and_then(Value::as_array) {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    match field.get("type").and_then(Value::as_str) {
        Some("string") => "text".into(),
        Some("boolean") => "`true` or `false`".into(),
        Some("integer" | "number") => "number".into(),
        Some("object") => "table of text".into(),
        Some("array") => match field.get("items") {
            Some(items) if items.get("enum").is_some() => format!("list of {}", kind(items)),
            _ => "list of text".into(),
        },
        _ => "any".into(),
    }
}

fn bounds(field: &Value) -> String {
    let bound = |names: [&str; 2]| {
        let value = names.into_iter().find_map(|name| field.get(name))?;
        Some(value.as_str().map_or_else(|| whole(value), str::to_owned))
    };
    // What a number's own type says is 0.
    let least = bound(["x-least", "minimum"]).filter(|least| least != "0" && least != "0.0");
    match (least, bound(["x-most", "maximum"])) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) => format!(", at least {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        (None, None) => String::new(),
    }
}

/// A number as people write it.
fn whole(value: &Value) -> String {
    value.as_u64().map_or_else(|| value.to_string(), |number| number.to_string())
}

fn default(field: &Value) -> String {
    match (field.get("default"), field.get("x-default").and_then(Value::as_str)) {
        (_, Some(text)) => text.to_owned(),
        (Some(Value::Array(items)), _) if items.is_empty() => String::new(),
        (Some(Value::Object(map)), _) if map.is_empty() => String::new(),
        (Some(Value::Array(items)), _) => {
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            format!("`[{}]`", items.join(", "))
        }
        (Some(value), _) => format!("`{value}`"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
